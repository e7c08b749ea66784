//! What a published engine is: its description, its layers, the graph it came from, and whether its bytes are the ones
//! that were published.

mod graph;

use std::collections::BTreeMap;
use std::io::Read;

use model_store::{Current, Digest, with_causes};
use serde::Serialize;
use serde_json::Value;

pub use self::graph::GraphSummary;
use crate::engine::{self, BuildOptions, Depth, ExamineRequest, Layer};
use crate::interrupt::Interrupt;
use crate::reuse::{LAYERS_FILE, beside, engines_of};
use crate::runtimes::Runtimes;
use engine_runtime::EngineRecord;

/// The graph of a version is some hundred kilobytes; weights lie elsewhere.
const MAX_GRAPH_BYTES: u64 = 2 << 30;
/// TensorRT-RTX 1.7 writes its version here, a byte each for major, minor, patch and build: seen, not documented.
const VERSION_AT: std::ops::Range<usize> = 24..28;
/// What a plan begins with.
const MAGIC: &[u8] = b"vtrt";

/// One engine, looked at closely.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The plan, within the version.
    pub plan: String,
    /// Its `engine.json`; absent if that cannot be read.
    pub description: Option<EngineRecord>,
    /// Size of the plan in bytes.
    pub plan_bytes: u64,
    /// SHA-256 of the plan as it is now.
    pub plan_sha256: String,
    /// The version of TensorRT-RTX that the plan's own header names.
    pub header_version: Option<String>,
    /// What is wrong with it, a line each.
    pub problems: Vec<String>,
    /// The layers of the network as parsed, before TensorRT fused any.
    pub layers: Vec<Layer>,
    /// What the engine inspector says; only where a GPU can load the plan.
    pub inspected: Option<Value>,
    /// Why there is nothing from the engine inspector.
    pub not_inspected: Option<String>,
    /// The graph, if the version has it.
    pub graph: Option<GraphSummary>,
}

impl Inspection {
    /// Number of layers of each kind and element type: what computes in which precision.
    #[must_use]
    pub fn precisions(&self) -> BTreeMap<(&str, &str), usize> {
        let mut counts = BTreeMap::new();
        for layer in &self.layers {
            *counts.entry((layer.dtype.as_str(), layer.kind.as_str())).or_default() += 1;
        }
        counts
    }
}

/// Looks at every engine of a version. What cannot be read is said under `problems`, and the rest is told all the same.
#[must_use]
pub fn inspect(
    version: &Current,
    runtimes: &Runtimes,
    build: &BuildOptions,
    interrupt: &Interrupt,
) -> Vec<Inspection> {
    let engines = engines_of(version).into_iter();
    engines
        .map(|found| {
            let mut problems = Vec::new();
            let description = found.record.map_err(|reason| problems.push(reason)).ok();
            let graph = read(version, "model.onnx", MAX_GRAPH_BYTES)
                .and_then(|bytes| {
                    if let Some(description) = &description
                        && Digest::of(&bytes).to_string() != description.onnx_sha256
                    {
                        problems.push("model.onnx is not the graph that it was built from".to_owned());
                    }
                    graph::summarize(&bytes)
                })
                .map_err(|reason| problems.push(format!("model.onnx: {reason}")))
                .ok();
            // A plan without the list still runs, and older versions have none.
            let layers = beside(&found.plan, LAYERS_FILE)
                .filter(|path| version.manifest().file(path).is_some())
                .map_or_else(|| Ok(b"[]".to_vec()), |path| read(version, path.as_str(), MAX_GRAPH_BYTES))
                .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()))
                .map_err(|reason| problems.push(format!("{LAYERS_FILE}: {reason}")))
                .unwrap_or_default();
            let (plan_sha256, plan_bytes, head) = plan_of(version, &found.plan).unwrap_or_else(|reason| {
                problems.push(format!("the plan cannot be read: {reason}"));
                Default::default()
            });
            if let Some(description) = &description
                && description.plan_sha256 != plan_sha256
                && !plan_sha256.is_empty()
            {
                problems.push(format!("the plan is not the one that was built: its digest is {plan_sha256}"));
            }
            let (inspected, not_inspected) = if problems.is_empty() {
                let plan = version.path().join(found.plan.as_path());
                match layers_of_engine(plan, runtimes, build, interrupt) {
                    Ok(value) => (Some(value), None),
                    Err(reason) => (None, Some(reason)),
                }
            } else {
                (None, Some("what is not sound is not loaded".to_owned()))
            };
            Inspection {
                plan: found.plan.to_string(),
                description,
                plan_bytes,
                plan_sha256,
                header_version: header_version(&head),
                problems,
                layers,
                inspected,
                not_inspected,
                graph,
            }
        })
        .collect()
}

fn read(version: &Current, path: &str, limit: u64) -> Result<Vec<u8>, String> {
    let path = path.parse().map_err(|error: model_store::NameError| error.to_string())?;
    let mut bytes = Vec::new();
    let file = version.open(&path).map_err(|error| with_causes(&error))?;
    file.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Digest, length and first bytes of a plan.
fn plan_of(version: &Current, path: &model_store::PayloadPath) -> Result<(String, u64, Vec<u8>), String> {
    let open = || version.open(path).map_err(|error| with_causes(&error));
    let mut head = Vec::new();
    open()?.take(VERSION_AT.end as u64).read_to_end(&mut head).map_err(|error| error.to_string())?;
    let (digest, bytes) = Digest::of_reader(&mut open()?).map_err(|error| error.to_string())?;
    Ok((digest.to_string(), bytes, head))
}

fn header_version(head: &[u8]) -> Option<String> {
    let parts = head.get(VERSION_AT).filter(|_| head.starts_with(MAGIC))?;
    Some(parts.iter().map(u8::to_string).collect::<Vec<_>>().join("."))
}

fn layers_of_engine(
    plan: std::path::PathBuf,
    runtimes: &Runtimes,
    build: &BuildOptions,
    interrupt: &Interrupt,
) -> Result<Value, String> {
    if !cfg!(feature = "tensorrt") {
        return Err("this binary was built without TensorRT-RTX".to_owned());
    }
    crate::native::gpus()?;
    let libraries = runtimes.tensorrt_rtx().map_err(|missing| missing.to_string())?;
    let request = ExamineRequest { plan, libraries, depth: Depth::Layers };
    let examined = engine::examine(&request, build, interrupt).map_err(|error| with_causes(&error))?;
    match examined.inspected {
        Some(text) => serde_json::from_str(&text).map_err(|error| format!("the inspector's words: {error}")),
        None => Err(examined.problems.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plans_header_names_its_version() {
        let check = |head: &[u8], expected: Option<&str>| {
            assert_eq!(header_version(head).as_deref(), expected, "{head:?}");
        };
        let mut head = [0; 28];
        head[..4].copy_from_slice(MAGIC);
        head[24..].copy_from_slice(&[1, 7, 1, 116]);
        check(&head, Some("1.7.1.116"));
        check(&head[..27], None);
        check(&[0; 28], None);
        check(b"", None);
    }
}

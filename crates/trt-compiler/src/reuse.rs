//! Engines that are in the store already: found by the digest of everything that they were built from.

use std::collections::BTreeMap;
use std::io::Read;

use model_store::{Current, Digest, FileEntry, ModelStore, PayloadPath, Staging, StoreError, with_causes};
use serde::Serialize;

use crate::engine::{EngineOptions, EngineRequest, InputShape, Tf32};
use crate::target::Target;
use engine_runtime::EngineRecord;

/// The kind of TensorRT that this program builds for.
pub(crate) const FLAVOUR: &str = engine_runtime::Flavour::HERE.name();
/// Name of the list of a plan's layers, beside it.
pub(crate) const LAYERS_FILE: &str = "layers.json";
/// An `engine.json` is some kilobytes; what is larger is none.
const MAX_RECORD_BYTES: u64 = 4 << 20;

/// Whether an equal engine of the store may take the place of a build.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// It may.
    #[default]
    Allowed,
    /// It may not: a builder runs whatever the store holds.
    Forbidden,
}

/// Everything that decides the bytes of a plan, in the order that its digest is taken in.
#[derive(Serialize)]
struct Inputs<'a> {
    format: u32,
    flavour: &'a str,
    version: &'a str,
    onnx_sha256: &'a str,
    weights_sha256: BTreeMap<&'a str, String>,
    profiles: &'a [Vec<InputShape>],
    targets: Vec<Target>,
    tf32: Tf32,
    /// Without the profiles, which are above with the names of the inputs.
    options: EngineOptions,
}

/// SHA-256 over everything that decides the bytes of a plan: graph and weights by digest, exact version of the library,
/// shapes, targets and options. Equal keys mean engines of which one is as good as the other.
#[must_use]
pub(crate) fn key(
    version: &str,
    onnx_sha256: &str,
    weights: &[FileEntry],
    request: &EngineRequest,
) -> String {
    let mut targets = request.targets.clone();
    targets.sort_unstable();
    targets.dedup();
    let inputs = Inputs {
        format: 1,
        flavour: FLAVOUR,
        version,
        onnx_sha256,
        weights_sha256: weights.iter().map(|file| (file.path.as_str(), file.sha256.to_string())).collect(),
        profiles: &request.profiles,
        targets,
        tf32: request.tf32,
        options: EngineOptions { more_profiles: Vec::new(), ..request.options.clone() }.in_order(),
    };
    // Plain structs of strings and numbers: nothing in them can fail to serialise.
    Digest::of(&serde_json::to_vec(&inputs).unwrap_or_default()).to_string()
}

/// An engine of a published version.
#[derive(Clone, Debug)]
pub struct FoundEngine {
    /// The plan, within the version.
    pub plan: PayloadPath,
    /// Its `engine.json`, or why that cannot be read.
    pub record: Result<EngineRecord, String>,
}

/// The engines of a published version, by its manifest.
#[must_use]
pub fn engines_of(version: &Current) -> Vec<FoundEngine> {
    let plans = version.manifest().files.iter().map(|file| &file.path);
    plans
        .filter(|path| path.as_str().starts_with("engines/") && path.file_name() == "model.engine")
        .map(|path| FoundEngine { plan: path.clone(), record: record(version, path) })
        .collect()
}

/// The path of what lies beside a plan.
pub(crate) fn beside(plan: &PayloadPath, name: &str) -> Option<PayloadPath> {
    let (folder, _) = plan.as_str().rsplit_once('/')?;
    format!("{folder}/{name}").parse().ok()
}

fn record(version: &Current, plan: &PayloadPath) -> Result<EngineRecord, String> {
    let path = beside(plan, "engine.json").ok_or_else(|| format!("{plan} has no folder"))?;
    let mut text = Vec::new();
    let file = version.open(&path).map_err(|error| with_causes(&error))?;
    file.take(MAX_RECORD_BYTES)
        .read_to_end(&mut text)
        .map_err(|error| format!("cannot read {path}: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("{path} is no description of an engine: {error}"))
}

/// What looking for an equal engine came to.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// The engine's description and whose it is (`agent/version`), its files being in the staging now.
    pub found: Option<(EngineRecord, String)>,
    /// What would have done and was not sound, a line each.
    pub damaged: Vec<String>,
}

/// Looks for an engine with this key at `plan` in every version of the store, and shares its files into the staging.
///
/// A version that cannot be read is none that can be reused; an engine whose bytes are not those that its description
/// and its manifest name is passed over, and told of.
pub(crate) fn take_over(
    store: &ModelStore,
    staging: &Staging,
    plan: &PayloadPath,
    key: &str,
) -> Result<Search, StoreError> {
    let mut search = Search::default();
    for entry in store.agents()? {
        let model_store::AgentEntry::Agent(agent) = entry else { continue };
        for version in store.versions(&agent).unwrap_or_default() {
            let Ok(Some(current)) = store.get_version(&agent, &version) else { continue };
            let Some(file) = current.manifest().file(plan) else { continue };
            let Ok(record) = record(&current, plan) else { continue };
            if record.key.as_deref() != Some(key) {
                continue;
            }
            let whose = format!("{agent}/{version}");
            if record.plan_sha256 != file.sha256.to_string() {
                search
                    .damaged
                    .push(format!("the equal engine of {whose} is not the one its engine.json names"));
                continue;
            }
            match share(staging, &current, plan) {
                Ok(lost) => {
                    let lost =
                        lost.map(|error| format!("without its list of layers: {}", with_causes(&error)));
                    search.damaged.extend(lost);
                    search.found = Some((record, whose));
                    return Ok(search);
                }
                Err(StoreError::Interrupted) => return Err(StoreError::Interrupted),
                Err(error) => search
                    .damaged
                    .push(format!("the equal engine of {whose} cannot be used: {}", with_causes(&error))),
            }
        }
    }
    Ok(search)
}

/// The plan first: a description of its layers alone is worth nothing, and a plan without it still runs.
fn share(staging: &Staging, from: &Current, plan: &PayloadPath) -> Result<Option<StoreError>, StoreError> {
    staging.share(from, plan)?;
    let layers = beside(plan, LAYERS_FILE).filter(|path| from.manifest().file(path).is_some());
    Ok(layers.and_then(|path| staging.share(from, &path).err()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::PlanTrait;
    use crate::profile::Profile;
    use crate::runtimes::RtxLibraries;

    fn request() -> EngineRequest {
        EngineRequest {
            onnx: "a".into(),
            plan: "b".into(),
            layers: "c".into(),
            libraries: RtxLibraries { core: "d".into(), parser: "e".into() },
            profiles: vec![vec![InputShape::new("ids", onnx_export::DataType::I64, &Profile::DEFAULT)]],
            targets: Target::DEFAULT.to_vec(),
            tf32: Tf32::Forbidden,
            options: EngineOptions::default(),
        }
    }

    fn weights(bytes: &str) -> Vec<FileEntry> {
        let path = "model.safetensors".parse().unwrap_or_else(|error| panic!("{error}"));
        vec![FileEntry { path, size: 1, sha256: Digest::of(bytes.as_bytes()) }]
    }

    #[test]
    fn every_input_changes_the_key_and_nothing_else_does() {
        let base = key("1.7.1.116", "graph", &weights("w"), &request());
        assert_eq!(base.len(), 64);
        let check = |row: &str, same: bool, change: &dyn Fn(&mut EngineRequest)| {
            let mut changed = request();
            change(&mut changed);
            assert_eq!(key("1.7.1.116", "graph", &weights("w"), &changed) == base, same, "{row}");
        };
        check("places", true, &|r| r.plan = "elsewhere".into());
        check("order of targets", true, &|r| r.targets.reverse());
        check("targets", false, &|r| r.targets.truncate(1));
        check("profile", false, &|r| r.profiles[0][0].dims[0].max += 1);
        check("one more profile", false, &|r| r.profiles.push(r.profiles[0].clone()));
        check("tf32", false, &|r| r.tf32 = Tf32::Allowed);
        check("level", false, &|r| r.options.level = Some(3));
        check("workspace", false, &|r| r.options.workspace_bytes = Some(1 << 30));
        check("trait", false, &|r| r.options.traits.push(PlanTrait::WeightStreaming));
        assert_ne!(key("1.7.1.117", "graph", &weights("w"), &request()), base, "version");
        assert_ne!(key("1.7.1.116", "other", &weights("w"), &request()), base, "graph");
        assert_ne!(key("1.7.1.116", "graph", &weights("v"), &request()), base, "weights");
    }
}

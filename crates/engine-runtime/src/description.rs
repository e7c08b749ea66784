//! `engine.json`: what a plan is, what built it, and what a host must be to run it.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use onnx_export::{DataType, TensorDescription};
use serde::{Deserialize, Serialize};

use crate::RuntimeError;
use crate::profile::{Profile, Span};
use crate::target::Target;

/// Name of a plan's description, beside it.
pub const DESCRIPTION_FILE: &str = "engine.json";
/// Name of the plan.
pub const PLAN_FILE: &str = "model.engine";
/// An `engine.json` is some kilobytes; what is larger is none.
const MAX_BYTES: u64 = 4 << 20;

/// The span of each dimension of an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputShape {
    /// Name of the input.
    pub name: String,
    /// Its element type.
    pub dtype: DataType,
    /// Its dimensions, outermost first.
    pub dims: Vec<Span>,
}

impl InputShape {
    /// An input of a graph, whose dynamic sizes are those of the profile.
    #[must_use]
    pub fn of(input: &TensorDescription, profile: &Profile) -> Self {
        let dim = |size: &String| match size.as_str() {
            "batch" => profile.batch,
            "past_sequence" => profile.past.unwrap_or(Span { min: 0, opt: 0, max: 0 }),
            "total_sequence" => profile.total(),
            // A number, or the one dynamic size that is left.
            other => other.parse().map_or(profile.sequence, |size| Span { min: size, opt: size, max: size }),
        };
        Self { name: input.name.clone(), dtype: input.dtype, dims: input.shape.iter().map(dim).collect() }
    }

    /// The same input in another profile of the engine. What is neither a row for each text nor a cache has one shape.
    #[must_use]
    pub fn in_profile(&self, profile: &Profile) -> Self {
        let dims = match (profile.past, self.dims.as_slice()) {
            (Some(past), [_, heads, _, size]) if self.is_cache() => vec![profile.batch, *heads, past, *size],
            // The mask covers what is in the cache as well.
            (Some(_), [_, _]) if self.name == "attention_mask" => vec![profile.batch, profile.total()],
            (_, [_, _]) => vec![profile.batch, profile.sequence],
            (_, same) => same.to_vec(),
        };
        Self { dims, ..self.clone() }
    }

    /// Whether keys or values of earlier tokens go in here: `[batch, heads, tokens, size]`.
    #[must_use]
    pub fn is_cache(&self) -> bool {
        self.name.starts_with("past_key_values.")
    }

    /// An input of shape [batch, sequence].
    #[must_use]
    pub fn new(name: impl Into<String>, dtype: DataType, profile: &Profile) -> Self {
        Self { name: name.into(), dtype, dims: vec![profile.batch, profile.sequence] }
    }
}

/// What is known of a plan once it is built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineFacts {
    /// Exact version of the library that built it.
    pub version: String,
    /// Size of the plan in bytes.
    pub plan_bytes: u64,
    /// Seconds to read the graph and its weights.
    pub parse_seconds: f64,
    /// Seconds to build.
    pub build_seconds: f64,
    /// Peak resident memory of the building process, in bytes: pages of mapped files included, which the kernel takes back
    /// when it needs them.
    pub peak_memory_bytes: u64,
    /// The peak of what is no file's, in bytes: what a host must have. It is sampled; 0 where nobody did.
    #[serde(default)]
    pub peak_private_bytes: u64,
    /// Warnings that TensorRT logged.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How an engine is built. The default leaves everything to TensorRT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineOptions {
    /// Profiles after the first one: other sizes, each with kernels of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_profiles: Vec<Profile>,
    /// Optimisation level, 0 to 5; TensorRT's own (3) unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<u8>,
    /// The most memory, in bytes, that kernels may ask for to work in; everything the GPU has unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace_bytes: Option<u64>,
    /// Properties that the plan shall have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traits: Vec<PlanTrait>,
}

/// A property that a plan may be asked to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanTrait {
    /// Weights stay in host memory, and go to the GPU as they are needed.
    WeightStreaming,
    /// Later versions of TensorRT can load it.
    VersionCompatible,
    /// GPUs of other generations can run it.
    HardwareCompatible,
    /// It holds no weights, and gets them when it is loaded.
    Stripped,
}

impl EngineOptions {
    /// The same options, whichever way round they were given.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.traits.sort_unstable();
        self.traits.dedup();
        self
    }
}

/// An `engine.json`, as far as a reader needs it: files of earlier releases lack what is optional here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineRecord {
    /// `tensorrt-rtx`, or `tensorrt`.
    pub flavour: String,
    /// What built it, and how that went.
    #[serde(flatten)]
    pub facts: EngineFacts,
    /// SHA-256 of the plan.
    pub plan_sha256: String,
    /// The GPU generations it runs on, by compute capability.
    pub targets: Vec<Target>,
    /// What its matrix products compute in.
    pub precision: String,
    /// Inputs with the span of each dimension, of the first profile.
    pub inputs: Vec<InputShape>,
    /// Outputs: name, element type, shape.
    pub outputs: Vec<TensorDescription>,
    /// SHA-256 of the graph it was built from.
    pub onnx_sha256: String,
    /// SHA-256 of each weight file it was built from, by its path within the version.
    #[serde(default)]
    pub weights_sha256: std::collections::BTreeMap<String, String>,
    /// SHA-256 over everything it was built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// How it was built, where that was not left to TensorRT.
    #[serde(default)]
    pub options: EngineOptions,
    /// The version whose engine was taken over instead of a build: `agent/version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused_from: Option<String>,
}

impl EngineRecord {
    /// Reads the `engine.json` of an engine's folder.
    pub fn of_folder(folder: &Path) -> Result<Self, RuntimeError> {
        let path = folder.join(DESCRIPTION_FILE);
        let unreadable = |source: std::io::Error| match source.kind() {
            ErrorKind::NotFound => RuntimeError::NoEngine { folder: folder.to_owned() },
            _ => RuntimeError::io("read", &path)(source),
        };
        let mut text = Vec::new();
        let file = File::open(&path).map_err(unreadable)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(RuntimeError::Description { path, reason: format!("larger than {MAX_BYTES} bytes") });
        }
        let record: Self = serde_json::from_slice(&text)
            .map_err(|error| RuntimeError::Description { path: path.clone(), reason: error.to_string() })?;
        if record.inputs.is_empty() || record.outputs.is_empty() {
            let reason = "it names no inputs or no outputs".to_owned();
            return Err(RuntimeError::Description { path, reason });
        }
        Ok(record)
    }

    /// Whether the plan has a property.
    #[must_use]
    pub fn is(&self, property: PlanTrait) -> bool {
        self.options.traits.contains(&property)
    }

    /// The inputs of each profile, in the plan's order.
    #[must_use]
    pub fn profiles(&self) -> Vec<Vec<InputShape>> {
        let more = self.options.more_profiles.iter().map(|profile| {
            let inputs = self.inputs.iter();
            inputs.map(|input| input.in_profile(profile)).collect()
        });
        std::iter::once(self.inputs.clone()).chain(more).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_have_the_sizes_of_each_profile() {
        let fixed = |size: u32| Span { min: size, opt: size, max: size };
        let first = Profile { past: Some(Span { min: 0, opt: 8, max: 16 }), ..Profile::DECODER };
        let other = Profile { batch: fixed(2), sequence: fixed(1), past: Some(fixed(5)) };
        let check = |name: &str, sizes: &[&str], expected: &[Span]| {
            let shape = sizes.iter().map(|size| (*size).to_owned()).collect();
            let input = TensorDescription { name: name.to_owned(), dtype: DataType::I64, shape };
            let found = InputShape::of(&input, &first).in_profile(&other);
            assert_eq!(found.dims, expected, "{name}");
            assert_eq!(found, InputShape::of(&input, &other), "{name}");
        };
        check("input_ids", &["batch", "sequence"], &[fixed(2), fixed(1)]);
        check("attention_mask", &["batch", "total_sequence"], &[fixed(2), fixed(6)]);
        let cache = ["batch", "4", "past_sequence", "64"];
        check("past_key_values.0.key", &cache, &[fixed(2), fixed(4), fixed(5), fixed(64)]);
    }
}

//! How an engine is built beyond what its graph says, and what TensorRT-RTX would refuse, said before the build.

use serde::{Deserialize, Serialize};

use super::EngineError;
use crate::profile::Profile;

/// What TensorRT-RTX says to a plan that other versions can load.
const NO_LEAN_RUNTIME: &str =
    "Unable to load library: libnvinfer_lean.so.1: cannot open shared object file: No such file or directory";
/// What TensorRT-RTX says to a hardware compatibility level.
const NO_HARDWARE_LEVEL: &str = "setHardwareCompatibilityLevel() is unsupported in TensorRT-RTX.";
/// What TensorRT-RTX says to a refittable or stripped plan on a host without a GPU.
const NO_REFIT: &str = "MyelinCheckException: graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed.";

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
    /// An error for what TensorRT-RTX 1.7 is known to refuse, in its own words, so that nobody waits for a build that
    /// cannot come to anything (docs/decisions/020-what-rtx-builds-without-a-gpu.md).
    pub fn check(&self) -> Result<(), EngineError> {
        for property in &self.traits {
            let (option, words, next) = match property {
                PlanTrait::WeightStreaming => continue,
                PlanTrait::VersionCompatible => (
                    "--version-compatible",
                    NO_LEAN_RUNTIME,
                    "leave it out, and build anew for each version of TensorRT-RTX",
                ),
                PlanTrait::HardwareCompatible => (
                    "--hardware-compatible",
                    NO_HARDWARE_LEVEL,
                    "leave it out, and name the GPU generations with --target",
                ),
                PlanTrait::Stripped => (
                    "--strip",
                    NO_REFIT,
                    "leave it out: without a GPU, TensorRT-RTX builds no plan that takes its weights later",
                ),
            };
            return Err(EngineError::Unsupported { option, words, next });
        }
        Ok(())
    }

    /// The same options, whichever way round they were given.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.traits.sort_unstable();
        self.traits.dedup();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_flavour_refuses_is_refused_in_its_words() {
        let check = |traits: &[PlanTrait], expected: Option<&str>| {
            let options = EngineOptions { traits: traits.to_vec(), ..EngineOptions::default() };
            let said = options.check().err().map(|error| error.to_string());
            match (expected, &said) {
                (None, None) => {}
                (Some(part), Some(text)) => assert!(text.contains(part), "{traits:?}: {text}"),
                _ => panic!("{traits:?}: {said:?}"),
            }
        };
        check(&[], None);
        check(&[PlanTrait::WeightStreaming], None);
        check(&[PlanTrait::VersionCompatible], Some("libnvinfer_lean.so.1"));
        check(
            &[PlanTrait::WeightStreaming, PlanTrait::HardwareCompatible],
            Some("unsupported in TensorRT-RTX"),
        );
        check(&[PlanTrait::Stripped], Some("--strip"));
    }
}

//! How an engine is built beyond what its graph says, and what TensorRT-RTX would refuse, said before the build.

use engine_runtime::Flavour;

use super::{EngineError, EngineOptions, PlanTrait};

/// What TensorRT-RTX says to a plan that other versions can load.
const NO_LEAN_RUNTIME: &str =
    "Unable to load library: libnvinfer_lean.so.1: cannot open shared object file: No such file or directory";
/// What TensorRT-RTX says to a hardware compatibility level.
const NO_HARDWARE_LEVEL: &str = "setHardwareCompatibilityLevel() is unsupported in TensorRT-RTX.";
/// What TensorRT-RTX says to a refittable or stripped plan on a host without a GPU.
const NO_REFIT: &str = "MyelinCheckException: graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed.";

/// An error for what TensorRT-RTX 1.7 is known to refuse, in its own words, so that nobody waits for a build that
/// cannot come to anything (docs/decisions/020-what-rtx-builds-without-a-gpu.md).
pub(crate) fn check(options: &EngineOptions, has_gpu: bool) -> Result<(), EngineError> {
    if Flavour::HERE == Flavour::Enterprise {
        // It has all of them.
        return Ok(());
    }
    for property in &options.traits {
        let (option, words, next) = match property {
            PlanTrait::WeightStreaming => continue,
            // With a GPU it can be tried, and TensorRT says what it thinks of it.
            PlanTrait::Stripped if has_gpu => continue,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "tensorrt-enterprise"))]
    #[test]
    fn what_the_flavour_refuses_is_refused_in_its_words() {
        let row = |traits: &[PlanTrait], expected: Option<&str>| {
            let options = EngineOptions { traits: traits.to_vec(), ..EngineOptions::default() };
            let said = check(&options, false).err().map(|error| error.to_string());
            match (expected, &said) {
                (None, None) => {}
                (Some(part), Some(text)) => assert!(text.contains(part), "{traits:?}: {text}"),
                _ => panic!("{traits:?}: {said:?}"),
            }
        };
        row(&[], None);
        row(&[PlanTrait::WeightStreaming], None);
        row(&[PlanTrait::VersionCompatible], Some("libnvinfer_lean.so.1"));
        row(
            &[PlanTrait::WeightStreaming, PlanTrait::HardwareCompatible],
            Some("unsupported in TensorRT-RTX"),
        );
        row(&[PlanTrait::Stripped], Some("--strip"));
        let stripped = EngineOptions { traits: vec![PlanTrait::Stripped], ..EngineOptions::default() };
        assert!(check(&stripped, true).is_ok(), "with a GPU it can be tried");
    }
}

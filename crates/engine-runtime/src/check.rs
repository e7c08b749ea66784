//! A host against a plan, before the plan is loaded.

use std::path::{Path, PathBuf};

use crate::description::EngineRecord;
use crate::library::Flavour;
use crate::native::{self, Gpu};
use crate::{RuntimeError, target};

/// What will run a plan: the library, and the GPU.
#[derive(Clone, Debug)]
pub struct Fit {
    /// TensorRT's library.
    pub library: PathBuf,
    /// Its exact version.
    pub version: String,
    /// The GPU.
    pub gpu: Gpu,
}

/// What of this host would run the plan, or the first thing in the way: kind of TensorRT, library, version, driver, GPU
/// generation, memory. Nothing of the plan is read.
///
/// `library` is TensorRT's; by default it is looked for. `device` is the GPU's number.
pub fn fit(record: &EngineRecord, library: Option<&Path>, device: usize) -> Result<Fit, RuntimeError> {
    Flavour::HERE.check(&record.flavour)?;
    let library = library.map_or_else(|| Flavour::HERE.find(), |path| Ok(path.to_owned()))?;
    let version = native::tensorrt_version(&library, None).map_err(|error| RuntimeError::Library {
        path: library.clone(),
        runtime: Flavour::HERE.title(),
        reason: error.to_string(),
    })?;
    same_version(record, &library, &version)?;
    let gpus = native::gpus().map_err(|reason| RuntimeError::NoGpu { reason })?;
    let gpu = gpu_for(record, &gpus, device)?.clone();
    Ok(Fit { library, version, gpu })
}

fn same_version(record: &EngineRecord, library: &Path, here: &str) -> Result<(), RuntimeError> {
    if record.facts.version == here {
        return Ok(());
    }
    Err(RuntimeError::Version {
        runtime: Flavour::HERE.title(),
        built: record.facts.version.clone(),
        here: here.to_owned(),
        path: library.to_owned(),
    })
}

/// The GPU with this number, if the plan runs on it.
fn gpu_for<'a>(record: &EngineRecord, gpus: &'a [Gpu], device: usize) -> Result<&'a Gpu, RuntimeError> {
    let gpu = gpus.get(device).ok_or(RuntimeError::NoDevice { device, count: gpus.len() })?;
    // An empty list is a plan for the GPU that it was built on, and TensorRT itself says whether that is this one.
    if !record.targets.is_empty() && record.targets.iter().all(|target| target.sm() != gpu.sm) {
        let targets: Vec<String> = record.targets.iter().map(ToString::to_string).collect();
        let next = match gpu.sm.to_string().parse::<target::Target>() {
            Ok(target) => format!("build-engine --agent AGENT --target {target} builds one"),
            Err(why) => format!(
                "{why}; without an engine the version serves on this GPU through model-loader's feature `cuda`, and on the CPU"
            ),
        };
        let (gpu, sm) = (gpu.to_string(), gpu.sm);
        return Err(RuntimeError::Generation { gpu, sm, targets: targets.join(", "), next });
    }
    if gpu.memory_bytes <= record.facts.plan_bytes {
        return Err(RuntimeError::Memory {
            gpu: gpu.to_string(),
            has_bytes: gpu.memory_bytes,
            needs_bytes: record.facts.plan_bytes,
        });
    }
    Ok(gpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(changes: &serde_json::Value) -> EngineRecord {
        let mut record = serde_json::json!({
            "flavour": Flavour::HERE.name(), "version": "1.7.1.116", "plan_bytes": 1000, "parse_seconds": 0.1,
            "build_seconds": 1.0, "peak_memory_bytes": 5, "plan_sha256": "0", "targets": [80, 89],
            "precision": "fp16", "inputs": [], "outputs": [], "onnx_sha256": "0"
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            record[key] = value.clone();
        }
        serde_json::from_value(record).unwrap_or_else(|error| panic!("{error}"))
    }

    fn gpu(index: u32, sm: u16, memory_bytes: u64) -> Gpu {
        Gpu { index, name: "Test GPU".to_owned(), sm, memory_bytes, driver_cuda: 13_000 }
    }

    #[test]
    fn a_gpu_that_does_not_fit_is_told_why() {
        let check = |row: &str, gpus: &[Gpu], device: usize, targets: &[u16], parts: &[&str]| {
            let record = record(&serde_json::json!({ "targets": targets }));
            match gpu_for(&record, gpus, device) {
                Ok(found) => assert!(parts.is_empty() && found.index as usize == device, "{row}"),
                Err(error) => {
                    assert!(!parts.is_empty() && error.is_the_host(), "{row}: {error}");
                    for part in parts {
                        assert!(error.to_string().contains(part), "{row}: {part} is not in {error}");
                    }
                }
            }
        };
        let ada = gpu(0, 89, 1 << 30);
        check("it fits", std::slice::from_ref(&ada), 0, &[80, 89], &[]);
        check("built on the GPU it is for", std::slice::from_ref(&ada), 0, &[], &[]);
        check("the second", &[gpu(0, 75, 1 << 30), gpu(1, 80, 1 << 30)], 1, &[80], &[]);
        check("no such number", std::slice::from_ref(&ada), 3, &[89], &["no GPU 3", "has 1"]);
        check("another generation", &[ada], 0, &[80, 120], &["SM 89", "SM 80, 120", "--target 89"]);
        check("no generation it builds for", &[gpu(0, 90, 1 << 30)], 0, &[80], &["SM 90", "enterprise"]);
        check("little memory", &[gpu(0, 89, 10)], 0, &[89], &["memory"]);
    }

    #[test]
    fn another_version_or_kind_is_refused() {
        let library = Path::new("/opt/libtensorrt_rtx.so.1");
        assert!(same_version(&record(&serde_json::json!({})), library, "1.7.1.116").is_ok());
        let old = record(&serde_json::json!({ "version": "1.6.0.5" }));
        let Err(error) = same_version(&old, library, "1.7.1.116") else { panic!("it is another version") };
        for part in ["1.6.0.5 built", "is 1.7.1.116", "--rebuild", "/opt/libtensorrt_rtx.so.1"] {
            assert!(error.to_string().contains(part), "{part} is not in {error}");
        }
        let other = record(&serde_json::json!({ "flavour": "openvino" }));
        let Err(error) = fit(&other, Some(library), 0) else { panic!("it is another kind") };
        assert!(error.to_string().contains("for openvino"), "{error}");
    }

    #[test]
    fn a_library_that_is_none_is_refused() {
        let root = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let library = root.path().join("libtensorrt_rtx.so.1");
        std::fs::write(&library, "no library at all").unwrap_or_else(|error| panic!("{error}"));
        let Err(error) = fit(&record(&serde_json::json!({})), Some(&library), 0) else {
            panic!("no library")
        };
        assert!(matches!(error, RuntimeError::Library { .. }) && error.is_the_host(), "{error:?}");
    }
}

//! Models, a store and ONNX Runtime to test with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use model_store::{Activation, ModelStore};
use onnx_export::Precision;
use tempfile::TempDir;
use toy_store::{Kind, ToyVersion};
use trt_compiler::engine::{BuildOptions, EngineOptions};
use trt_compiler::{EngineWish, Job, ModelSource, Provenance, Reuse, Runtimes, Target, texts};

/// The native libraries, where the checkout has them; `None` (and why, on the standard error) where it has not.
pub(crate) fn runtimes() -> Option<Runtimes> {
    let runtimes = Runtimes::from_env();
    match runtimes.onnxruntime() {
        Ok(_) => Some(runtimes),
        Err(missing) => {
            eprintln!("skipped: {missing}");
            None
        }
    }
}

pub(crate) fn toy(kind: Kind) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    toy_store::folder(kind, toy_store::DEFAULT_SEED, ToyVersion::V1).write_to(folder.path()).unwrap();
    folder
}

pub(crate) fn roberta() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    toy_store::roberta_classifier().write_to(folder.path()).unwrap();
    folder
}

/// all-MiniLM-L6-v2, where `make models` has put it.
pub(crate) fn minilm() -> Option<PathBuf> {
    let folder = std::env::var_os("MODEL_TEST_MINILM").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.models/all-MiniLM-L6-v2"),
        PathBuf::from,
    );
    if folder.join("model.safetensors").is_file() {
        return Some(folder);
    }
    eprintln!("skipped: {} holds no model; `make models` brings it", folder.display());
    None
}

/// A job without an engine from `folder` into `store`.
pub(crate) fn job(store: &Path, folder: &Path, precision: Precision, runtimes: &Runtimes) -> Job {
    Job {
        store: ModelStore::create(store).unwrap(),
        agent: "tested".parse().unwrap(),
        version: format!("v1-{precision}").parse().unwrap(),
        source: ModelSource::Folder {
            path: folder.to_owned(),
            provenance: Provenance::Folder { path: folder.display().to_string() },
        },
        precision,
        keep_fp32: Vec::new(),
        weights: trt_compiler::WeightForm::Stored,
        overflow: trt_compiler::Overflow::default(),
        kv_cache: trt_compiler::KvCache::default(),
        calibration: None,
        profile: None,
        targets: Target::DEFAULT.to_vec(),
        engine: EngineWish::Skip,
        reference: None,
        texts: texts::built_in(),
        thresholds: trt_compiler::ThresholdWishes::default(),
        explain: false,
        keep: None,
        activation: Activation::Activate,
        runtimes: runtimes.clone(),
        host: trt_compiler::HostUse::Alone,
        build: BuildOptions { program: "unused".into(), timeout: Duration::from_mins(1) },
        options: EngineOptions::default(),
        reuse: Reuse::Allowed,
    }
}

/// Fixtures of the loader, in one folder: a tiny random model of a family.
pub(crate) fn fixture(parts: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for part in parts {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model-loader/tests/data").join(part);
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_file() && !matches!(name, "outputs.safetensors") {
                std::fs::copy(&path, folder.path().join(name)).unwrap();
            }
        }
    }
    folder
}

//! Model folders to test with.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use toy_store::{Kind, ToyVersion};

/// A copy of one of the toy store's models, which the test may break.
pub(crate) fn toy(kind: Kind) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    toy_store::folder(kind, toy_store::DEFAULT_SEED, ToyVersion::V1).write_to(folder.path()).unwrap();
    folder
}

/// The toy RoBERTa classifier.
pub(crate) fn roberta() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    toy_store::roberta_classifier().write_to(folder.path()).unwrap();
    folder
}

/// Changes one value of `config.json`.
pub(crate) fn set_config(folder: &Path, key: &str, value: serde_json::Value) {
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

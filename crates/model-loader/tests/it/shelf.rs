//! A store of its own for a test, with small models that are easily told apart.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model_loader::ResolveOptions;
use model_store::{Activation, AgentName, FinalizeOptions, ModelStore, MoveOptions};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use crate::support::{copy_of, edit_json};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) struct Shelf {
    dir: TempDir,
    pub(crate) store: ModelStore,
}

impl Shelf {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ModelStore::create(dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    /// A path in a directory of the test's own, outside the store.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Publishes a folder with everything below it and makes it current.
    pub(crate) fn publish(&self, agent: &str, version: &str, folder: &Path) -> PathBuf {
        self.put(agent, version, folder, Activation::Activate)
    }

    /// Publishes a folder; `current` stays where it is.
    pub(crate) fn shelve(&self, agent: &str, version: &str, folder: &Path) -> PathBuf {
        self.put(agent, version, folder, Activation::Keep)
    }

    fn put(&self, agent: &str, version: &str, folder: &Path, activation: Activation) -> PathBuf {
        let staging = self.store.stage_new(&name(agent), &version.parse().unwrap()).unwrap();
        staging.import_tree(folder, model_store::ImportOptions::default()).unwrap();
        staging.finalize(FinalizeOptions { activation, ..FinalizeOptions::default() }).unwrap().path
    }

    pub(crate) fn activate(&self, agent: &str, version: &str) {
        self.store.activate(&name(agent), &version.parse().unwrap(), &MoveOptions::default()).unwrap();
    }

    /// Options that look at nothing outside this store.
    pub(crate) fn options(&self) -> ResolveOptions {
        ResolveOptions {
            store: Some(self.store.root().to_owned()),
            hub_cache: Some(self.beside("no-hub-cache")),
            ..ResolveOptions::default()
        }
    }
}

pub(crate) fn name(agent: &str) -> AgentName {
    agent.parse().unwrap()
}

/// A sentence embedder of 32 dimensions, by its word vectors: those of the fixture times `scale`.
pub(crate) fn embedder(scale: f32) -> TempDir {
    let folder = copy_of("sentence");
    for name in ["outputs.safetensors", "poolings.json", "texts.json"] {
        fs::remove_file(folder.path().join(name)).unwrap();
    }
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    set_pooling(folder.path(), &["mean"]);
    change_weights(folder.path(), |name, value| {
        if name == "embeddings.word_embeddings.weight" { value * scale } else { value }
    });
    folder
}

/// An [`embedder`] of 80,000 words, most of which no text has: 10 MB of weights.
pub(crate) fn large_embedder(scale: f32) -> TempDir {
    const WORDS: usize = 80_000;
    let folder = embedder(scale);
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let words = tensors.tensor("embeddings.word_embeddings.weight").unwrap();
    let larger = words.data().iter().copied().cycle().take(WORDS * words.shape()[1] * 4).collect::<Vec<u8>>();
    let larger = TensorView::new(words.dtype(), vec![WORDS, words.shape()[1]], &larger).unwrap();
    let all = tensors.iter().map(|(name, view)| {
        (name.to_owned(), if name == "embeddings.word_embeddings.weight" { larger.clone() } else { view })
    });
    let all = safetensors::serialize(all.collect::<Vec<_>>(), None).unwrap();
    fs::write(&path, all).unwrap();
    edit_json(&folder.path().join("config.json"), &serde_json::json!({ "vocab_size": WORDS }));
    folder
}

/// Several modes are concatenated, which makes the vectors longer.
pub(crate) fn set_pooling(folder: &Path, modes: &[&str]) {
    let config = serde_json::json!({ "embedding_dimension": 32, "pooling_mode": modes });
    fs::write(folder.join("1_Pooling/config.json"), config.to_string()).unwrap();
}

/// A classifier whose labels have other names, or that of the fixture.
pub(crate) fn classifier(labels: Option<&[&str]>) -> TempDir {
    let folder = copy_of("bert");
    if let Some(labels) = labels {
        let named: serde_json::Map<_, _> =
            labels.iter().enumerate().map(|(i, label)| (i.to_string(), (*label).into())).collect();
        edit_json(
            &folder.path().join("config.json"),
            &serde_json::json!({ "id2label": named, "label2id": null }),
        );
    }
    folder
}

/// Rewrites every number of a folder's weights; they are float32.
pub(crate) fn change_weights(folder: &Path, change: impl Fn(&str, f32) -> f32) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let data = header + 8;
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        for number in bytes[data + start..data + end].as_chunks_mut::<4>().0 {
            *number = change(&name, f32::from_le_bytes(*number)).to_le_bytes();
        }
    }
    fs::write(path, bytes).unwrap();
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

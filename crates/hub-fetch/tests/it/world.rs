//! Models, a server that has them, and a cache that is empty.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hub_fetch::{FetchError, Hub, Request, Retry, Snapshot};
use tempfile::TempDir;

use crate::server;

/// Large enough to come in many pieces.
pub(crate) const WEIGHT_BYTES: usize = 3_000_000;
pub(crate) const READER: &str = "hf_reader";
pub(crate) const STRANGER: &str = "hf_stranger";

pub(crate) struct World {
    scratch: TempDir,
    pub(crate) server: server::Hub,
}

impl World {
    pub(crate) fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let models = scratch.path().join("models");
        let put = |path: &str, bytes: &[u8]| {
            let path = models.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        for model in ["acme/tiny", "acme/tiny@v2", "acme/secret", "acme/gated"] {
            put(
                &format!("{model}/config.json"),
                format!(r#"{{"model_type": "bert", "from": "{model}"}}"#).as_bytes(),
            );
            put(&format!("{model}/model.safetensors"), &noise(WEIGHT_BYTES));
        }
        put("acme/tiny/tokenizer.json", &noise(300_000));
        put("acme/tiny/1_Pooling/config.json", b"{}");
        put("acme/tiny/empty.json", b"");
        put("acme/tiny/README.md", b"# tiny");
        put("acme/tiny/pytorch_model.bin", b"pickle");
        put("acme/tiny/modeling_tiny.py", b"import os");
        put("acme/tiny/onnx/model.onnx", b"graph");
        put("acme/pickled/config.json", b"{}");
        put("acme/pickled/pytorch_model.bin", b"pickle");
        put("acme/empty/config.json", b"{}");
        let map = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        put("acme/sharded/model.safetensors.index.json", map.as_bytes());
        put("acme/sharded/config.json", b"{}");
        put("acme/sharded/model-00001-of-00002.safetensors", &noise(1000));
        put("acme/sharded/model-00002-of-00002.safetensors", &noise(2000));
        let rules = scratch.path().join("rules.json");
        let text = format!(
            r#"{{"tokens": {{"{READER}": ["acme/secret", "acme/gated"], "{STRANGER}": []}}, "private": ["acme/secret"],
                "gated": ["acme/gated"], "renamed": {{"acme/old": "acme/tiny"}}}}"#
        );
        fs::write(&rules, text).unwrap();
        let server = server::Hub::start(&models, &rules);
        Self { scratch, server }
    }

    pub(crate) fn models(&self) -> PathBuf {
        self.scratch.path().join("models")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.scratch.path().join("hub")
    }

    /// What a process is given to work with this server and cache.
    pub(crate) fn variables(&self) -> BTreeMap<String, String> {
        let home = self.scratch.path().join("home").display().to_string();
        [
            ("HF_ENDPOINT", self.server.url.clone()),
            ("HF_HUB_CACHE", self.cache().display().to_string()),
            ("HF_HOME", home.clone()),
            ("HOME", home),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// A client that is quick to try again.
    pub(crate) fn hub(&self, more: &[(&str, &str)]) -> Hub {
        let mut variables = self.variables();
        variables.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let hub = Hub::from_variables(|name| variables.get(name).map(Into::into)).unwrap();
        hub.with_retry(Retry {
            times: 3,
            first_wait: Duration::from_millis(10),
            longest_wait: Duration::from_millis(40),
            patience: Duration::from_secs(5),
        })
    }

    pub(crate) fn fetch(&self, request: &Request) -> Result<Snapshot, FetchError> {
        fetch(&self.hub(&[]), request)
    }

    /// The folder of a model in the cache.
    pub(crate) fn repository(&self, model_id: &str) -> PathBuf {
        self.cache().join(format!("models--{}", model_id.replace('/', "--")))
    }

    /// Whether anything in the cache has a name that says it is whole.
    pub(crate) fn has_final_names(&self, model_id: &str, blob_of: &str) -> bool {
        let repository = self.repository(model_id);
        repository.join("refs").exists()
            || repository.join("snapshots").read_dir().is_ok_and(|mut entries| entries.next().is_some())
            || blobs(&repository)
                .iter()
                .any(|blob| !blob.ends_with(".incomplete") && blob.starts_with(blob_of))
    }
}

pub(crate) fn fetch(hub: &Hub, request: &Request) -> Result<Snapshot, FetchError> {
    hub.fetch(request, &(), &AtomicBool::new(false))
}

pub(crate) fn tiny() -> Request {
    Request::new("acme/tiny")
}

/// The names of a repository's blobs.
pub(crate) fn blobs(repository: &Path) -> Vec<String> {
    let entries = repository.join("blobs").read_dir().into_iter().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

/// Checks that every file of a snapshot is what the server has.
pub(crate) fn assert_same(world: &World, snapshot: &Snapshot, model: &str) {
    assert!(!snapshot.files.is_empty());
    for file in &snapshot.files {
        let here = fs::read(snapshot.path.join(&file.path)).unwrap();
        let there = fs::read(world.models().join(model).join(&file.path)).unwrap();
        assert!(here == there, "{} differs", file.path);
        assert_eq!(file.size_bytes, there.len() as u64, "{}", file.path);
    }
}

/// Bytes that repeat nowhere, the same every time.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ count as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(count).collect()
}

//! Hosts, each with a store, and a remote between them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use model_store::{AgentName, FinalizeOptions, LinkEntry, ModelStore, Published, VersionName, exit};
use store_sync::{
    Address, Initialised, Options, PullOptions, Pulled, PushOptions, Pushed, Remote, SyncError,
};

/// A scratch directory with a folder that is the remote.
pub(crate) struct World {
    dir: tempfile::TempDir,
}

/// Small parts, so that a small file has many, and short waits.
pub(crate) fn options() -> Options {
    Options {
        range_bytes: 64 * 1024,
        part_bytes: 64 * 1024,
        stall: std::time::Duration::from_secs(2),
        retry: std::time::Duration::from_secs(3),
        settle: std::time::Duration::from_millis(200),
        lease: std::time::Duration::from_secs(20),
        ..Options::default()
    }
}

impl World {
    /// Nothing yet but the directory.
    pub(crate) fn bare() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// With a folder that was initialised.
    pub(crate) fn new() -> Self {
        let world = Self::bare();
        world.init();
        world
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The folder that is the remote.
    pub(crate) fn bucket(&self) -> PathBuf {
        self.path().join("bucket")
    }

    pub(crate) fn address(&self) -> Address {
        Address::parse(self.bucket().to_str().unwrap()).unwrap()
    }

    pub(crate) fn init(&self) -> Initialised {
        Remote::init(self.address(), options(), "test").unwrap().1
    }

    pub(crate) fn remote(&self) -> Remote {
        Remote::open(self.address(), options()).unwrap()
    }

    /// The store of a host.
    pub(crate) fn host(&self, name: &str) -> ModelStore {
        ModelStore::create(self.path().join(name)).unwrap()
    }

    /// Every object of the remote with its bytes, leases left out.
    pub(crate) fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let mut objects = BTreeMap::new();
        collect(&self.bucket(), &self.bucket(), &mut objects);
        objects.retain(|path, _| !path.starts_with("leases/") && !path.ends_with("/lease.json"));
        objects
    }

    pub(crate) fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let mut objects = self.objects();
        objects.retain(|path, _| path.starts_with("blobs/"));
        objects
    }

    /// Puts an object there as somebody would who knows of no protocol.
    pub(crate) fn tamper(&self, path: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let path = self.bucket().join(path);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, change(bytes)).unwrap();
    }
}

fn collect(top: &Path, dir: &Path, objects: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(top, &path, objects);
        } else {
            let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            objects.insert(name, fs::read(&path).unwrap());
        }
    }
}

/// Bytes that no two seeds share a part of.
pub(crate) fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

pub(crate) fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

pub(crate) fn version(name: &str) -> VersionName {
    name.parse().unwrap()
}

/// Publishes files and makes them current.
pub(crate) fn publish(store: &ModelStore, name: &str, files: &[(&str, &[u8])]) -> Published {
    let (of, name) = name.split_once('/').unwrap();
    let staging = store.stage_new(&agent(of), &version(name)).unwrap();
    for (path, bytes) in files {
        staging.write(&path.parse().unwrap(), bytes).unwrap();
    }
    let metadata = serde_json::json!({ "of": name }).as_object().unwrap().clone();
    staging.finalize(FinalizeOptions { metadata, ..FinalizeOptions::default() }).unwrap()
}

/// A version with something of everything: subdirectories, an empty file, one content twice, a link, and files
/// of several parts. The `seed` is of its biggest file.
pub(crate) fn publish_lively(store: &ModelStore, name: &str, seed: u64) {
    let (of, name) = name.split_once('/').unwrap();
    let staging = store.stage_new(&agent(of), &version(name)).unwrap();
    let write = |path: &str, bytes: &[u8]| staging.write(&path.parse().unwrap(), bytes).unwrap();
    write("config.json", b"{\"hidden\": 4}");
    write("model.safetensors", &bytes(seed, 700_000));
    write("tokenizer/vocab.txt", &bytes(7, 200_000));
    write("tokenizer/copy.txt", &bytes(7, 200_000));
    write("empty", b"");
    let link = LinkEntry { path: "tokenizer.txt".parse().unwrap(), target: "tokenizer/vocab.txt".to_owned() };
    staging.link(&link).unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
}

pub(crate) fn push(remote: &Remote, store: &ModelStore, name: &str) -> Result<Pushed, SyncError> {
    push_with(remote, store, name, &PushOptions { who: "test".to_owned(), ..PushOptions::default() })
}

pub(crate) fn push_with(
    remote: &Remote,
    store: &ModelStore,
    name: &str,
    options: &PushOptions,
) -> Result<Pushed, SyncError> {
    let (of, name) = name.split_once('/').unwrap();
    remote.push(store, &agent(of), &version(name), options)
}

pub(crate) fn pull(remote: &Remote, store: &ModelStore, of: &str) -> Result<Pulled, SyncError> {
    remote.pull(store, &agent(of), &PullOptions::default())
}

/// What is current, by name.
pub(crate) fn current(store: &ModelStore, of: &str) -> Option<String> {
    store.get_current(&agent(of)).unwrap().map(|current| current.version().to_string())
}

/// The version is here, sound, and nothing of a download is left.
pub(crate) fn assert_sound(row: &str, store: &ModelStore, name: &str) {
    let (of, name) = name.split_once('/').unwrap();
    let report = store.verify(&agent(of), &version(name)).unwrap();
    assert!(report.is_ok(), "{row}: {report:?}");
    assert_eq!(incoming(store, of), Vec::<String>::new(), "{row}: nothing is on its way");
    assert!(store.stagings(&agent(of)).unwrap().is_empty(), "{row}: no staging is left");
}

/// The names of what is on its way.
pub(crate) fn incoming(store: &ModelStore, of: &str) -> Vec<String> {
    let dir = store.root().join(of).join(".incoming");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// Checks the code and a part of what is said.
pub(crate) fn assert_refused<T: std::fmt::Debug>(row: &str, got: Result<T, SyncError>, code: u8, says: &str) {
    let error = got.expect_err(row);
    let said = model_store::with_causes(&error);
    assert!(said.contains(says), "{row}: {said:?} does not say {says:?}");
    assert_eq!(error.exit_code(), code, "{row}: {said}");
    assert_ne!(code, exit::OK, "{row}");
}

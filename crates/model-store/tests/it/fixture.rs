//! A store in a temporary directory, and how to look at it.

use std::fs;
use std::path::{Path, PathBuf};

use model_store::{
    AgentName, Current, FileEntry, FinalizeOptions, ModelStore, PayloadPath, Published, SigningKey,
    StoreError, VersionName,
};

pub(crate) struct Fixture {
    pub(crate) store: ModelStore,
    dir: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ModelStore::create(dir.path().join("store")).unwrap();
        Self { store, dir }
    }

    /// A store whose agent `scout` has version `v1`.
    pub(crate) fn with_v1() -> Self {
        let fixture = Self::new();
        fixture.publish("v1", &[("config.json", b"{}"), ("weights/model.bin", b"one")]).unwrap();
        fixture
    }

    pub(crate) fn publish(&self, name: &str, files: &[(&str, &[u8])]) -> Result<Published, StoreError> {
        self.publish_with(name, files, FinalizeOptions::default())
    }

    pub(crate) fn publish_with(
        &self,
        name: &str,
        files: &[(&str, &[u8])],
        options: FinalizeOptions,
    ) -> Result<Published, StoreError> {
        let staging = self.store.stage_new(&scout(), &version(name))?;
        for (path, bytes) in files {
            staging.write(&payload(path), bytes)?;
        }
        staging.finalize(options)
    }

    pub(crate) fn current(&self) -> Current {
        self.store.get_current(&scout()).unwrap().expect("scout has a current version")
    }

    pub(crate) fn root(&self) -> &Path {
        self.store.root()
    }

    /// A directory outside the store, on the same file system.
    pub(crate) fn outside(&self) -> PathBuf {
        let outside = self.dir.path().join("outside");
        fs::create_dir_all(&outside).unwrap();
        outside
    }

    pub(crate) fn agent_dir(&self) -> PathBuf {
        self.root().join("scout")
    }

    /// Every path in the agent's directory but those of published files: what a mutation may leave behind.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in fs::read_dir(self.agent_dir()).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if !["versions", "current", "history.jsonl", ".lock"].contains(&name.as_str()) {
                left.push(name);
            }
        }
        for entry in fs::read_dir(self.agent_dir().join("versions")).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if std::path::Path::new(&name).extension() == Some("tmp".as_ref()) {
                left.push(format!("versions/{name}"));
            }
        }
        left
    }

    /// The history of `scout` as JSON values.
    pub(crate) fn history(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.agent_dir().join("history.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a line of the history is JSON")).collect()
    }
}

pub(crate) fn scout() -> AgentName {
    agent("scout")
}

pub(crate) fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

pub(crate) fn version(name: &str) -> VersionName {
    name.parse().unwrap()
}

pub(crate) fn payload(path: &str) -> PayloadPath {
    path.parse().unwrap()
}

pub(crate) fn paths(files: &[FileEntry]) -> Vec<&str> {
    files.iter().map(|file| file.path.as_str()).collect()
}

/// Always the same, for processes that must agree on it; it protects nothing.
const SIGNING_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgqf+A6MboZacvJEGD
0Z2boKlA5gwKWI3pDv+t5Op2JRahRANCAARdbTTwXt4N/x3D6ciyAFjTmCB+8l7I
IbIQGPD3XLR2eBbULqGiZSN8n5yQoqW1bDNqEhUfmRsiFK2nMGaOmZDb
-----END PRIVATE KEY-----
";

pub(crate) fn signing_key() -> SigningKey {
    SigningKey::from_pem(SIGNING_KEY).unwrap()
}

/// The message with its causes, as a command prints it.
pub(crate) fn full_message(error: &StoreError) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    message
}

/// Whether a program can be run here; says so where it cannot.
pub(crate) fn has_program(program: &str, argument: &str) -> bool {
    let there = std::process::Command::new(program)
        .arg(argument)
        .output()
        .is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: `{program}` is not to be had here");
    }
    there
}

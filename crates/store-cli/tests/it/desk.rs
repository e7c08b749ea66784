//! An operator's desk: a store, a folder to publish, and the command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use model_store::{AgentName, ModelStore, VersionName};

pub(crate) struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    /// A store with nothing in it, and a folder of two files.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let desk = Self { dir };
        ModelStore::create(desk.root()).unwrap();
        fs::create_dir_all(desk.folder().join("sub")).unwrap();
        fs::write(desk.folder().join("config.json"), b"{}").unwrap();
        fs::write(desk.folder().join("sub/vocab.txt"), b"a b c").unwrap();
        desk
    }

    /// The same, with `scout/v1` published.
    pub(crate) fn with_v1() -> Self {
        let desk = Self::new();
        desk.run(&["publish", "scout", "v1", "--from", desk.folder().to_str().unwrap()]).ok();
        desk
    }

    /// Publishes the folder, its weights changed so that no two versions are alike, and makes it current.
    pub(crate) fn publish(&self, agent: &str, version: &str) {
        fs::write(self.folder().join("config.json"), format!("{{\"of\": \"{agent}/{version}\"}}")).unwrap();
        self.run(&["publish", agent, version, "--from", text(&self.folder())]).ok();
    }

    /// Changes one bit of a published file, as a failing disk would. Where the file is a hard link, its other
    /// names keep the sound bytes.
    pub(crate) fn flip_a_bit(&self, path: &str) {
        let path = self.root().join(path);
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        let mode = fs::metadata(&path).unwrap().permissions();
        let rotten = path.with_extension("rotten");
        fs::write(&rotten, bytes).unwrap();
        fs::set_permissions(&rotten, mode).unwrap();
        fs::rename(rotten, path).unwrap();
    }

    pub(crate) fn root(&self) -> PathBuf {
        // As the store calls it, should the temporary directory lie behind a link.
        self.dir.path().canonicalize().unwrap().join("store")
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.dir.path().join("folder")
    }

    pub(crate) fn store(&self) -> ModelStore {
        ModelStore::open(self.root()).unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_model-store"));
        command.args(arguments).env("MODEL_STORE_ROOT", self.root()).current_dir(self.dir.path());
        for variable in ["CLICOLOR_FORCE", "NO_COLOR", "CLICOLOR"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&format!("{arguments:?}"), &self.command(arguments).output().unwrap())
    }

    /// Every path below the agents' directories that is no part of a published version.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        let mut left = Vec::new();
        for agent in fs::read_dir(self.root()).unwrap().flatten() {
            left.extend(fs::read_dir(agent.path().join("versions")).into_iter().flatten().flatten());
        }
        left.into_iter()
            .map(|entry| entry.path())
            .filter(|path| path.extension() == Some("tmp".as_ref()))
            .collect()
    }
}

pub(crate) struct Run {
    row: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(row: &str, output: &Output) -> Self {
        Self {
            row: row.to_owned(),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// It succeeded, and had nothing to say on standard error.
    pub(crate) fn ok(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.row);
        self.stdout
    }

    /// It ended with a code of its own.
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}: {}{}", self.row, self.stdout, self.stderr);
        self
    }

    pub(crate) fn json(self) -> serde_json::Value {
        serde_json::from_str(&self.ok()).expect("the output is JSON")
    }
}

pub(crate) fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

pub(crate) fn version(name: &str) -> VersionName {
    name.parse().unwrap()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

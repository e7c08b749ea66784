//! A store in a temporary folder and the command that works on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use model_store::ModelStore;
use tempfile::TempDir;
use toy_store::{Kind, ToyVersion};
use trt_compiler::Runtimes;

/// A scratch folder with room for a store and for models.
pub(crate) struct Bench {
    scratch: TempDir,
}

impl Bench {
    /// `None`, and why on the standard error, where the native libraries are not installed.
    pub(crate) fn new() -> Option<Self> {
        let runtimes = Runtimes::from_env();
        if let Some(missing) = runtimes.onnxruntime().err().or(runtimes.tensorrt_rtx().err()) {
            eprintln!("skipped: {missing}");
            return None;
        }
        Some(Self::without_runtimes())
    }

    /// For what is refused before any library is asked for.
    pub(crate) fn without_runtimes() -> Self {
        Self { scratch: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.scratch.path().join("store")
    }

    /// The cache of the Hub.
    pub(crate) fn cache(&self) -> PathBuf {
        self.scratch.path().join("hub")
    }

    pub(crate) fn store(&self) -> ModelStore {
        ModelStore::create(self.root()).unwrap()
    }

    /// One of the toy models in a folder of its own, which the test may break.
    pub(crate) fn model(&self, kind: Kind) -> PathBuf {
        let folder = self.scratch.path().join(kind.title().replace(' ', "-"));
        toy_store::folder(kind, toy_store::DEFAULT_SEED, ToyVersion::V1).write_to(&folder).unwrap();
        folder
    }

    /// The command on this store, with nothing of the caller's environment that could change its mind.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_build-engine"));
        command
            .args(arguments)
            .env("MODEL_STORE_ROOT", self.root())
            .env("HF_HUB_CACHE", self.cache())
            // Nobody outside is asked; the tests of fetching have a Hub of their own.
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("HF_TOKEN")
            .env_remove("AGENT_MODEL_MAP")
            .env_remove("STRICT_MODEL_STORE")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Everything below the store's root but locks and histories, sorted: what a failed command must not change.
    pub(crate) fn contents(&self) -> Vec<String> {
        fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.is_dir() && !path.is_symlink() {
                    walk(&path, root, found);
                }
            }
        }
        let root = self.root();
        let mut found = Vec::new();
        walk(&root, &root, &mut found);
        found.retain(|path| Path::new(path).file_name().is_none_or(|name| name != ".lock"));
        found.sort_unstable();
        found
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exit code and both outputs, for a message.
pub(crate) fn shown(output: &Output) -> String {
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

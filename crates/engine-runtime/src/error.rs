//! Why a plan is not run.

use std::path::{Path, PathBuf};

use model_store::exit;

/// Why a plan is not run. Each message says which file or host it is about and what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The folder holds no engine.
    #[error("{} holds no engine.json, so no engine; `build-engine --agent AGENT` builds one", folder.display())]
    NoEngine {
        /// The folder.
        folder: PathBuf,
    },
    /// An `engine.json` is none.
    #[error("{} is no description of an engine: {reason}; build the engine again: build-engine --agent AGENT --rebuild", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The plan is for another kind of TensorRT.
    #[error("the engine is for {engine}, and this program runs {here}: {next}")]
    Flavour {
        /// What the engine is for.
        engine: String,
        /// What this program was built for.
        here: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// The plan's bytes are not those that were published.
    #[error(
        "{} is not the plan that engine.json describes: its SHA-256 is {found}, not {expected}; it was not loaded; \
         `model-store repair AGENT VERSION` may mend it, `build-engine --agent AGENT --rebuild` builds it anew",
        path.display()
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// What its bytes give.
        found: String,
        /// What `engine.json` says.
        expected: String,
    },
    /// A file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TensorRT is not installed.
    #[error("{runtime} is missing: no {file} in {}; {next}", listed(searched))]
    NoLibrary {
        /// Which runtime.
        runtime: &'static str,
        /// The file looked for.
        file: &'static str,
        /// The places searched, in order.
        searched: Vec<PathBuf>,
        /// What to do.
        next: String,
    },
    /// There is a library, but it cannot be used.
    #[error("{} cannot be used as {runtime}: {reason}; install {runtime} anew (`make runtimes` in a checkout)", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// What it was to be.
        runtime: &'static str,
        /// Why not.
        reason: String,
    },
    /// The process has another copy of the library open.
    #[error(
        "this process runs engines with {} already, and only one library fits in a process: name that one, or start another process for {}",
        opened.display(), asked.display()
    )]
    OtherLibrary {
        /// The library that is open.
        opened: PathBuf,
        /// The library that was asked for.
        asked: PathBuf,
    },
    /// Another version of TensorRT built the plan.
    #[error(
        "{runtime} {built} built the engine, and {} is {here}: plans run on the version that built them; \
         install {built}, or build again here: build-engine --agent AGENT --rebuild",
        path.display()
    )]
    Version {
        /// Which runtime.
        runtime: &'static str,
        /// The version that built it.
        built: String,
        /// The version that is here.
        here: String,
        /// The library that is here.
        path: PathBuf,
    },
    /// There is no GPU.
    #[error(
        "an engine runs on an NVIDIA GPU: {reason}; without one the version serves on the CPU, through its weights or model.onnx"
    )]
    NoGpu {
        /// What is missing.
        reason: String,
    },
    /// There are GPUs, but not this one.
    #[error("there is no GPU {device}: this host has {count}, counted from 0")]
    NoDevice {
        /// The number asked for.
        device: usize,
        /// How many there are.
        count: usize,
    },
    /// The plan is for other GPU generations.
    #[error("{gpu} is SM {sm}, and the engine is for SM {targets}; {next}")]
    Generation {
        /// The GPU.
        gpu: String,
        /// Its generation.
        sm: u16,
        /// The plan's.
        targets: String,
        /// What to do.
        next: String,
    },
    /// The GPU has less memory than the plan.
    #[error(
        "{gpu} has {} MiB of memory, and the plan alone is {} MiB; take a GPU with more, or build in a --precision of fewer bits",
        has_bytes >> 20, needs_bytes >> 20
    )]
    Memory {
        /// The GPU.
        gpu: String,
        /// Its memory.
        has_bytes: u64,
        /// The plan's size.
        needs_bytes: u64,
    },
    /// This program cannot run plans.
    #[error(
        "this program was built without the feature `tensorrt`, so it runs no engines: build it with that feature"
    )]
    NotBuilt,
    /// TensorRT refused or failed.
    #[error("{runtime} could not {doing}: {reason}{}", lines(log))]
    Refused {
        /// Which runtime.
        runtime: &'static str,
        /// What it was doing.
        doing: &'static str,
        /// What it said.
        reason: String,
        /// The errors it logged last.
        log: Vec<String>,
    },
    /// The CUDA driver refused or failed.
    #[error("CUDA could not {doing}: {reason}")]
    Cuda {
        /// What it was doing.
        doing: &'static str,
        /// What it said.
        reason: String,
    },
    /// A batch does not fit the engine.
    #[error("the batch does not fit the engine: {0}")]
    Batch(String),
    /// A weight of a stripped plan cannot be had.
    #[error("the plan needs the weight `{name}` and cannot have it: {reason}")]
    Weight {
        /// Its name in the graph.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The thread that runs the engine is gone.
    #[error("the engine stopped: native code failed in it, and the log says how; load it again")]
    Ended,
}

fn lines(log: &[String]) -> String {
    log.iter().flat_map(|line| ["\n  ", line]).collect()
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl RuntimeError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// The exit code that a command ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoEngine { .. } => exit::NOT_FOUND,
            Self::Description { .. } | Self::Digest { .. } | Self::Weight { .. } => exit::CORRUPT,
            Self::Flavour { .. }
            | Self::NoLibrary { .. }
            | Self::Library { .. }
            | Self::OtherLibrary { .. }
            | Self::Version { .. }
            | Self::NoGpu { .. }
            | Self::NoDevice { .. }
            | Self::Generation { .. }
            | Self::Memory { .. }
            | Self::NotBuilt => exit::ENVIRONMENT,
            Self::Batch(_) => exit::USAGE,
            Self::Io { .. } | Self::Refused { .. } | Self::Cuda { .. } | Self::Ended => exit::FAILURE,
        }
    }

    /// Whether the engine may be as it should and it is the host that cannot run it.
    #[must_use]
    pub fn is_the_host(&self) -> bool {
        self.exit_code() == exit::ENVIRONMENT
    }
}

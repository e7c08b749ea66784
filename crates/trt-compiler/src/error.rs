//! Why a model did not become a published version.

use std::path::PathBuf;

use model_loader::LoadError;
use model_store::{StoreError, exit};
use onnx_export::{ExportError, Precision};

use crate::engine::EngineError;
use crate::explain::Explanation;
use crate::gate::Verdict;
use crate::given::GraphError;
use crate::interrupt::Interrupted;
use crate::runtimes::MissingRuntime;
use crate::session::SessionError;

/// Why a model did not become a published version. In every case nothing was published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// A stop was asked for.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The store refused or failed.
    #[error(transparent)]
    Store(StoreError),
    /// The model cannot be written as a graph.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The graph that came as ONNX is not taken.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The model cannot be loaded to be compared with.
    #[error("cannot load the reference that the graph is checked against")]
    Reference(#[source] LoadError),
    /// The graph cannot be run.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A native library is not installed.
    #[error(transparent)]
    Missing(#[from] MissingRuntime),
    /// There is no engine.
    #[error(transparent)]
    Engine(EngineError),
    /// The engine cannot be run.
    #[error(transparent)]
    Runtime(#[from] engine_runtime::RuntimeError),
    /// The graph is too far from the reference.
    #[error("refused to publish {agent}/{version}: the graph differs from the reference{}{}\n  next: {}", failures(verdict), explained(explanation.as_deref()), next(*precision, verdict))]
    Gate {
        /// The agent.
        agent: String,
        /// The version that was not published.
        version: String,
        /// What the graph computes in.
        precision: Precision,
        /// What was measured and what was allowed.
        verdict: Box<Verdict>,
        /// Where it parts from the same graph in fp32, if that was asked for.
        explanation: Option<Box<Result<Explanation, String>>>,
    },
    /// The profile asks for longer sequences than the model has positions for.
    #[error(
        "the profile asks for sequences of {asked} tokens (those in a cache included), but this model has positions for {longest}; give a --profile whose longest sequence is at most that"
    )]
    Profile {
        /// The longest sequence of the profile.
        asked: u32,
        /// The longest sequence the model takes.
        longest: usize,
    },
    /// A profile for a cache that the engine has not.
    #[error(
        "the profile {profile} has a third part, tokens in a cache, and this engine has none: give BATCHxSEQUENCE (language models have a cache unless --no-kv-cache is given)"
    )]
    NoCache {
        /// The profile.
        profile: crate::profile::Profile,
    },
    /// A profile that leaves a cache no tokens.
    #[error(
        "the profile {profile} leaves nothing for the cache of a model with positions for {longest} tokens: give shorter sequences, as BATCHxSEQUENCExPAST, or --no-kv-cache for an engine of whole texts"
    )]
    NoRoom {
        /// The profile.
        profile: crate::profile::Profile,
        /// The longest text the model takes.
        longest: usize,
    },
    /// SM 75 has no matrix products in fp32 or bf16.
    #[error(
        "TensorRT-RTX builds for SM 75 (Turing) only what computes in fp16 throughout: sentence embeddings and hidden states in --precision fp16, no class scores, nothing kept in fp32 for its range; leave 75 out of --target"
    )]
    Turing,
    /// 8-bit products without anything to find their ranges with.
    #[error(
        "{precision} needs to know the model's activations: give texts like those it will read with --calib-data (lines, JSONL or a folder)"
    )]
    NoCalibration {
        /// The precision.
        precision: Precision,
    },
    /// A GPU generation without 8-bit floats.
    #[error("SM {target} has no 8-bit floats: give --target 89,120,121 (Ada and later), or --precision int8")]
    NoFp8 {
        /// The generation.
        target: crate::target::Target,
    },
    /// A file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Whether a file system took no more.
fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

fn failures(verdict: &Verdict) -> String {
    let output = verdict.comparison.output.as_str();
    verdict.failures.iter().flat_map(|failure| ["\n  ", output, "  ", failure]).collect()
}

fn explained(explanation: Option<&Result<Explanation, String>>) -> String {
    match explanation {
        None => "\n  (--explain names the node where it begins)".to_owned(),
        Some(Ok(explanation)) => format!("\n  {explanation}"),
        Some(Err(reason)) => format!("\n  (where it begins could not be found out: {reason})"),
    }
}

/// What to try next.
fn next(precision: Precision, verdict: &Verdict) -> &'static str {
    let broken = verdict.comparison.nan + verdict.comparison.infinite > 0;
    match precision {
        Precision::Fp16 if broken => {
            "--precision bf16 has the range of fp32; or keep what overflows in fp32 with --keep-fp32 'layer.N.*'"
        }
        Precision::Fp8 | Precision::Int8 => {
            "calibrate on more texts, and on texts like those it will read; try another --calib-method; or keep what is worst out of it with --keep-fp32 'layer.N.*'"
        }
        Precision::W4a16 => {
            "--precision w8a16 has finer weights; or keep what is worst out of it with --keep-fp32 'layer.N.*'"
        }
        Precision::Fp16 | Precision::Bf16 | Precision::W8a16 => {
            "--precision fp32 shows whether it is the precision; --keep-fp32 'layer.N.*' keeps a layer in fp32"
        }
        Precision::Fp32 | Precision::Tf32 => {
            "these are not the weights of the reference, or the export is at fault: compare the digests of the files"
        }
    }
}

impl From<StoreError> for CompileError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Interrupted => Self::Interrupted(Interrupted),
            other => Self::Store(other),
        }
    }
}

impl From<EngineError> for CompileError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Interrupted(interrupted) => Self::Interrupted(interrupted),
            other => Self::Engine(other),
        }
    }
}

impl CompileError {
    /// The exit code that a command ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) => error.exit_code(),
            Self::Export(ExportError::Io { source, .. }) | Self::Io { source, .. } if is_full(source) => {
                exit::ENVIRONMENT
            }
            Self::Export(error) => error.exit_code(),
            Self::Graph(error) => error.exit_code(),
            // A model that gives NaN is refused as a graph that does is.
            Self::Reference(LoadError::NotFinite { .. }) | Self::Gate { .. } => exit::REFUSED,
            Self::Reference(error) => error.exit_code(),
            Self::Runtime(error) => error.exit_code(),
            Self::Engine(EngineError::Unsupported { .. })
            | Self::Profile { .. }
            | Self::NoCache { .. }
            | Self::NoRoom { .. }
            | Self::Turing
            | Self::NoCalibration { .. }
            | Self::NoFp8 { .. } => exit::USAGE,
            Self::Engine(EngineError::Refused { stage, .. }) if stage.starts_with("load") => {
                exit::ENVIRONMENT
            }
            Self::Engine(error) if error.ran_out_of_memory() => exit::ENVIRONMENT,
            Self::Missing(_)
            | Self::Session(SessionError::Missing(_) | SessionError::Unusable { .. })
            | Self::Engine(EngineError::Spawn { .. } | EngineError::NoRoom { .. }) => exit::ENVIRONMENT,
            Self::Interrupted(_) => exit::INTERRUPTED,
            Self::Engine(_) | Self::Session(_) | Self::Io { .. } => exit::FAILURE,
        }
    }
}

//! Engines: what is asked for, what came out, and the child process that builds them.

#[cfg(feature = "tensorrt")]
mod examiner;
mod host;
mod options;
#[cfg(feature = "tensorrt")]
mod worker;

use std::path::PathBuf;

use onnx_export::DataType;
use serde::{Deserialize, Serialize};

pub use host::{BuildOptions, EngineError, available_memory_bytes, build, examine, needed_memory_bytes};
pub(crate) use host::{check_memory, gate_memory_bytes};
pub use options::{EngineOptions, PlanTrait};
#[cfg(feature = "tensorrt")]
pub use worker::worker_main;

use crate::profile::{Profile, Span};
use crate::runtimes::RtxLibraries;
use crate::target::Target;

/// The first argument of a process that is to build one engine and nothing else.
///
/// A binary that calls [`build`] hands over to [`worker_main`] when it finds this as its first argument.
pub const WORKER_ARGUMENT: &str = "__tensorrt-worker";

/// What the child process is told, as one line of JSON on its standard input.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub(crate) enum WorkerRequest {
    /// Build a plan.
    Build(EngineRequest),
    /// Look at one.
    Examine(ExamineRequest),
}

/// A plan to build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineRequest {
    /// The graph; its weights lie beside it.
    pub onnx: PathBuf,
    /// Where the plan goes.
    pub plan: PathBuf,
    /// Where the list of its layers goes.
    pub layers: PathBuf,
    /// The libraries that build it.
    pub libraries: RtxLibraries,
    /// The inputs of the graph and their shapes, once for each profile.
    pub profiles: Vec<Vec<InputShape>>,
    /// The GPU generations it shall run on.
    pub targets: Vec<Target>,
    /// Whether fp32 products may be computed in TF32.
    pub tf32: Tf32,
    /// Everything else that changes the plan.
    pub options: EngineOptions,
}

/// A plan to look at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExamineRequest {
    /// The plan.
    pub plan: PathBuf,
    /// The libraries that are to run it.
    pub libraries: RtxLibraries,
    /// How closely to look.
    pub depth: Depth,
}

/// How closely a plan is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// TensorRT reads its header, and judges by that whether it runs here.
    Header,
    /// TensorRT loads it, which needs a GPU, and lists its layers.
    Layers,
}

/// What TensorRT says of a plan.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Examined {
    /// Why it does not run here, a line each; none if it does.
    pub problems: Vec<String>,
    /// The engine inspector's description, as JSON, if that was asked for.
    pub inspected: Option<String>,
}

/// One layer of the network that a plan was built from, before TensorRT fused any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Name of the graph's node, or what the parser called it.
    pub name: String,
    /// What it does: `matrix_multiply`, `softmax`, ….
    pub kind: String,
    /// Element type of its first output.
    pub dtype: String,
    /// Shape of its first output; -1 for a dynamic size.
    pub shape: Vec<i64>,
}

/// Whether fp32 products may be computed in TF32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tf32 {
    /// They may.
    Allowed,
    /// They may not: fp32 means fp32.
    Forbidden,
}

/// The span of each dimension of an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputShape {
    /// Name of the input.
    pub name: String,
    /// Its element type.
    pub dtype: DataType,
    /// Its dimensions, outermost first.
    pub dims: Vec<Span>,
}

impl InputShape {
    /// An input of shape [batch, sequence].
    #[must_use]
    pub fn new(name: impl Into<String>, dtype: DataType, profile: &Profile) -> Self {
        Self { name: name.into(), dtype, dims: vec![profile.batch, profile.sequence] }
    }
}

/// What the child process reports, one line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum WorkerMessage {
    /// Something TensorRT logged as a warning or an error.
    Log { error: bool, text: String },
    /// How far a phase of the build is.
    Progress { phase: String, step: i32, steps: i32 },
    /// The plan is written.
    Built(EngineFacts),
    /// The plan was looked at.
    Examined(Examined),
    /// Neither could be done.
    Failed {
        stage: String,
        reason: String,
        /// The number of the operating system's error, where one was the reason.
        #[serde(default)]
        os_error: Option<i32>,
    },
}

/// What is known of a plan once it is built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineFacts {
    /// Exact version of the library that built it.
    pub version: String,
    /// Size of the plan in bytes.
    pub plan_bytes: u64,
    /// Seconds to read the graph and its weights.
    pub parse_seconds: f64,
    /// Seconds to build.
    pub build_seconds: f64,
    /// Peak resident memory of the building process, in bytes.
    pub peak_memory_bytes: u64,
    /// Warnings that TensorRT logged.
    #[serde(default)]
    pub warnings: Vec<String>,
}

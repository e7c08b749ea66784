//! Engines: what is asked for, what came out, and the child process that builds them.

#[cfg(feature = "tensorrt")]
mod builder;
#[cfg(feature = "tensorrt")]
mod examiner;
mod host;
#[cfg(feature = "tensorrt")]
mod memory;
mod options;
#[cfg(feature = "tensorrt-enterprise")]
mod timing_cache;
#[cfg(feature = "tensorrt")]
mod worker;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use engine_runtime::{EngineFacts, EngineOptions, InputShape, PlanTrait};
pub use host::{
    BuildOptions, EngineError, available_memory_bytes, build, examine, judge, needed_memory_bytes,
};
pub(crate) use host::{Waiting, build_in, check_memory, gate_memory_bytes};
pub(crate) use options::check as check_options;
#[cfg(feature = "tensorrt")]
pub use worker::worker_main;

use crate::gate::{ThresholdWishes, Verdict};
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
    /// Run one, and judge what it gives.
    Judge(JudgeRequest),
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
    /// The GPU generations it shall run on; none for the GPU of this host.
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

/// An engine to run on a GPU and to hold against its model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JudgeRequest {
    /// The folder of the engine: that of `engine.json`.
    pub engine: PathBuf,
    /// The folder of the model.
    pub model: PathBuf,
    /// TensorRT's library.
    pub library: PathBuf,
    /// The texts of the check.
    pub texts: Vec<String>,
    /// Other thresholds than the table's.
    pub wishes: ThresholdWishes,
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

/// What the child process reports, one line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum WorkerMessage {
    /// The libraries that it was started with are open.
    Opened { version: String },
    /// Something TensorRT logged as a warning or an error.
    Log { error: bool, text: String },
    /// How far a phase of the build is.
    Progress { phase: String, step: i32, steps: i32 },
    /// The plan is written.
    Built(EngineFacts),
    /// The plan was looked at.
    Examined(Examined),
    /// The engine was judged.
    Judged(Box<Verdict>),
    /// Neither could be done.
    Failed {
        stage: String,
        reason: String,
        /// The number of the operating system's error, where one was the reason.
        #[serde(default)]
        os_error: Option<i32>,
    },
}

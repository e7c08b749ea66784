//! Engines: what is asked for, what came out, and the child process that builds them.

mod host;
#[cfg(feature = "tensorrt")]
mod worker;

use std::path::PathBuf;

use onnx_export::DataType;
use serde::{Deserialize, Serialize};

pub(crate) use host::check_memory;
pub use host::{BuildOptions, EngineError, available_memory_bytes, build, needed_memory_bytes};
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
pub struct EngineRequest {
    /// The graph; its weights lie beside it.
    pub onnx: PathBuf,
    /// Where the plan goes.
    pub plan: PathBuf,
    /// The libraries that build it.
    pub libraries: RtxLibraries,
    /// The inputs of the graph and their shapes.
    pub inputs: Vec<InputShape>,
    /// The GPU generations it shall run on.
    pub targets: Vec<Target>,
    /// Whether fp32 products may be computed in TF32.
    pub tf32: Tf32,
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
    /// The plan is written and synced.
    Built(EngineFacts),
    /// There is no plan.
    Failed { stage: String, reason: String },
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

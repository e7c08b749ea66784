//! From a model folder to a checked TensorRT engine in a published version.
//!
//! [`run`] takes a [`Job`] through the whole row: the model's files come into the staging of a new version, the graph is
//! exported beside them, ONNX Runtime runs it on real text, the [`gate`] compares what it gives with the fp32
//! reference, TensorRT-RTX compiles it in a child process, and the version is published in one atomic step. Whatever
//! fails on the way leaves the store as it was.
//!
//! Limits: the plan itself is not run here, because that needs a GPU; what is checked is the graph it is compiled from,
//! in the same precision. The native libraries are opened at run time, from the places that [`Runtimes`] searches.
//! Without the feature `tensorrt` everything but the plan works.

mod calibrate;
pub mod engine;
#[cfg(feature = "tensorrt")]
mod engine_bench;
#[cfg(feature = "tensorrt")]
mod engine_gate;
mod error;
mod evidence;
mod explain;
pub mod gate;
mod given;
mod inspect;
mod interrupt;
mod job;
mod naming;
mod observer;
mod overflow;
mod pack;
pub mod payload;
mod preflight;
mod report;
mod reuse;
mod run;
mod runtimes;
pub mod session;
mod stale;
mod subject;
pub mod texts;

pub use calibrate::Method;
pub use engine::{available_memory_bytes, needed_memory_bytes};
#[cfg(feature = "tensorrt")]
pub use engine_bench::{BenchRow, Timing, bench_engine, bench_sizes};
#[cfg(feature = "tensorrt")]
pub use engine_gate::judge_engine;
pub(crate) use engine_runtime as native;
/// The runtime: what an engine is, whether a host can run it, and, with the feature `tensorrt`, running it.
pub use engine_runtime as runtime;
pub(crate) use engine_runtime::profile;
pub use engine_runtime::{EngineRecord, Gpu, Profile, Span, Target, target, tensorrt_version};
pub use error::CompileError;
pub use evidence::{CalibrationRecord, EngineDescription, Evidence, Provenance};
pub use explain::{Deviation, Explanation};
pub use gate::{ThresholdWishes, Thresholds};
pub use given::{GraphError, GraphRecord, graph_precision};
pub use inspect::{GraphSummary, Inspection, inspect};
pub use interrupt::{Interrupt, Interrupted};
pub use job::{Calibration, EngineWish, HostUse, Job, KvCache, ModelSource, Plan, WeightForm};
pub use naming::{default_version, now};
pub use observer::{Observer, Step};
pub use overflow::{Limits, Overflow, OverflowRecord, Widened};
pub use pack::PackedRecord;
pub use preflight::{EngineCheck, HostFacts, Obstacle, preflight};
pub use reuse::{FoundEngine, Reuse, engines_of};
pub use run::{Outcome, dry_run, run};
pub use runtimes::{
    DEFAULT_RUNTIMES, MissingRuntime, ONNXRUNTIME_VARIABLE, RUNTIMES_VARIABLE, RtxLibraries, Runtimes,
    TENSORRT_RTX_VARIABLE,
};
pub use stale::{EngineWanted, Wish, staleness};

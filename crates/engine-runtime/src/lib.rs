//! Runs a published TensorRT plan on a GPU.
//!
//! [`Engine::open`] reads an engine's `engine.json`, checks that the plan beside it has the SHA-256 that stands there, that
//! this host has the exact TensorRT that built it, and a GPU of a generation that it was built for; only then is the plan
//! given to TensorRT. Every failure is one error that says what to do ([`RuntimeError`]). [`fit`] asks the same of a host
//! without touching the plan.
//!
//! One thread owns an engine and everything on the GPU that belongs to it; an [`Engine`] is a way to it that any thread
//! may use. Batches run one after another. Buffers are made once, for the largest shape of any profile. A batch runs in
//! the smallest profile that takes it. Outputs come as fp32.
//!
//! Limits: TensorRT is opened at run time, one library to a process. A crash inside it ends the process; that is why bytes
//! that were not published are never given to it. What needs a GPU has been compiled and not been run where this was
//! written: `make gpu-check` runs it, and docs/gpu.md says what came of it. Without the feature `tensorrt` everything but
//! running works: [`EngineRecord`] is what both the builder and the runtime know of an engine.
//!
//! ```no_run
//! # #[cfg(feature = "tensorrt")] {
//! use engine_runtime::{Engine, Input, RuntimeOptions, Values};
//!
//! let folder = std::path::Path::new("model_store/memory/current/engines/tensorrt-rtx-1.7.1/sm89-fp16");
//! let engine = Engine::open(folder, &RuntimeOptions::default())?;
//! let input = |name: &str, values: Vec<i64>| Input { name: name.to_owned(), shape: vec![1, 3], values: Values::I64(values) };
//! let outputs = engine.run(vec![
//!     input("input_ids", vec![101, 7592, 102]),
//!     input("attention_mask", vec![1, 1, 1]),
//!     input("token_type_ids", vec![0, 0, 0]),
//! ])?;
//! println!("{} is {:?}", outputs[0].name, outputs[0].shape);
//! # }
//! # Ok::<(), engine_runtime::RuntimeError>(())
//! ```

#[cfg(feature = "tensorrt")]
mod cache;
mod check;
mod description;
#[cfg(feature = "tensorrt")]
mod engine;
mod error;
mod library;
mod native;
#[cfg(feature = "tensorrt")]
mod plan;
pub mod profile;
#[cfg(feature = "tensorrt")]
mod recent;
#[cfg(feature = "tensorrt")]
mod sizes;
pub mod target;
#[cfg(feature = "tensorrt")]
mod tensor;
#[cfg(feature = "tensorrt-enterprise")]
mod timings;
#[cfg(feature = "tensorrt")]
mod weights;

pub use check::{Fit, fit};
pub use description::{
    DESCRIPTION_FILE, EngineFacts, EngineOptions, EngineRecord, InputShape, PLAN_FILE, PlanTrait,
};
#[cfg(feature = "tensorrt")]
pub use engine::{Caching, CudaGraphs, Engine, RuntimeOptions, default_cache_folder};
pub use error::RuntimeError;
pub use library::Flavour;
pub use native::{Gpu, gpus, tensorrt_version};
pub use profile::{Profile, Span};
pub use target::Target;
#[cfg(feature = "tensorrt")]
pub use tensor::{Input, Output, Values};
#[cfg(feature = "tensorrt-enterprise")]
pub use timings::Timings;

//! ONNX to a checked TensorRT engine to a published version.

pub mod engine;
mod interrupt;
mod native;
mod profile;
mod runtimes;
mod target;

pub use interrupt::{Interrupt, Interrupted};
pub use native::{onnxruntime_version, tensorrt_version};
pub use profile::{Profile, Span};
pub use runtimes::{MissingRuntime, RtxLibraries, Runtimes};
pub use target::Target;

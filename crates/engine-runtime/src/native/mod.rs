//! The only place with calls into native code: the libraries' versions, the driver's GPUs, and a plan that runs.
#![expect(unsafe_code, reason = "calling functions of libraries that are opened at run time")]

#[cfg(feature = "tensorrt")]
mod compiled;
#[cfg(feature = "tensorrt")]
mod glue;
mod probe;
#[cfg(feature = "tensorrt")]
mod refit;
#[cfg(feature = "tensorrt")]
mod session;

pub use probe::{Gpu, gpus, tensorrt_version};
#[cfg(feature = "tensorrt")]
pub(crate) use session::{Loading, Session};

//! Graphs beside the reference, on ONNX Runtime. Needs the library that `make runtimes` installs, and says so without it.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it skips"
)]

mod parity;
mod refusal;
mod support;

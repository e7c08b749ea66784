//! Graphs of real model folders, and the errors of broken ones.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod broken;
mod decoders;
mod encoders;
mod files;
mod graphs;
mod materialised;
mod scale;
mod sentences;
mod support;

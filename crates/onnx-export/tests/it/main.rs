//! Graphs of real model folders, and the errors of broken ones.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod broken;
mod graphs;
mod support;

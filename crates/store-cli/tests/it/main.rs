//! Tests of the `model-store` command, run as an operator runs it.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod commands;
mod desk;
mod diff;
mod interrupt;
mod mistakes;
mod pointers;

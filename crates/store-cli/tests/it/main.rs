//! Tests of the `model-store` command, run as an operator runs it.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says why")]

mod commands;
mod desk;
mod diff;
mod doctor;
mod gc;
mod interrupt;
mod man;
mod metrics;
mod mistakes;
mod pointers;
mod remotes;
mod repair;
mod signing;
mod transcript;
mod watch;

//! The command as a person runs it: real processes, real libraries, a real store.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it skips"
)]

mod bad_input;
mod builder_graph;
mod caches;
mod concurrency;
mod engines;
mod families;
mod graphs;
mod hub;
mod main_job;
mod real_sizes;
mod reuse;
mod roster;
mod runtime;
mod stopping;
mod support;
mod worker;

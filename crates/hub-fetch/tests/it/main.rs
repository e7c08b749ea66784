//! Fetching from a server that is a process of its own: the Hub's protocol, with everything that can go wrong in it.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why it skips; the server says what it is asked"
)]

mod caching;
mod fetching;
mod python;
mod refusals;
mod server;
mod stopping;
mod trouble;
mod world;

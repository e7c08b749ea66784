//! Tests of pushing and pulling, against folders and against an S3 server that is not ours.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test that is skipped says why; a child answers"
)]

mod child;
mod cluster;
mod collecting;
mod damage;
mod faults;
mod fleet;
mod http;
mod killed;

mod many;
mod pointers;
mod proxy;

mod roundtrip;
mod server;
mod signed;

mod world;

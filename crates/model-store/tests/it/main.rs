//! Tests of the store through its public API.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says why")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests play the foreign writer, the vandal and the old script"
)]

mod busy;
mod child;
mod coreutils;
mod diff;
mod doctor;
mod fixture;
mod fuzzed;
mod golden;
mod host;
mod import;
mod incoming;
mod legacy;
mod manifest;
mod names;
mod order;
mod outside;
mod payload;
mod pointers;
mod publish;
mod recovery;
mod repair;
mod retention;
mod room;
mod signatures;
mod torture;
mod transfer;
mod verify;
mod watch;

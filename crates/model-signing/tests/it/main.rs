//! Tests of model signatures, against the real `model_signing` where there is one.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says why")]

mod bundles;
mod folder;
mod fuzzed;
mod keys;
mod python;
mod statements;

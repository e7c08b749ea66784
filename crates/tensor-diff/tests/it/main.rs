//! Tests of the comparison, on real files.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod broken;
mod differences;
mod fuzzed;
mod random;
mod support;

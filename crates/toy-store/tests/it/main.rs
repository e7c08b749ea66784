//! Tests of the folders, of the store they are published in, and of the command.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod command;
mod folders;
mod learning;
mod publish;
mod reproducible;

//! Tests of the loader through its public API, and of its examples as processes.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says why, and one that measures says what")]

mod agent_map;
mod broken;
mod chat;
mod encoders;
mod examples;
#[cfg(feature = "cuda")]
mod gpu;
mod heads;
#[cfg(feature = "hub")]
mod hub;
mod lm;
mod lm_broken;
mod lora;
mod minilm;
#[cfg(feature = "onnxruntime")]
mod onnx;
mod parity;
mod reload;
mod resolution;
mod sentence;
mod shared;
mod shelf;
mod signed;
mod support;
mod synthesizer;
mod verified;

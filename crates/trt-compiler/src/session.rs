//! A graph loaded in ONNX Runtime, to be checked: model-loader's, which runs graphs too.

pub use model_loader::onnx::{OnnxRuntime, OnnxSession, SessionError};

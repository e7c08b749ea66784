//! What can go wrong, said with the file it happened to.

use std::io;

/// The error of reading or comparing checkpoints.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The file is no safetensors file, or not a whole one.
    #[error("{file} is not a sound safetensors file: {reason}")]
    Broken {
        /// Which file.
        file: String,
        /// Which rule of the format it breaks.
        reason: String,
    },

    /// Two files of one checkpoint hold a tensor of the same name.
    #[error("tensor {tensor:?} is both in {first} and in {second}; they are not shards of one checkpoint")]
    Twice {
        /// The tensor's name.
        tensor: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },

    /// The system refused to read.
    #[error("could not read {file}")]
    Io {
        /// Which file.
        file: String,
        /// What the system said.
        source: io::Error,
    },

    /// The observer wanted an end.
    #[error("stopped")]
    Stopped,
}

impl TensorError {
    pub(crate) fn broken(file: &str, reason: impl Into<String>) -> Self {
        Self::Broken { file: file.to_owned(), reason: reason.into() }
    }

    pub(crate) fn io(file: &str, source: io::Error) -> Self {
        Self::Io { file: file.to_owned(), source }
    }
}

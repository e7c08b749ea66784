//! Why a model cannot be exported.

use std::io;
use std::path::PathBuf;

/// Why a model cannot be exported. Every message names the file, and the tensor where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// A file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done: `read`, `write`, `open`.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder holds no `config.json`.
    #[error("{} holds no config.json, so it is no Hugging Face model folder; give the folder that has config.json and *.safetensors", folder.display())]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// `config.json` is not JSON, or lacks a value that the family needs.
    #[error("{} cannot be used: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There are no safetensors weights, only pickles (or nothing).
    #[error("{}", no_weights(folder, pickles))]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// Pickle files that are there; they are never opened.
        pickles: Vec<String>,
    },
    /// A safetensors file is truncated, too long or inconsistent.
    #[error("{} is not a sound safetensors file: {reason}; fetch it again or restore it from a backup", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `model_type` names a family that this version cannot export.
    #[error("model_type {model_type:?} ({}) is not supported; supported are: {supported}", path.display())]
    UnsupportedFamily {
        /// The `config.json`.
        path: PathBuf,
        /// The family asked for.
        model_type: String,
        /// The families there are, in words.
        supported: String,
    },
    /// The family is supported, but not with this setting or head.
    #[error("{} asks for {what}, which this family does not support here; supported: {supported}", path.display())]
    Unsupported {
        /// The `config.json`.
        path: PathBuf,
        /// What was asked for.
        what: String,
        /// What there is instead.
        supported: String,
    },
    /// A tensor that the family needs is not in the checkpoint.
    #[error("the weights in {} have no tensor {tensor:?}{}", folder.display(), if near.is_empty() { String::new() } else { format!(" (there is {near:?})") })]
    MissingTensor {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
        /// The most similar name that is there; empty if there is none.
        near: String,
    },
    /// A tensor has another shape than config.json says.
    #[error("{}: tensor {tensor:?} has shape {found:?}, but config.json asks for {expected:?}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that config.json implies.
        expected: Vec<usize>,
    },
    /// A pattern of modules to keep in fp32 names none.
    #[error(
        "no module of this model is named by {pattern:?}; names look like encoder.layer.0.attention.self.query, and a leading part may be left out"
    )]
    NoSuchModule {
        /// The pattern.
        pattern: String,
    },
    /// A layer is to compute in 8 bits, and nobody says what its numbers are like.
    #[error(
        "no range is known of what goes into {layer:?}: 8-bit products need those of every layer, found by calibration"
    )]
    NoRange {
        /// The linear layer, by tensor name without `.weight`.
        layer: String,
    },
    /// A weight has a type that no graph can hold.
    #[error("{}: tensor {tensor:?} is stored as {dtype}, which cannot be a weight of this graph (F32, F16, BF16 or F64 can)", file.display())]
    Dtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
}

impl ExportError {
    /// The exit code that a command ends with: 2 usage, 3 not found, 4 corrupt, 6 refused, 1 otherwise.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NoSuchModule { .. } | Self::NoRange { .. } => 2,
            Self::NoConfig { .. } => 3,
            Self::Config { .. } | Self::Corrupt { .. } | Self::MissingTensor { .. } | Self::Shape { .. } => 4,
            Self::NoWeights { .. }
            | Self::UnsupportedFamily { .. }
            | Self::Unsupported { .. }
            | Self::Dtype { .. } => 6,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => 3,
            Self::Io { .. } => 1,
        }
    }
}

fn no_weights(folder: &std::path::Path, pickles: &[String]) -> String {
    let folder = folder.display();
    if pickles.is_empty() {
        return format!(
            "{folder} holds no *.safetensors weights; fetch the model with its model.safetensors"
        );
    }
    format!(
        "{folder} holds weights only as {}, a pickle, which can run code when it is opened and is never read here; \
         where you trust it, convert it once: python3 -c \"from transformers import AutoModel; \
         AutoModel.from_pretrained('{folder}').save_pretrained('{folder}', safe_serialization=True)\"",
        pickles.join(", ")
    )
}

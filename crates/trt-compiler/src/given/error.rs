//! Why a graph that came as ONNX is not taken.

use std::io;
use std::path::PathBuf;

use model_store::exit;
use onnx_export::Precision;

/// Why a graph that came as ONNX is not taken. Every message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The file could not be read.
    #[error("cannot read the graph {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no ONNX file.
    #[error("{} is no ONNX graph: {reason}", path.display())]
    NotOnnx {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is said to lie where a model has no business.
    #[error(
        "{}: the data of {tensor:?} is said to lie in {location:?}, which {reason}; nothing outside the folder of the graph is read",
        path.display()
    )]
    Hostile {
        /// The graph's file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where its data is said to be.
        location: String,
        /// What is wrong with that.
        reason: String,
    },
    /// A file with a tensor's data is not there.
    #[error(
        "{}: the data of {tensor:?} is not there: {}; fetch it with the graph, and leave it beside it under that name",
        path.display(), file.display()
    )]
    NoData {
        /// The graph's file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file with its data.
        file: PathBuf,
    },
    /// A tensor's data is not where, or not as long as, the graph says.
    #[error("{}: the data of {tensor:?} does not fit: {reason}; fetch the graph and its data again", path.display())]
    Data {
        /// The graph's file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What does not fit.
        reason: String,
    },
    /// Inputs or outputs are not what a tokenizer gives and the gate compares.
    #[error("{} cannot be used: {what}", path.display())]
    Interface {
        /// The graph's file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// Another precision is asked for than the graph has.
    #[error(
        "{} computes in {own} and is taken as it is: only graphs of our own export are written in another precision; ask for --precision {own}, or build {asked} from the model's safetensors with --source DIR or --model-id ID",
        path.display()
    )]
    Precision {
        /// The graph's file.
        path: PathBuf,
        /// What it computes in.
        own: Precision,
        /// What is asked for.
        asked: Precision,
    },
    /// Something is asked for that changes a graph.
    #[error("{option} changes the graph, and {} is taken as it is; leave it out, or build from safetensors", path.display())]
    Option {
        /// The graph's file.
        path: PathBuf,
        /// The option.
        option: &'static str,
    },
    /// There is nothing to compare this output with.
    #[error("{}: a --reference gives no {output} of each token, so it cannot be compared; leave --reference out", path.display())]
    NoReference {
        /// The graph's file.
        path: PathBuf,
        /// The output.
        output: String,
    },
    /// The file changed while it was taken over.
    #[error("{} changed while it was taken over; try again once nobody writes there", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

impl GraphError {
    /// The exit code that a command ends with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => exit::NOT_FOUND,
            Self::NoData { .. } => exit::NOT_FOUND,
            Self::Io { .. } | Self::Changed { .. } => exit::FAILURE,
            Self::NotOnnx { .. } | Self::Data { .. } => exit::CORRUPT,
            Self::Hostile { .. } | Self::Interface { .. } => exit::REFUSED,
            Self::Precision { .. } | Self::Option { .. } | Self::NoReference { .. } => exit::USAGE,
        }
    }
}

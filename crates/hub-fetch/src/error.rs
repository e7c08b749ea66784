//! What can go wrong, said with the model and file it happened to and what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model_store::{exit, human_size};

/// The error of a fetch. No variant holds a token or a signed address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// A string that no model or revision may be called.
    #[error("{name:?} is no {kind}: {reason}")]
    Name {
        /// The string.
        name: String,
        /// What it should have named.
        kind: &'static str,
        /// What is allowed.
        reason: &'static str,
    },

    /// A variable of the environment that cannot be followed. Its value is not repeated: it may be a secret.
    #[error("{variable} cannot be used: {reason}")]
    Environment {
        /// The variable, or the file it names.
        variable: String,
        /// What is wrong with it, and what is wanted.
        reason: String,
    },

    /// Offline, and the model is not in the cache, or only in part.
    #[error(
        "{model_id} at {revision} is not whole in {}: {missing}; HF_HUB_OFFLINE is set, so nothing is downloaded: unset \
         it, or fetch the model on a host with a network and copy the cache",
        .cache.display()
    )]
    Offline {
        /// The model.
        model_id: String,
        /// The revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
        /// What is not there.
        missing: String,
    },

    /// The Hub cannot be reached, and the cache does not have the model whole.
    #[error(
        "cannot reach {url}: {what}; check the network, HTTPS_PROXY and HF_ENDPOINT, and run it again: what is here already is kept"
    )]
    Unreachable {
        /// The address, without its query.
        url: String,
        /// How it failed.
        what: String,
    },

    /// The server asks for more patience than there is.
    #[error("{url} asks to be left alone for {} s; run it again then, or set HF_TOKEN: limits are higher with a token", .wait.as_secs())]
    RateLimited {
        /// The address, without its query.
        url: String,
        /// How long.
        wait: Duration,
    },

    /// The model's terms have not been accepted.
    #[error("{model_id} is gated: {}", gated(page, *.with_token))]
    Gated {
        /// The model.
        model_id: String,
        /// The page where its terms are.
        page: String,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// There is no such model, or it is private: the Hub does not tell which.
    #[error("{endpoint} has no model {model_id}{}", private(*.with_token))]
    NotFound {
        /// The model.
        model_id: String,
        /// The Hub.
        endpoint: String,
        /// Whether a token was sent.
        with_token: bool,
    },

    /// The token is not one of this Hub's.
    #[error(
        "{endpoint} does not know the token it was sent; check HF_TOKEN, or log in again with `hf auth login`"
    )]
    BadToken {
        /// The Hub.
        endpoint: String,
    },

    /// The Hub has taken the model out of circulation.
    #[error("{model_id} is disabled by the Hub, which says: {message}")]
    Disabled {
        /// The model.
        model_id: String,
        /// The Hub's words.
        message: String,
    },

    /// The model has no such branch, tag or commit.
    #[error(
        "{model_id} has no revision {revision}; name a branch, a tag, `refs/pr/<number>` or a whole commit"
    )]
    RevisionNotFound {
        /// The model.
        model_id: String,
        /// The revision.
        revision: String,
    },

    /// A file that the commit was said to have is not there.
    #[error(
        "{model_id} at {commit} has no file {path}, though it lists one; the server is not in order, so try again later"
    )]
    EntryNotFound {
        /// The model.
        model_id: String,
        /// The commit.
        commit: String,
        /// The file.
        path: String,
    },

    /// The repository has weights, but none that can be read without running what is in them.
    #[error(
        "{model_id} has its weights as pickles only ({files}), which can run code when they are opened; look for a \
         safetensors copy at {endpoint}/{model_id}/discussions (then --revision refs/pr/<number>), or convert it with \
         https://huggingface.co/spaces/safetensors/convert"
    )]
    OnlyPickles {
        /// The model.
        model_id: String,
        /// The Hub.
        endpoint: String,
        /// Some of them.
        files: String,
        /// The repository's own ONNX graph, which was not asked for.
        graph: Option<String>,
    },

    /// The repository has no weights at all.
    #[error(
        "{model_id} at {commit} has no *.safetensors{}", no_weights(graph.as_deref())
    )]
    NoWeights {
        /// The model.
        model_id: String,
        /// The commit.
        commit: String,
        /// The repository's own ONNX graph, which was not asked for.
        graph: Option<String>,
    },

    /// What came is not what should have come, and came so again.
    #[error(
        "{path} arrived damaged twice: {what}; something between here and {host} changes files, a proxy perhaps"
    )]
    Damaged {
        /// The file.
        path: String,
        /// What was expected and what came.
        what: String,
        /// Who sent it.
        host: String,
    },

    /// The server does not speak as a Hub does.
    #[error("{url} does not answer as a Hub does: {what}; check HF_ENDPOINT")]
    Protocol {
        /// The address, without its query.
        url: String,
        /// What is wrong.
        what: String,
    },

    /// The server refuses for a reason of its own.
    #[error("{url} answers {status}{}", said(.message))]
    Status {
        /// The address, without its query.
        url: String,
        /// The status.
        status: u16,
        /// The server's words; may be empty.
        message: String,
    },

    /// The disk has not the room.
    #[error(
        "{} more are to be downloaded to {}, and {} are free there; make room, or name another disk with HF_HUB_CACHE",
        human_size(*.needed_bytes),
        .cache.display(),
        human_size(*.free_bytes)
    )]
    NoRoom {
        /// What is still missing of the model.
        needed_bytes: u64,
        /// What the file system has left.
        free_bytes: u64,
        /// The cache.
        cache: PathBuf,
    },

    /// There is nowhere to put it.
    #[error("no folder for the Hub's cache: set HF_HUB_CACHE, HF_HOME or HOME")]
    NoCache,

    /// The cache cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },

    /// The caller wished to stop. What is here is kept, and the next fetch goes on from it.
    #[error("stopped; what was downloaded is kept, and the next run goes on from there")]
    Stopped,
}

fn no_weights(graph: Option<&str>) -> String {
    match graph {
        Some(graph) => format!("; its weights are in {graph}, which was not asked for"),
        None => "; check that it is a model and not an adapter's or a data set's page".to_owned(),
    }
}

impl FetchError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether the Hub could not be asked, so that what the cache has may do instead.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::RateLimited { .. } => true,
            // Too slow, too often, or not in order: the same may be answered later.
            Self::Status { status, .. } => *status >= 500 || matches!(status, 408 | 429),
            _ => false,
        }
    }

    /// The exit code of a command that ends with this error, one of [`model_store::exit`].
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Name { .. } | Self::Environment { .. } => exit::USAGE,
            Self::Offline { .. }
            | Self::NotFound { .. }
            | Self::RevisionNotFound { .. }
            | Self::NoWeights { .. } => exit::NOT_FOUND,
            Self::Gated { .. } | Self::BadToken { .. } | Self::Disabled { .. } | Self::OnlyPickles { .. } => {
                exit::REFUSED
            }
            Self::Unreachable { .. }
            | Self::RateLimited { .. }
            | Self::EntryNotFound { .. }
            | Self::Damaged { .. }
            | Self::Protocol { .. }
            | Self::Status { .. } => exit::REMOTE,
            Self::NoRoom { .. } | Self::NoCache => exit::ENVIRONMENT,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied
                | io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::ReadOnlyFilesystem => exit::ENVIRONMENT,
                _ => exit::FAILURE,
            },
            Self::Stopped => exit::INTERRUPTED,
        }
    }
}

fn gated(page: &str, with_token: bool) -> String {
    if with_token {
        format!("accept its terms at {page} with the account that HF_TOKEN belongs to, then run it again")
    } else {
        format!("accept its terms at {page}, then set HF_TOKEN to a token of that account")
    }
}

fn private(with_token: bool) -> &'static str {
    if with_token {
        ", or it is private and the account of HF_TOKEN may not see it; check the name, and what the token may read"
    } else {
        ", or it is private; check the name, or set HF_TOKEN to a token that may read it"
    }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

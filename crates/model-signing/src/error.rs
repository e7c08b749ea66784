//! What can be wrong with a signature, a statement or a key.

use std::io;
use std::path::PathBuf;

use crate::key::Fingerprint;

/// Why a signature is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// It is larger than any signature.
    #[error("is larger than {} MiB", crate::MAX_BUNDLE_BYTES >> 20)]
    TooLarge,
    /// It is not what the format says.
    #[error("is not a model signature: {0}")]
    Malformed(String),
    /// It is a signature of a kind that is not checked here.
    #[error("is of a kind that is not supported: {0}")]
    Unsupported(String),
    /// It was made with a key that nobody trusts.
    #[error("was made with key {0}, which is not trusted")]
    UnknownKey(String),
    /// The key that made it is trusted, but it did not sign this.
    #[error("does not fit what it claims to sign: key {0} signed something else, or it was altered")]
    Wrong(Fingerprint),
    /// It does not say who made it, and none of the trusted keys did.
    #[error("names no key, and fits none of those that are trusted")]
    NoKeyFits,
}

/// Why files cannot be signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    /// A path that is not relative to the model, or not in its plainest form.
    #[error("{path:?} {reason}")]
    Path {
        /// The path.
        path: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Two files of one name.
    #[error("{path:?} is named twice")]
    Twice {
        /// The name.
        path: String,
    },
    /// A model without a file.
    #[error("there is no file to sign")]
    Empty,
    /// The signature would be larger than one that is read.
    #[error("the signature would be larger than {} MiB; pack the files", crate::MAX_BUNDLE_BYTES >> 20)]
    TooLarge,
    /// It could not be written as JSON.
    #[error("the statement could not be written: {0}")]
    Json(String),
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It is not a key in PEM, or of another kind.
    #[error("{0}")]
    Unusable(String),
    /// Others could have read or replaced the private key.
    #[error(
        "{} has mode {mode:o}, so others may read or replace the private key; `chmod 600 {0}`, and make a new key \
         if somebody may have done so", .path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file could not be read.
    #[error("could not read the key {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key's file that is not a usable key.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KeyError>,
    },
    /// The system has no randomness to give.
    #[error("the system gave no random numbers for a key: {0}")]
    NoRandomness(String),
}

//! A model of the Hugging Face Hub as local files whose every byte was checked.
//!
//! A branch or tag is resolved to a commit once; what that commit has of weights, configurations and tokenizers is
//! downloaded, several files at once, each verified by its SHA-256 or git digest while it is written. What was
//! interrupted goes on where it stopped. The cache is the one of `huggingface_hub`: what either of them has
//! downloaded the other finds, and they wait for each other's locks.
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use hub_fetch::{Hub, Request};
//!
//! # fn main() -> Result<(), hub_fetch::FetchError> {
//! let stop = AtomicBool::new(false);
//! let snapshot = Hub::from_env()?.fetch(&Request::new("sentence-transformers/all-MiniLM-L6-v2"), &(), &stop)?;
//! println!("{} at {}", snapshot.path.display(), snapshot.commit);
//! # Ok(())
//! # }
//! ```
//!
//! # Environment
//!
//! [`Hub::from_env`] honours `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_DISABLE_IMPLICIT_TOKEN`, `HF_HOME`,
//! `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_HUB_DOWNLOAD_TIMEOUT`, `HF_HUB_ETAG_TIMEOUT`, `HTTP_PROXY`, `HTTPS_PROXY`,
//! `ALL_PROXY` and `NO_PROXY` as `huggingface_hub` does, and `SSL_CERT_FILE` and the system's certificates for TLS.
//!
//! # Time-outs
//!
//! `HF_HUB_ETAG_TIMEOUT` (10 s) is how long the Hub may take for each step of an answer about a model: to be found, to
//! connect, to begin, and between two reads of it. `HF_HUB_DOWNLOAD_TIMEOUT` (10 s) is the same for a file's bytes. Both
//! are bounds on silence, not on the whole: a slow download that goes on goes on. What times out is tried again as
//! [`Retry`] says, five times with longer and longer waits unless it is told otherwise; with something in the cache to
//! fall back on, a question is asked once. 0 is the default, and nothing waits longer than a day.
//!
//! # Limits
//!
//! Pickles and code are never downloaded. Large files come over plain HTTP, from the same addresses as with
//! `HF_HUB_DISABLE_XET=1`. A proxy is asked to connect (`CONNECT`) for `http://` addresses too. The cache needs a file
//! system with symbolic links and `flock`.

mod api;
mod cache;
mod client;
mod digest;
mod download;
mod environment;
mod error;
mod fetch;
mod listing;
mod local;
mod lock;
mod names;
mod part;
mod progress;
mod proxies;
mod request;
mod retry;
mod selection;
mod snapshot;
mod token;
mod url;

/// What fuzzing needs of what is nobody else's business.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::listing::fuzzing::listing;
}

pub use environment::Hub;
pub use error::FetchError;
pub use progress::{Plan, PlanFile, Progress};
pub use request::{Existing, Graphs, Request};
pub use retry::Retry;
pub use snapshot::{Proof, Snapshot, SnapshotFile, Source};
pub use token::Token;

/// The branch that is meant where none is named.
pub const DEFAULT_REVISION: &str = "main";

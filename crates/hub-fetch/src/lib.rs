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

pub use environment::Hub;
pub use error::FetchError;
pub use progress::{Plan, PlanFile, Progress};
pub use request::{Existing, Graphs, Request};
pub use retry::Retry;
pub use snapshot::{Proof, Snapshot, SnapshotFile, Source};
pub use token::Token;

/// The branch that is meant where none is named.
pub const DEFAULT_REVISION: &str = "main";

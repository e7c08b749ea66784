//! Folders of models and a model store, served as a Hugging Face Hub serves them.
//!
//! What is spoken is the part of the Hub's protocol that downloads: `/api/models/{id}`, `/revision/`, `/tree/` and
//! `/{id}/resolve/{revision}/{path}` with entity tags, ranges and, where one is asked for, a second address that
//! large files are redirected to. `huggingface_hub`, `transformers` and this workspace's `hub-fetch` work against it
//! with `HF_ENDPOINT` set.
//!
//! ```
//! use hub_server::{Config, Server};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let models = scratch.path().to_owned();
//! std::fs::create_dir_all(models.join("acme/tiny"))?;
//! std::fs::write(models.join("acme/tiny/config.json"), b"{}")?;
//!
//! let server = Server::start(Config { folders: vec![models], ..Config::default() })?;
//! assert!(server.url().starts_with("http://127.0.0.1:"));
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! Reading only: nothing can be uploaded. No TLS: put a reverse proxy in front of it. Models only, no data sets. A
//! commit is a digest of what a folder holds now; what it held before cannot be asked for.

mod access;
mod answer;
mod body;
mod catalogue;
mod cdn;
#[cfg(feature = "faults")]
pub mod faults;
mod folder;
mod pages;
mod patient;
mod range;
mod route;
mod server;
mod service;
mod snapshot;
mod store;

pub use access::{Rules, RulesError};
pub use catalogue::CatalogueError;
pub use server::{Config, ServeError, Server};

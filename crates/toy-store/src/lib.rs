//! A miniature of a real model store, made from a seed: small models that were really trained, in the layouts that
//! Hugging Face tools read, published through [`model_store`].
//!
//! - `analyst`: a BERT classifier of sentences into negative, neutral and positive, with its `WordPiece` tokenizer;
//! - `memory`: a sentence-transformers embedder whose vectors of one topic lie together;
//! - `synthesizer`: a Llama-type language model that tells small news stories, and its legacy alias [`ALIAS`].
//!
//! Each has two versions; the second was trained on from the first. Everything depends on the seed alone: the same seed
//! gives the same bytes on every machine, because training uses only IEEE operations in a fixed order (no threads within a
//! model, no fused multiply-add, `libm` instead of the platform's functions).
//!
//! ```
//! use toy_store::{DEFAULT_SEED, ToyVersion};
//!
//! # fn main() -> std::io::Result<()> {
//! let dir = tempfile::tempdir()?;
//! toy_store::memory(DEFAULT_SEED, ToyVersion::V2).write_to(dir.path())?;
//! assert!(dir.path().join("1_Pooling/config.json").exists());
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! These are samples: they know the few hundred words of `data/*.grammar`, and every other word by its letters only.

mod adam;
mod folder;
mod grammar;
mod math;
mod matrix;
mod model;
mod ops;
mod params;
mod publish;
mod reference;
mod rng;
mod tape;
mod tokenizer;
mod toy;
mod train;

pub use folder::Folder;
pub use publish::{ALIAS, Outcome, PublishedToy, ToyError, publish};
pub use reference::Reference;
pub use toy::{
    DEFAULT_SEED, Kind, Toy, ToyVersion, analyst, folder, generate, held_out_sentences, memory,
    roberta_classifier, synthesizer, write_model,
};

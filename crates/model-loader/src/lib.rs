//! An agent's way to its models: find the folder, embed, classify, write, and follow what is current.
//!
//! The model store comes first: an agent's `current` version, verified, opened once and leased while it is in use. What the
//! store does not serve may come from a folder, the agent map or the local Hub cache, with a warning, unless
//! `STRICT_MODEL_STORE` forbids it. There is no network code here, unless the feature `hub` is on and [`HubAccess`] asks for
//! it; a pickle is never read, and no code of a model's folder is run.
//!
//! [`SentenceEmbedder`] gives the vectors that sentence-transformers gives (cosine ≥ 0.99999), [`TextClassifier`] the labels
//! that transformers gives, [`CausalLm`] the same tokens. [`Reloading`] keeps one of them at the agent's current version while
//! requests run, and [`shared()`] loads it once for a process. [`Reference`] gives the numbers that an exported graph or an
//! engine is held against.
//!
//! ```no_run
//! use model_loader::{Reloading, SentenceEmbedder};
//!
//! let memory = Reloading::<SentenceEmbedder>::for_agent("memory")?;
//! // One model for a whole request, whatever becomes current meanwhile.
//! let embedder = memory.get();
//! let vectors = embedder.embed(&["Ships in the Suez Canal wait for the wind to fall."])?;
//! assert_eq!(vectors[0].len(), embedder.dimension());
//! # Ok::<(), model_loader::LoadError>(())
//! ```

mod agent_map;
mod backend;
mod batch;
mod classify;
mod config;
mod encoder;
mod error;
mod files;
#[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
mod graph;
pub mod hub_cache;
mod lm;
mod metadata;
mod model;
#[cfg(feature = "onnxruntime")]
pub mod onnx;
mod pooling;
mod ragged;
mod reference;
mod reload;
mod resolve;
mod sentence;
mod shared;
mod signed;
#[cfg(feature = "tensorrt")]
mod tensorrt;
mod tokenizer;
mod verified;
mod weights;

pub use agent_map::{AgentMap, BaseModel, MapAdapter, MapEntry};
pub use backend::{Backend, Device, LoadOptions};
pub use batch::{TokenBatch, Tokens};
pub use classify::{Prediction, TextClassifier};
pub use config::{Activation, Family, ModelConfig, SUPPORTED_MODEL_TYPES, Scoring};
pub use encoder::{Encoder, Hidden};
pub use error::LoadError;
pub use lm::{
    CausalLm, ChatMessage, ChatOptions, Completion, FinishReason, GenerateOptions, Generation, LmConfig,
    LmOptions, LmTokenizer, Pairs, Piece, Precision, Prompt, Rope,
};
pub use metadata::{AgentMetadata, metadata};
pub use model::{Contract, Loaded, Model};
pub use pooling::{Pooling, PoolingMode};
pub use reference::{Head, Output, Reference};
pub use reload::{Refused, ReloadEvent, ReloadStatus, Reloading, Watching};
pub use resolve::{
    HubAccess, Loading, Looked, Outcome, Resolution, ResolveOptions, ResolvedAdapter, ResolvedModel, Source,
    Strictness, dry_run, load, load_resolved, resolve,
};
pub use sentence::{
    Chunk, Chunking, EmbedIter, EmbedOptions, LongEmbedding, Quantization, Quantized, Ranges,
    SentenceEmbedder, Similarity, quantize,
};
pub use shared::shared;
pub use signed::Signatures;
pub use tokenizer::{SENTENCE_CONFIG_NAMES, TokenSpan, Tokenizer};
pub use verified::Verify;

//! A Hugging Face model folder to ONNX, without Python and without copying the weights.
//!
//! An ONNX initializer may live in another file as (location, offset, length), and a safetensors file is exactly
//! that: raw little-endian tensors at known offsets. So the `model.onnx` written here holds only the graph, a few
//! tens of kilobytes, and points into the `model.safetensors` beside it. Reading a header is all that opening a
//! model costs; an 8B model exports as fast as a small one.
//!
//! Limits: the graph must lie in the folder of the weights (runtimes refuse a location outside it). Pickled weights
//! (`pytorch_model.bin`) are never opened. Families: see [`SUPPORTED`]; encoders give hidden states, sentence embeddings and
//! class scores, decoders logits with or without a cache ([`Head`]). What a checkpoint asks for and is not computed here is
//! refused by name.
//!
//! ```
//! use onnx_export::{Checkpoint, ExportOptions, Head, Precision, export};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let folder = scratch.path();
//! # toy_store::analyst(0, toy_store::ToyVersion::V1).write_to(folder)?;
//! let checkpoint = Checkpoint::open(folder)?;
//! let exported = export(&checkpoint, &ExportOptions::new(Head::SequenceClassification, Precision::Fp16))?;
//! std::fs::write(folder.join("model.onnx"), &exported.onnx)?;
//! assert_eq!(exported.report.outputs[0].name, "logits");
//! # Ok(())
//! # }
//! ```

mod attention;
mod causal;
mod checkpoint;
mod dtype;
mod error;
mod export;
mod families;
mod graph;
mod heads;
mod ledger;
mod materialise;
mod norms;
mod ops;
mod packed;
mod probe;
/// ONNX's protocol-buffer messages, as far as a transformer graph uses them.
pub mod proto;
mod quantize;
mod range;
mod rotary;
mod sentence;

pub use checkpoint::{Checkpoint, Tensor};
pub use dtype::{Bf16, DataType, Precision};
pub use error::ExportError;
pub use export::{
    ExportOptions, ExportReport, Exported, Lowering, TensorDescription, export, require_supported,
};
pub use families::SUPPORTED;
/// A module name with `*`, for [`ExportOptions::keep_fp32`].
pub use glob::Pattern;
pub use heads::{Head, Pooling, SentenceHead};
pub use ledger::{CastCount, KeptModule};
pub use materialise::{ConvertedWeights, materialise, materialise_graph};
pub use packed::{Packed, PackedBits, PackedLayer};
pub use probe::{Probe, node_names, probe};
pub use quantize::{LinearRange, Ranges, Tap};
pub use range::{F16_MAX, RangeProbe, TooLarge, range_probe, range_watch};
pub use sentence::{SentenceStep, StepActivation};

//! What differs between two safetensors checkpoints, tensor by tensor.
//!
//! Only headers are kept in memory. Bytes are compared in pieces of 256 KiB, so a checkpoint may be larger
//! than the machine. Tensors are matched by name across all files of a checkpoint: one that was only sharded
//! otherwise does not differ.
//!
//! ```
//! use safetensors::{Dtype, tensor::TensorView};
//! use tensor_diff::{TensorTable, diff};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let file = |byte: u8| {
//!     let bytes = [byte, 0];
//!     safetensors::serialize([("labels", TensorView::new(Dtype::U8, vec![2], &bytes)?)], None)
//! };
//! let (old, new) = (TensorTable::read("old", file(1)?)?, TensorTable::read("new", file(2)?)?);
//! let found = diff(&old, &new)?;
//! assert_eq!(found.changed[0].name, "labels");
//! assert!(found.changed[0].bytes_differ && found.added.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! A header is at most 100 MB, as the format says. A header that contradicts itself or its file is an error
//! that names the file: nothing of such a file is compared. Numeric differences are given for F64, F32, F16
//! and BF16.

mod compare;
mod error;
mod header;
mod source;
mod table;

pub use compare::{ChangedTensor, NamedTensor, Sides, TensorDiff, diff, diff_observed};
pub use error::TensorError;
pub use header::{MAX_HEADER_BYTES, Tensor};
pub use source::ReadAt;
pub use table::{TensorTable, checkpoint_name};

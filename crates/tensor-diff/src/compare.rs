//! Two checkpoints side by side.

use std::ops::ControlFlow;

use half::{bf16, f16};
use safetensors::Dtype;
use serde::Serialize;

use crate::error::TensorError;
use crate::header::Tensor;
use crate::table::{Placed, Source, TensorTable};

/// How much of each side is in memory at a time; a multiple of every element's size.
const PIECE_BYTES: usize = 256 * 1024;

/// A value of the old side and the one of the new side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sides<T> {
    /// In the old checkpoint.
    pub old: T,
    /// In the new one.
    pub new: T,
}

/// A tensor that is on one side only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// What it is.
    #[serde(flatten)]
    pub tensor: Tensor,
}

/// A tensor that is on both sides, and not the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChangedTensor {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Sides<Dtype>,
    /// Its shape.
    pub shape: Sides<Vec<usize>>,
    /// How many bytes it has.
    pub bytes: Sides<u64>,
    /// Whether its bytes differ. They need not where only the shape does.
    pub bytes_differ: bool,
    /// The largest distance of two elements in the same place, computed in f64. `None` where types or numbers
    /// of elements differ, the type is not F64, F32, F16 or BF16, or two different elements are not both
    /// finite.
    pub max_abs_difference: Option<f64>,
}

/// What differs between two checkpoints; each list in the order of names.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TensorDiff {
    /// Only in the new one.
    pub added: Vec<NamedTensor>,
    /// Only in the old one.
    pub removed: Vec<NamedTensor>,
    /// In both, with another dtype, shape or bytes.
    pub changed: Vec<ChangedTensor>,
    /// How many are the same in both.
    pub unchanged: usize,
    /// How many bytes those have.
    pub unchanged_bytes: u64,
    /// Whether the headers' `__metadata__` differ.
    pub metadata_differs: bool,
}

impl TensorDiff {
    /// Whether both sides hold the same tensors. Files may differ all the same: in their order, their padding
    /// or `__metadata__`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// Compares two checkpoints.
pub fn diff(old: &TensorTable, new: &TensorTable) -> Result<TensorDiff, TensorError> {
    diff_observed(old, new, &mut |_| ControlFlow::Continue(()))
}

/// As [`diff`], calling `observe` with the number of the new side's bytes it is through with since the last
/// call. [`ControlFlow::Break`] ends with [`TensorError::Stopped`].
pub fn diff_observed(
    old: &TensorTable,
    new: &TensorTable,
    observe: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<TensorDiff, TensorError> {
    let mut found = TensorDiff { metadata_differs: !old.has_metadata_of(new), ..TensorDiff::default() };
    found.removed = only_in(old, new);
    found.added = only_in(new, old);
    let mut pieces = Pieces::default();
    for (name, new) in new.placed() {
        let Some(old) = old.placed().get(name) else {
            step(observe, new.tensor.bytes)?;
            continue;
        };
        let (differ, max_abs_difference) = pieces.compare(old, new, observe)?;
        let (was, is) = (&old.tensor, &new.tensor);
        if !differ && was.dtype == is.dtype && was.shape == is.shape {
            found.unchanged += 1;
            found.unchanged_bytes += is.bytes;
            continue;
        }
        found.changed.push(ChangedTensor {
            name: name.clone(),
            dtype: Sides { old: was.dtype, new: is.dtype },
            shape: Sides { old: was.shape.clone(), new: is.shape.clone() },
            bytes: Sides { old: was.bytes, new: is.bytes },
            bytes_differ: differ,
            max_abs_difference,
        });
    }
    Ok(found)
}

fn only_in(one: &TensorTable, other: &TensorTable) -> Vec<NamedTensor> {
    let alone = one.tensors().filter(|(name, _)| other.tensor(name).is_none());
    alone.map(|(name, tensor)| NamedTensor { name: name.to_owned(), tensor: tensor.clone() }).collect()
}

fn step(observe: &mut dyn FnMut(u64) -> ControlFlow<()>, bytes: u64) -> Result<(), TensorError> {
    match observe(bytes) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(TensorError::Stopped),
    }
}

/// The memory of a comparison.
struct Pieces {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Default for Pieces {
    fn default() -> Self {
        Self { old: vec![0; PIECE_BYTES], new: vec![0; PIECE_BYTES] }
    }
}

impl Pieces {
    /// Whether the bytes differ, and by how much.
    fn compare(
        &mut self,
        old: &Placed,
        new: &Placed,
        observe: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(bool, Option<f64>), TensorError> {
        let total = new.tensor.bytes;
        if old.tensor.bytes != total {
            step(observe, total)?;
            return Ok((true, None));
        }
        let distance =
            if old.tensor.dtype == new.tensor.dtype { distance_of(old.tensor.dtype) } else { None };
        let (mut differ, mut largest) = (false, distance.map(|_| 0.0));
        let mut done = 0;
        while done < total {
            // Nothing more is to be learned where no distance can be told.
            if differ && largest.is_none() {
                step(observe, total - done)?;
                break;
            }
            let count = usize::try_from(total - done).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let (was, is) = (&mut self.old[..count], &mut self.new[..count]);
            fill(was, &old.source, old.tensor.offset_bytes + done)?;
            fill(is, &new.source, new.tensor.offset_bytes + done)?;
            if was != is {
                differ = true;
                largest = match (distance, largest) {
                    (Some(distance), Some(largest)) => distance(was, is).map(|d| f64::max(d, largest)),
                    _ => None,
                };
            }
            done += count as u64;
            step(observe, count as u64)?;
        }
        Ok((differ, largest.filter(|_| differ)))
    }
}

fn fill(piece: &mut [u8], source: &Source, offset: u64) -> Result<(), TensorError> {
    source.bytes.read_exact_at(piece, offset).map_err(|e| TensorError::io(&source.name, e))
}

/// The largest distance of two elements in the same place; `None` where one is not a number.
type Distance = fn(&[u8], &[u8]) -> Option<f64>;

fn distance_of(dtype: Dtype) -> Option<Distance> {
    match dtype {
        Dtype::F64 => Some(|old, new| largest(old, new, f64::from_le_bytes)),
        Dtype::F32 => Some(|old, new| largest(old, new, |b| f32::from_le_bytes(b).into())),
        Dtype::F16 => Some(|old, new| largest(old, new, |b| f16::from_le_bytes(b).into())),
        Dtype::BF16 => Some(|old, new| largest(old, new, |b| bf16::from_le_bytes(b).into())),
        _ => None,
    }
}

fn largest<const N: usize>(old: &[u8], new: &[u8], number: impl Fn([u8; N]) -> f64) -> Option<f64> {
    let (old, _) = old.as_chunks::<N>();
    let (new, _) = new.as_chunks::<N>();
    let mut largest = 0.0;
    for (old, new) in old.iter().zip(new).filter(|(old, new)| old != new) {
        let distance = (number(*old) - number(*new)).abs();
        if !distance.is_finite() {
            return None;
        }
        largest = f64::max(largest, distance);
    }
    Some(largest)
}

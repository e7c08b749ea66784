//! The weights of linear layers, read from their files.

use std::fs::File;
use std::os::unix::fs::FileExt;

use onnx_export::{Checkpoint, DataType};

use crate::error::CompileError;

/// Bytes that are read at once where rows do not matter.
const CHUNK: usize = 1 << 20;

/// The largest magnitude in a tensor, which is read a piece at a time.
pub(crate) fn largest_magnitude(checkpoint: &Checkpoint, name: &str) -> Result<f32, CompileError> {
    let tensor = checkpoint.tensor(name)?;
    let path = checkpoint.folder().join(&tensor.file);
    let failed = |source| CompileError::Io { doing: "read the weights in", path: path.clone(), source };
    let file = File::open(&path).map_err(failed)?;
    let size = size_of(tensor.dtype);
    let mut bytes = vec![0; CHUNK];
    let (mut at, end) = (tensor.offset_bytes, tensor.offset_bytes + tensor.length_bytes);
    let mut largest = 0.0_f32;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let piece = &mut bytes[..left];
        file.read_exact_at(piece, at).map_err(failed)?;
        at += left as u64;
        let found = match tensor.dtype {
            DataType::F32 => largest_of(piece.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            dtype => largest_of(piece.chunks_exact(size).map(|bytes| number(bytes, dtype))),
        };
        largest = largest.max(found);
    }
    Ok(largest)
}

/// By a comparison that is an instruction of its own, for many numbers at a time; what is no number does not count.
fn largest_of(numbers: impl Iterator<Item = f32>) -> f32 {
    numbers.fold(0.0, |largest, x| if x.abs() > largest { x.abs() } else { largest })
}

/// Bytes of a number of a type that weights are stored in.
fn size_of(dtype: DataType) -> usize {
    match dtype {
        DataType::F16 | DataType::Bf16 => 2,
        DataType::F32 => 4,
        _ => 8,
    }
}

/// A layer's weight, `[outputs, inputs]`.
pub(super) fn read(checkpoint: &Checkpoint, layer: &str) -> Result<Vec<f32>, CompileError> {
    let mut weight = Vec::new();
    each_row(checkpoint, layer, |row| weight.extend_from_slice(row))?;
    Ok(weight)
}

/// Shows each row of a layer's weight, read from its file one at a time.
pub(crate) fn each_row(
    checkpoint: &Checkpoint,
    layer: &str,
    mut see: impl FnMut(&[f32]),
) -> Result<(), CompileError> {
    let tensor = checkpoint.tensor(&format!("{layer}.weight"))?;
    let path = checkpoint.folder().join(&tensor.file);
    let failed = |source| CompileError::Io { doing: "read the weights in", path: path.clone(), source };
    let file = File::open(&path).map_err(failed)?;
    let rows = tensor.shape.first().copied().unwrap_or_default();
    let columns = tensor.shape.iter().skip(1).product::<usize>();
    let size = size_of(tensor.dtype);
    let mut bytes = vec![0; columns * size];
    let mut row = Vec::with_capacity(columns);
    let mut at = tensor.offset_bytes;
    for _ in 0..rows {
        file.read_exact_at(&mut bytes, at).map_err(failed)?;
        at += bytes.len() as u64;
        row.clear();
        row.extend(bytes.chunks_exact(size).map(|bytes| number(bytes, tensor.dtype)));
        see(&row);
    }
    Ok(())
}

fn number(bytes: &[u8], dtype: DataType) -> f32 {
    fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().unwrap_or([0; N])
    }
    match dtype {
        DataType::F16 => half::f16::from_le_bytes(array(bytes)).to_f32(),
        DataType::Bf16 => half::bf16::from_le_bytes(array(bytes)).to_f32(),
        DataType::F32 => f32::from_le_bytes(array(bytes)),
        #[expect(clippy::cast_possible_truncation, reason = "a weight fits float32, or the gate shows it")]
        _ => f64::from_le_bytes(array(bytes)) as f32,
    }
}

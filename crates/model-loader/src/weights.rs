//! The weights of a folder: one `model.safetensors`, or the shards of `model.safetensors.index.json`.
//!
//! Each tensor is read once, in pieces, converted to `f32` and checked for NaN and infinity on the way. Nothing is
//! mapped: what candle computes with must be owned memory, so a map would be copied anyway, and a file cut short under
//! a map kills the process where a read gives an error.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use crate::LoadError;
use crate::files::{self, read_json};

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Read in pieces that stay in the cache between the read and the conversion.
const PIECE_BYTES: usize = 256 << 10;

/// The opened weights of one folder.
#[derive(Debug)]
pub(crate) struct Weights {
    shards: Vec<Shard>,
    /// The file to name when no shard has a tensor.
    source: PathBuf,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    header: Metadata,
    data_start: u64,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Opens the weights in `dir` and reads their headers.
    pub(crate) fn open(dir: &Path) -> Result<Self, LoadError> {
        let single = dir.join("model.safetensors");
        if single.exists() {
            return Ok(Self { shards: vec![Shard::open(single.clone())?], source: single });
        }
        let index_path = dir.join("model.safetensors.index.json");
        let Some(index) = read_json::<Index>(&index_path)? else {
            let pickles = ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.bin"];
            return Err(match pickles.iter().map(|name| dir.join(name)).find(|path| path.exists()) {
                Some(path) => LoadError::Pickle { path },
                None => LoadError::Missing {
                    path: single,
                    next: "a model folder has its weights there, or in shards beside a model.safetensors.index.json"
                        .to_owned(),
                },
            });
        };
        let mut names: Vec<_> = index.weight_map.into_values().collect();
        names.sort_unstable();
        names.dedup();
        if let Some(name) = names.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
            let reason = format!("`weight_map` names the shard `{name}`, which is not a file beside it");
            return Err(LoadError::config(&index_path, reason));
        }
        let shards = names.iter().map(|name| Shard::open(dir.join(name))).collect::<Result<_, _>>()?;
        Ok(Self { shards, source: index_path })
    }

    /// Opens one safetensors file; `next` says where it should have come from.
    pub(crate) fn open_file(path: &Path, next: &str) -> Result<Self, LoadError> {
        let shard = match Shard::open(path.to_owned()) {
            Err(LoadError::Missing { path, .. }) => {
                return Err(LoadError::Missing { path, next: next.to_owned() });
            }
            shard => shard?,
        };
        Ok(Self { shards: vec![shard], source: path.to_owned() })
    }

    /// The names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.shards.iter().flat_map(|shard| shard.header.offset_keys())
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.shards.iter().any(|shard| shard.header.info(name).is_some())
    }

    /// The shape of a tensor, if there is one of this name.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shards.iter().find_map(|shard| shard.header.info(name)).map(|info| info.shape.as_slice())
    }

    /// The file that holds a tensor, or that should.
    pub(crate) fn path_of(&self, name: &str) -> &Path {
        let shard = self.shards.iter().find(|shard| shard.header.info(name).is_some());
        shard.map_or(&self.source, |shard| &shard.path)
    }

    /// Appends one tensor to `out` as `f32`, row-major, after checking its shape.
    pub(crate) fn read(&self, name: &str, shape: &[usize], out: &mut Vec<f32>) -> Result<(), LoadError> {
        let error = |reason: String| LoadError::Tensor {
            path: self.path_of(name).to_owned(),
            tensor: name.to_owned(),
            reason,
        };
        let (shard, info) = self
            .shards
            .iter()
            .find_map(|shard| shard.header.info(name).map(|info| (shard, info)))
            .ok_or_else(|| error("is missing: these weights belong to another config.json".to_owned()))?;
        if info.shape != shape {
            return Err(error(format!(
                "has the shape {:?} where config.json asks for {shape:?}",
                info.shape
            )));
        }
        let width = match info.dtype {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            other => return Err(error(format!("has the dtype {other:?}; supported: F64, F32, F16, BF16"))),
        };
        let (start, end) = info.data_offsets;
        let count = (end - start) / width;
        if count != shape.iter().product::<usize>() {
            return Err(error(format!("has {} bytes, which is not its shape's size", end - start)));
        }
        out.reserve_exact(count);
        let first = out.len();
        let mut piece = vec![0; PIECE_BYTES.min(end - start)];
        let mut at = start;
        while at < end {
            let bytes = &mut piece[..PIECE_BYTES.min(end - at)];
            shard.read(bytes, shard.data_start + at as u64)?;
            at += bytes.len();
            let from = out.len();
            match info.dtype {
                Dtype::F64 => {
                    #[expect(clippy::cast_possible_truncation, reason = "fp64 weights are rounded to fp32")]
                    out.extend(numbers(bytes, f64::from_le_bytes).map(|x| x as f32));
                }
                Dtype::F32 => out.extend(numbers(bytes, f32::from_le_bytes)),
                Dtype::F16 => out.extend(numbers(bytes, f16::from_le_bytes).map(f16::to_f32)),
                _ => out.extend(numbers(bytes, bf16::from_le_bytes).map(bf16::to_f32)),
            }
            if !all_finite(&out[from..]) {
                let index = out[first..].iter().position(|x| !x.is_finite()).unwrap_or_default();
                let value = out[first + index];
                return Err(error(format!(
                    "holds {value} at element {index}: the model is broken, fetch it again"
                )));
            }
        }
        Ok(())
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, LoadError> {
        let file = files::open(&path)?.ok_or_else(|| LoadError::Missing {
            path: path.clone(),
            next: "model.safetensors.index.json names it as a shard; fetch it".to_owned(),
        })?;
        let bytes = file.metadata().map_err(LoadError::read(&path))?.len();
        let damaged = |reason| LoadError::Weights { path: path.clone(), reason };
        let read = |buffer: &mut [u8], at| file.read_exact_at(buffer, at).map_err(LoadError::read(&path));
        if bytes < 8 {
            return Err(damaged(format!("it has {bytes} bytes, too few for a header")));
        }
        let mut length = [0; 8];
        read(&mut length, 0)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES.min(bytes - 8) {
            return Err(damaged(format!("it has {bytes} bytes and claims a header of {header_bytes}")));
        }
        let mut json = vec![0; usize::try_from(header_bytes).unwrap_or_default()];
        read(&mut json, 8)?;
        let header: Metadata = serde_json::from_slice(&json)
            .map_err(|error| damaged(format!("its header is not that of a safetensors file ({error})")))?;
        let promised = (8 + header_bytes).saturating_add(header.data_len() as u64);
        if promised != bytes {
            return Err(damaged(format!("it has {bytes} bytes where its header promises {promised}")));
        }
        Ok(Self { path, file, header, data_start: 8 + header_bytes })
    }

    fn read(&self, buffer: &mut [u8], at: u64) -> Result<(), LoadError> {
        self.file.read_exact_at(buffer, at).map_err(LoadError::read(&self.path))
    }
}

fn numbers<const N: usize, T>(bytes: &[u8], convert: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks::<N>().0.iter().map(move |chunk| convert(*chunk))
}

/// Whether no element is NaN or infinite. Written without an early exit, so that it runs at the speed of memory.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    values.iter().fold(true, |finite, x| finite & (x.to_bits() & EXPONENT != EXPONENT))
}

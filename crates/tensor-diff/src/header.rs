//! The header of a safetensors file.
//!
//! Eight bytes say, as a little-endian number, how long the header is; then comes that much JSON; then the
//! tensors' bytes. What is checked:
//!
//! 1. the header is at most 100 MB, and no longer than the file;
//! 2. it is a JSON object, which begins with `{` at once and may end with spaces; no key comes twice;
//! 3. `__metadata__` maps strings to strings; any other key is a tensor with `dtype`, `shape` and
//!    `data_offsets`;
//! 4. a tensor's offsets enclose exactly as many bytes as its shape and dtype need;
//! 5. in the order of their offsets the tensors cover the rest of the file: no gap, no overlap, nothing left.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::TensorError;
use crate::source::ReadAt;

/// The longest header that the format allows.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// What the length of the header takes.
const LENGTH_BYTES: u64 = 8;
/// The one key that is not a tensor.
const METADATA_KEY: &str = "__metadata__";

/// A tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tensor {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// How many bytes it has.
    pub bytes: u64,
    /// Where in its file they begin.
    #[serde(skip)]
    pub offset_bytes: u64,
}

/// A header that keeps the rules.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) tensors: BTreeMap<String, Tensor>,
    pub(crate) metadata: BTreeSet<(String, String)>,
}

impl Header {
    /// Reads and checks the header of a file; `file` is what errors call it.
    pub(crate) fn read(file: &str, source: &dyn ReadAt) -> Result<Self, TensorError> {
        let io = |e| TensorError::io(file, e);
        let broken = |reason: String| TensorError::broken(file, reason);
        let file_bytes = source.len_bytes().map_err(io)?;
        let Some(rest_bytes) = file_bytes.checked_sub(LENGTH_BYTES) else {
            return Err(broken(format!(
                "it has {file_bytes} bytes, fewer than the length of its header takes"
            )));
        };
        let mut length = [0; size_of::<u64>()];
        source.read_exact_at(&mut length, 0).map_err(io)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES {
            return Err(broken(format!(
                "it claims a header of {length} bytes; the format allows {MAX_HEADER_BYTES}"
            )));
        }
        if length > rest_bytes {
            return Err(broken(format!("it claims a header of {length} bytes and has {file_bytes} in all")));
        }
        let mut json = vec![0; usize::try_from(length).map_err(|e| broken(e.to_string()))?];
        source.read_exact_at(&mut json, LENGTH_BYTES).map_err(io)?;
        if json.first() != Some(&b'{') {
            return Err(broken("its header does not begin with '{'".to_owned()));
        }
        let raw: RawHeader =
            serde_json::from_slice(&json).map_err(|e| broken(format!("its header cannot be read: {e}")))?;
        let tensors = placed(raw.tensors, LENGTH_BYTES + length, rest_bytes - length).map_err(broken)?;
        Ok(Self { tensors, metadata: raw.metadata.into_iter().collect() })
    }
}

/// Checks every tensor against its place, and all of them against the `data_bytes` that there are.
/// No framework has tensors of more axes: `PyTorch` and `NumPy` stop at 64.
const MAX_AXES: usize = 64;

fn placed(
    raw: BTreeMap<String, TensorInfo>,
    data_begin: u64,
    data_bytes: u64,
) -> Result<BTreeMap<String, Tensor>, String> {
    let mut in_order: Vec<_> = raw.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut covered = 0;
    for (name, TensorInfo { dtype, shape, data_offsets: (begin, end) }) in in_order {
        if shape.len() > MAX_AXES {
            return Err(format!("tensor {name:?} has {} axes, more than {MAX_AXES}", shape.len()));
        }
        let needed =
            size_bytes(*dtype, shape).ok_or_else(|| format!("tensor {name:?} has an impossible size"))?;
        if *begin as u64 != covered {
            return Err(format!("tensor {name:?} begins at {begin}, where {covered} is the first byte left"));
        }
        if end.checked_sub(*begin).map(|bytes| bytes as u64) != Some(needed) {
            return Err(format!(
                "tensor {name:?} lies from {begin} to {end}; its shape and {dtype} need {needed} bytes"
            ));
        }
        covered = *end as u64;
    }
    if covered != data_bytes {
        return Err(format!("its tensors need {covered} bytes after the header, and {data_bytes} are there"));
    }
    let tensor = |(name, info): (String, TensorInfo)| {
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        // No larger than the file, as was checked above.
        let (offset_bytes, bytes) = (data_begin + begin, end - begin);
        (name, Tensor { dtype: info.dtype, shape: info.shape, bytes, offset_bytes })
    };
    Ok(raw.into_iter().map(tensor).collect())
}

/// What a tensor needs; `None` where that is no whole number of bytes, or none that fits.
fn size_bytes(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let elements = shape.iter().try_fold(1_u64, |product, &axis| product.checked_mul(axis as u64))?;
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The JSON, as far as its types go.
struct RawHeader {
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Reads the object key by key: a map would quietly keep the last of two equal ones.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let (mut tensors, mut metadata) = (BTreeMap::new(), None);
        while let Some(key) = map.next_key::<String>()? {
            if key == METADATA_KEY {
                if metadata.replace(map.next_value()?).is_some() {
                    return Err(A::Error::custom("it has __metadata__ twice"));
                }
                continue;
            }
            match tensors.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(map.next_value()?);
                }
                Entry::Occupied(there) => {
                    return Err(A::Error::custom(format!("it has tensor {:?} twice", there.key())));
                }
            }
        }
        Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
    }
}

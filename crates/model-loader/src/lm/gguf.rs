//! The header of a GGUF file (versions 2 and 3), read with limits: whatever it claims has to fit into the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Shape};

use crate::LoadError;
use crate::files;

/// Real headers hold a vocabulary and its merges, and stay below 20 MB.
const MAX_HEADER_BYTES: u64 = 64 << 20;
const MAX_ENTRIES: u64 = 1 << 20;
/// Ten million values.
const MAX_LIST_BYTES: u64 = 256 << 20;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Arrays of arrays are not known to be used.
const MAX_DEPTH: usize = 2;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    List(Vec<Value>),
}

/// An opened GGUF file.
#[derive(Debug)]
pub(crate) struct Gguf {
    pub(crate) path: PathBuf,
    file: File,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, Info>,
    /// Where the tensors' offsets count from.
    data_start: u64,
}

#[derive(Debug, Clone)]
struct Info {
    /// Row-major, the fastest dimension last: the reverse of what the file has.
    shape: Vec<usize>,
    kind: GgmlDType,
    offset: u64,
    bytes: u64,
}

impl Gguf {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let file = files::open(path)?.ok_or_else(|| LoadError::Missing {
            path: path.to_owned(),
            next: "name a GGUF file that is there".to_owned(),
        })?;
        let size = file.metadata().map_err(LoadError::read(path))?.len();
        let reader = file.try_clone().map_err(LoadError::read(path))?;
        let mut header = Header {
            path,
            reader: BufReader::new(reader),
            left: size.min(MAX_HEADER_BYTES),
            memory_left: MAX_LIST_BYTES,
            size,
        };
        if header.bytes::<4>()? != *b"GGUF" {
            return Err(header.damaged("it does not begin with `GGUF`"));
        }
        let version = header.u32()?;
        if !(2..=3).contains(&version) {
            return Err(LoadError::Unsupported {
                path: path.to_owned(),
                what: "GGUF version",
                found: version.to_string(),
                supported: "2, 3 (little-endian)",
            });
        }
        let (tensor_count, entry_count) = (header.count()?, header.count()?);
        let mut metadata = HashMap::new();
        for _ in 0..entry_count {
            let key = header.text()?;
            let kind = header.u32()?;
            let value = header.value(kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(header.damaged(&format!("it has the key `{key}` twice")));
            }
        }
        let mut tensors = HashMap::new();
        for _ in 0..tensor_count {
            let name = header.text()?;
            let info = header.tensor(&name)?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(header.damaged(&format!("it has the tensor `{name}` twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Integer(n)) => u64::try_from(*n).ok().filter(|n| n.is_power_of_two()).unwrap_or(0),
            Some(_) => 0,
        };
        let end = header.reader.stream_position().map_err(LoadError::read(path))?;
        let data_start = end.checked_next_multiple_of(alignment);
        let data_start =
            data_start.ok_or_else(|| header.damaged("its `general.alignment` is no power of two"))?;
        for (name, info) in &tensors {
            let tensor_end = data_start.checked_add(info.offset).and_then(|at| at.checked_add(info.bytes));
            if tensor_end.is_none_or(|end| end > size) {
                let reason = format!("it has {size} bytes and ends before its tensor `{name}` does");
                return Err(header.damaged(&reason));
            }
        }
        Ok(Self { path: path.to_owned(), file, metadata, tensors, data_start })
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether a tensor's numbers are floats, and not blocks that share a scale.
    pub(crate) fn is_plain(&self, name: &str) -> bool {
        let plain = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];
        self.tensors.get(name).is_some_and(|info| plain.contains(&info.kind))
    }

    /// Reads a tensor's blocks after checking its shape.
    pub(crate) fn read(&self, name: &str, shape: &[usize], device: &Device) -> Result<QTensor, LoadError> {
        let error =
            |reason: String| LoadError::Tensor { path: self.path.clone(), tensor: name.to_owned(), reason };
        let info =
            self.tensors.get(name).ok_or_else(|| error("is missing from this GGUF file".to_owned()))?;
        if info.shape != shape {
            let found = &info.shape;
            return Err(error(format!("has the shape {found:?} where the metadata ask for {shape:?}")));
        }
        // It fits into the file, so it is no larger than that.
        let mut raw = vec![0; usize::try_from(info.bytes).unwrap_or_default()];
        let at = self.data_start + info.offset;
        self.file.read_exact_at(&mut raw, at).map_err(LoadError::read(&self.path))?;
        qtensor_from_ggml(info.kind, &raw, shape.to_vec(), device)
            .map_err(LoadError::compute("a tensor of a GGUF file"))
    }
}

struct Header<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    /// What may still be read of it.
    left: u64,
    /// What its lists may still take in memory.
    memory_left: u64,
    size: u64,
}

impl Header<'_> {
    fn damaged(&self, reason: &str) -> LoadError {
        LoadError::Weights { path: self.path.to_owned(), reason: reason.to_owned() }
    }

    fn take(&mut self, count: u64, what: &str) -> Result<(), LoadError> {
        let Some(left) = self.left.checked_sub(count) else {
            let size = self.size;
            return Err(
                self.damaged(&format!("it has {size} bytes and its header claims {count} for {what}"))
            );
        };
        self.left = left;
        Ok(())
    }

    /// A byte of a file becomes a value of two dozen: what a list takes in memory is limited by itself.
    fn spend(&mut self, bytes: u64) -> Result<(), LoadError> {
        let Some(left) = self.memory_left.checked_sub(bytes) else {
            return Err(self.damaged("the lists of its header are longer than any real one's"));
        };
        self.memory_left = left;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        self.take(N as u64, "a number")?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(LoadError::read(self.path))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, LoadError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn count(&mut self) -> Result<u64, LoadError> {
        let count = self.u64()?;
        if count > MAX_ENTRIES {
            return Err(self.damaged(&format!("its header claims {count} entries, of at most {MAX_ENTRIES}")));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, LoadError> {
        let count = self.u64()?;
        self.take(count, "a text")?;
        let mut bytes = vec![0; usize::try_from(count).unwrap_or_default()];
        self.reader.read_exact(&mut bytes).map_err(LoadError::read(self.path))?;
        String::from_utf8(bytes).map_err(|_| self.damaged("a text of its header is not UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, LoadError> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            8 => Value::Text(self.text()?),
            9 if depth < MAX_DEPTH => {
                let kind = self.u32()?;
                let count = self.count()?;
                let items = (0..count).map(|_| {
                    self.spend(size_of::<Value>() as u64)?;
                    self.value(kind, depth + 1)
                });
                Value::List(items.collect::<Result<_, _>>()?)
            }
            // Nothing here is that large but a hash.
            10 => Value::Integer(i64::try_from(self.u64()?).unwrap_or(i64::MAX)),
            11 => Value::Integer(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.damaged(&format!("its header has a value of the unknown kind {other}"))),
        })
    }

    fn tensor(&mut self, name: &str) -> Result<Info, LoadError> {
        let dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(self.damaged(&format!("its tensor `{name}` has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = usize::try_from(self.u64()?).ok().filter(|size| *size > 0);
            shape.push(
                size.ok_or_else(|| self.damaged(&format!("its tensor `{name}` has an empty dimension")))?,
            );
        }
        shape.reverse();
        let code = self.u32()?;
        let kind = kind(code).ok_or_else(|| LoadError::Tensor {
            path: self.path.to_owned(),
            tensor: name.to_owned(),
            reason: format!("has the GGML type {code}; supported: {SUPPORTED_KINDS}"),
        })?;
        let offset = self.u64()?;
        let count = shape.iter().try_fold(1_usize, |count, size| count.checked_mul(*size));
        let row = shape[shape.len() - 1];
        let bytes = count
            .filter(|_| row.is_multiple_of(kind.block_size()))
            .and_then(|count| (count / kind.block_size()).checked_mul(kind.type_size()));
        let bytes = bytes.ok_or_else(|| {
            let shape = Shape::from(shape.clone());
            self.damaged(&format!("its tensor `{name}` of the shape {shape:?} is no whole number of blocks"))
        })?;
        Ok(Info { shape, kind, offset, bytes: bytes as u64 })
    }
}

const SUPPORTED_KINDS: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

/// By the numbers of `ggml.h`.
fn kind(code: u32) -> Option<GgmlDType> {
    Some(match code {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

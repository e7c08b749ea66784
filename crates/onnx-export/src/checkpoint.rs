//! A Hugging Face model folder: `config.json` and the headers of its safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use serde::Deserialize;
use serde_json::Value;

use crate::{DataType, ExportError, sentence};

/// A `config.json` or an index past this size is no configuration (the largest real index files are below 1 MiB).
const MAX_JSON_BYTES: u64 = 64 << 20;
/// The limit that the safetensors format itself sets for a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor of a checkpoint: where its bytes lie, never the bytes themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// File name within the folder; with the name of a folder in it where a module lies there.
    pub file: String,
    /// Element type as stored.
    pub dtype: DataType,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// First byte within the file.
    pub offset_bytes: u64,
    /// Length in bytes.
    pub length_bytes: u64,
}

/// `model.safetensors.index.json`: which tensor is in which shard.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// An opened model folder. Opening reads `config.json` and the safetensors headers: its cost does not grow with the weights.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    /// Where in the folder the encoder lies, with a `/` at the end; empty for the folder itself.
    encoder: String,
    config: Value,
    tensors: BTreeMap<String, Tensor>,
    /// Tensors whose stored type no graph can hold; an error only if the model needs them.
    foreign: BTreeMap<String, (String, String)>,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and either `model.safetensors` or `model.safetensors.index.json` and its shards.
    ///
    /// In a sentence-transformers folder both may lie in a folder below, which `modules.json` names; the weights of the
    /// other modules are opened too, as `<module>.<tensor>`.
    ///
    /// Every shard's length is checked against its header, so a truncated file is found here.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, ExportError> {
        let folder = folder.into();
        let modules = sentence::modules(&folder)?.unwrap_or_default();
        let below = modules.iter().find(|module| module.class() == "Transformer" && !module.path.is_empty());
        let encoder = below.map(|module| format!("{}/", module.path)).unwrap_or_default();
        let config_path = folder.join(&encoder).join("config.json");
        let config = match read_json(&config_path) {
            Err(ExportError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(ExportError::NoConfig { folder: folder.join(encoder) });
            }
            config => config?,
        };
        let (tensors, foreign) = (BTreeMap::new(), BTreeMap::new());
        let mut checkpoint = Self { folder, encoder, config, tensors, foreign };
        for shard in checkpoint.shards()? {
            let file = format!("{}{shard}", checkpoint.encoder);
            checkpoint.read_shard(&file, "")?;
        }
        for module in modules.iter().filter(|module| matches!(module.class(), "Dense" | "LayerNorm")) {
            let file = format!("{}/model.safetensors", module.path);
            if checkpoint.folder.join(&file).is_file() {
                checkpoint.read_shard(&file, &format!("{}.", module.path))?;
            }
        }
        Ok(checkpoint)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Path of `config.json`.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.encoder_folder().join("config.json")
    }

    /// The folder of the encoder: [`folder`](Self::folder) itself, or one below it.
    #[must_use]
    pub fn encoder_folder(&self) -> PathBuf {
        // Without the `/` at the end, which would make another path of the same folder.
        match self.encoder.strip_suffix('/') {
            Some(below) => self.folder.join(below),
            None => self.folder.clone(),
        }
    }

    /// Whether it is a language model, which continues texts.
    #[must_use]
    pub fn is_decoder(&self) -> bool {
        crate::families::DECODERS.contains(&self.model_type())
    }

    /// `model_type` of `config.json`; empty if it has none.
    #[must_use]
    pub fn model_type(&self) -> &str {
        self.config.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    /// `config.json` as the type a family wants.
    pub fn config<T: serde::de::DeserializeOwned>(&self) -> Result<T, ExportError> {
        T::deserialize(&self.config)
            .map_err(|error| ExportError::Config { path: self.config_path(), reason: error.to_string() })
    }

    /// Names of the files that hold the weights, sorted.
    pub fn weight_files(&self) -> impl Iterator<Item = &str> {
        let files = self.tensors.values().map(|tensor| tensor.file.as_str());
        let foreign = self.foreign.values().map(|(file, _)| file.as_str());
        files.chain(foreign).collect::<BTreeSet<_>>().into_iter()
    }

    /// Names of all tensors that a graph can hold, sorted.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of that name, or an error that names the nearest one.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, ExportError> {
        if let Some(tensor) = self.tensors.get(name) {
            return Ok(tensor);
        }
        if let Some((file, dtype)) = self.foreign.get(name) {
            return Err(ExportError::Dtype {
                file: self.folder.join(file),
                tensor: name.to_owned(),
                dtype: dtype.clone(),
            });
        }
        // A renamed prefix is the usual cause: the longest common ending points at it.
        let near = self
            .tensors
            .keys()
            .map(|candidate| (common_suffix(candidate, name), candidate))
            .filter(|(length, _)| *length * 2 > name.len())
            .max_by_key(|(length, _)| *length)
            .map(|(_, candidate)| candidate.clone())
            .unwrap_or_default();
        Err(ExportError::MissingTensor { folder: self.folder.clone(), tensor: name.to_owned(), near })
    }

    /// The encoder's weight files, in the order of their names.
    fn shards(&self) -> Result<Vec<String>, ExportError> {
        let (single, folder) = ("model.safetensors", self.encoder_folder());
        if folder.join(single).is_file() {
            return Ok(vec![single.to_owned()]);
        }
        let index = folder.join("model.safetensors.index.json");
        if !index.is_file() {
            return Err(ExportError::NoWeights { pickles: pickles(&folder), folder });
        }
        let parsed: Index = serde_json::from_value(read_json(&index)?)
            .map_err(|error| ExportError::Config { path: index.clone(), reason: error.to_string() })?;
        let mut shards: Vec<String> = parsed.weight_map.into_values().collect();
        shards.sort_unstable();
        shards.dedup();
        if let Some(hostile) = shards.iter().find(|name| name.contains(['/', '\\']) || name.starts_with('.'))
        {
            let reason = format!("{hostile:?} is not the name of a file in the same folder");
            return Err(ExportError::Config { path: index, reason });
        }
        Ok(shards)
    }

    /// Takes over the tensors of one file, with `prefix` before their names.
    fn read_shard(&mut self, name: &str, prefix: &str) -> Result<(), ExportError> {
        let path = self.folder.join(name);
        let (header_bytes, metadata) = read_header(&path)?;
        for (tensor, info) in metadata.tensors() {
            let tensor = format!("{prefix}{tensor}");
            let (start, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
            match DataType::from_safetensors(info.dtype) {
                Some(dtype) => {
                    let shape = info.shape.clone();
                    let (offset_bytes, length_bytes) = (header_bytes + start, end - start);
                    let file = name.to_owned();
                    self.tensors.insert(tensor, Tensor { file, dtype, shape, offset_bytes, length_bytes });
                }
                None => {
                    self.foreign.insert(tensor, (name.to_owned(), format!("{:?}", info.dtype)));
                }
            }
        }
        Ok(())
    }
}

/// Reads a safetensors header and checks it against the length of the file; returns where the tensors begin.
fn read_header(path: &Path) -> Result<(u64, Metadata), ExportError> {
    let io = |source| ExportError::Io { doing: "read", path: path.to_owned(), source };
    let corrupt = |reason: String| ExportError::Corrupt { path: path.to_owned(), reason };
    let mut file = open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let mut length = [0; 8];
    if file_bytes < 8 {
        return Err(corrupt(format!("it has {file_bytes} bytes, fewer than its length field")));
    }
    file.read_exact(&mut length).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > file_bytes - 8 {
        return Err(corrupt(format!("it claims a header of {length} bytes and has {file_bytes} in all")));
    }
    let mut header = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_exact(&mut header).map_err(io)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| corrupt(format!("its header: {error}")))?;
    let expected = 8 + length + metadata.data_len() as u64;
    if expected != file_bytes {
        return Err(corrupt(format!("its header describes {expected} bytes, the file has {file_bytes}")));
    }
    Ok((8 + length, metadata))
}

/// Opens a regular file. A pipe would block for ever and a device never end.
fn open(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    File::open(path)
}

pub(crate) fn read_json(path: &Path) -> Result<Value, ExportError> {
    let io = |source| ExportError::Io { doing: "read", path: path.to_owned(), source };
    let mut text = Vec::new();
    let file = open(path).map_err(io)?;
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > MAX_JSON_BYTES {
        let reason = format!("it is larger than {} MiB", MAX_JSON_BYTES >> 20);
        return Err(ExportError::Config { path: path.to_owned(), reason });
    }
    serde_json::from_slice(&text)
        .map_err(|error| ExportError::Config { path: path.to_owned(), reason: error.to_string() })
}

/// Names of pickled weights in a folder, for the error that says why they are not opened.
pub(crate) fn pickles(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
            matches!(extension, "bin" | "pt" | "pth" | "ckpt" | "pkl")
        })
        .collect();
    names.sort_unstable();
    names
}

fn common_suffix(a: &str, b: &str) -> usize {
    a.bytes().rev().zip(b.bytes().rev()).take_while(|(x, y)| x == y).count()
}

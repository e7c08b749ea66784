//! The tensors of a checkpoint, by name, whichever of its files they are in.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::error::TensorError;
use crate::header::{Header, Tensor};
use crate::source::ReadAt;

const EXTENSION: &str = ".safetensors";

/// One file of a checkpoint.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) bytes: Box<dyn ReadAt>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// A tensor and the file it is in.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) tensor: Tensor,
    pub(crate) source: Arc<Source>,
}

/// The tensors of one safetensors file, or of several that make up one checkpoint. The files stay open.
#[derive(Clone, Debug, Default)]
pub struct TensorTable {
    tensors: BTreeMap<String, Placed>,
    metadata: BTreeSet<(String, String)>,
}

impl TensorTable {
    /// Reads the header of the file at a path.
    pub fn open(path: &Path) -> Result<Self, TensorError> {
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Self::read(name, file),
            Err(e) => Err(TensorError::io(&name, e)),
        }
    }

    /// Reads the header of a file; `name` is what errors call it.
    pub fn read(name: impl Into<String>, file: impl ReadAt + 'static) -> Result<Self, TensorError> {
        let source = Arc::new(Source { name: name.into(), bytes: Box::new(file) });
        let Header { tensors, metadata } = Header::read(&source.name, source.bytes.as_ref())?;
        let placed = |(name, tensor)| (name, Placed { tensor, source: source.clone() });
        Ok(Self { tensors: tensors.into_iter().map(placed).collect(), metadata })
    }

    /// The tables of several files as that of one checkpoint. A name in two of them is an error.
    pub fn unite(tables: impl IntoIterator<Item = Self>) -> Result<Self, TensorError> {
        let mut united = Self::default();
        for table in tables {
            for (name, placed) in table.tensors {
                match united.tensors.entry(name) {
                    Entry::Vacant(place) => {
                        place.insert(placed);
                    }
                    Entry::Occupied(there) => {
                        return Err(TensorError::Twice {
                            tensor: there.key().clone(),
                            first: there.get().source.name.clone(),
                            second: placed.source.name.clone(),
                        });
                    }
                }
            }
            united.metadata.extend(table.metadata);
        }
        Ok(united)
    }

    /// Every tensor, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, placed)| (name.as_str(), &placed.tensor))
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name).map(|placed| &placed.tensor)
    }

    /// How many bytes all tensors have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|placed| placed.tensor.bytes).fold(0, u64::saturating_add)
    }

    /// The pairs of `__metadata__`, of all files together.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    pub(crate) fn placed(&self) -> &BTreeMap<String, Placed> {
        &self.tensors
    }

    pub(crate) fn has_metadata_of(&self, other: &Self) -> bool {
        self.metadata == other.metadata
    }
}

/// The checkpoint that a file belongs to: its own name, or for a shard `stem-00001-of-00002.safetensors` the
/// name that the whole would have, `stem.safetensors`. `None` for a file that is not called `.safetensors`.
///
/// ```
/// use tensor_diff::checkpoint_name;
/// assert_eq!(checkpoint_name("a/model-00001-of-00002.safetensors").as_deref(), Some("a/model.safetensors"));
/// assert_eq!(checkpoint_name("a/model.safetensors").as_deref(), Some("a/model.safetensors"));
/// assert_eq!(checkpoint_name("a/config.json"), None);
/// ```
#[must_use]
pub fn checkpoint_name(path: &str) -> Option<String> {
    let stem = path.strip_suffix(EXTENSION)?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let whole = stem.rsplit_once("-of-").and_then(|(rest, count)| {
        let (whole, index) = rest.rsplit_once('-')?;
        (is_number(index) && is_number(count)).then_some(whole)
    });
    Some(format!("{}{EXTENSION}", whole.unwrap_or(stem)))
}

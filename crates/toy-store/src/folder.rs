//! A model's files in memory.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::params::Params;

/// The files of one model, by relative path, in path order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folder {
    files: BTreeMap<String, Vec<u8>>,
}

impl Folder {
    /// Paths (with `/`) and contents, sorted by path.
    #[must_use]
    pub fn files(&self) -> impl ExactSizeIterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
    }

    /// The contents of one file.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        self.files.get(path).map(Vec::as_slice)
    }

    /// The bytes of all files together.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.files.values().map(|bytes| bytes.len() as u64).sum()
    }

    /// Writes every file below `dir`, which is made when it is missing; files that are there are overwritten.
    pub fn write_to(&self, dir: &Path) -> io::Result<()> {
        for (path, bytes) in &self.files {
            let target = dir.join(path);
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(target, bytes)?;
        }
        Ok(())
    }

    pub(crate) fn put(&mut self, path: &str, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), bytes);
    }

    pub(crate) fn put_json(&mut self, path: &str, value: &Value) {
        self.put(path, format!("{value:#}\n").into_bytes());
    }

    /// Writes `README.md`, the model card.
    pub(crate) fn put_card(&mut self, title: &str, text: &str) {
        let card = format!(
            "---\nlicense: mit\nlanguage: en\n---\n# {title}\n\nMade by `toy-store` from a seed, for tests and \
             demonstrations.\n\n{text}\n"
        );
        self.put("README.md", card.into_bytes());
    }

    /// Writes `model.safetensors`. The format sorts by name itself, so equal parameters give equal bytes.
    pub(crate) fn put_weights(&mut self, params: &Params) {
        let tensors: Vec<_> = params
            .tensors()
            .map(|(name, shape, values)| {
                (name, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
            (*name, view.unwrap_or_else(|e| panic!("{name} has as many bytes as its shape says: {e}")))
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = safetensors::serialize(views, Some(metadata));
        self.put(
            "model.safetensors",
            bytes.unwrap_or_else(|e| panic!("named f32 tensors can be serialised: {e}")),
        );
    }
}

//! sentence-transformers' `StaticEmbedding`, the model2vec type: a text is the mean of its tokens' rows of a table.

use std::path::{Path, PathBuf};

use crate::LoadError;
use crate::weights::Weights;

/// The table. Its rows are the tokenizer's ids.
#[derive(Debug)]
pub(super) struct StaticEmbedding {
    /// The file, for messages.
    path: PathBuf,
    rows: Vec<f32>,
    width: usize,
}

impl StaticEmbedding {
    /// Loads `model.safetensors` in `folder`: the tensor `embedding.weight`, or model2vec's own `embeddings`.
    pub(super) fn load(folder: &Path) -> Result<Self, LoadError> {
        let weights = Weights::open(folder)?;
        let name = if weights.contains("embedding.weight") { "embedding.weight" } else { "embeddings" };
        let path = weights.path_of(name).to_owned();
        let shape = weights.shape(name).map(<[usize]>::to_vec);
        let (rows, width) = match shape.as_deref() {
            Some(&[rows, width]) if rows > 0 && width > 0 => (rows, width),
            found => {
                let reason = match found {
                    Some(shape) => {
                        format!("has the shape {shape:?} where a table of token vectors has two axes")
                    }
                    None => "is missing: a StaticEmbedding keeps its table there".to_owned(),
                };
                return Err(LoadError::Tensor { path, tensor: "embedding.weight".to_owned(), reason });
            }
        };
        let mut values = Vec::new();
        weights.read(name, &[rows, width], &mut values)?;
        Ok(Self { path, rows: values, width })
    }

    /// Length of a vector.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The mean of a text's rows; without a token it is 0.
    pub(super) fn embed(&self, ids: &[u32]) -> Result<Vec<f32>, LoadError> {
        let mut sum = vec![0.0; self.width];
        for id in ids {
            let start = *id as usize * self.width;
            let row = self.rows.get(start..start + self.width).ok_or_else(|| {
                LoadError::Tokens(format!(
                    "token id {id} where the table in {} has {} rows; the tokenizer belongs to another model",
                    self.path.display(),
                    self.rows.len() / self.width
                ))
            })?;
            for (sum, x) in sum.iter_mut().zip(row) {
                *sum += x;
            }
        }
        let count = ids.len().max(1) as f32;
        for x in &mut sum {
            *x /= count;
        }
        Ok(sum)
    }
}

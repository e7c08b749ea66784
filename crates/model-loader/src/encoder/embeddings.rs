//! Tokens to the vectors that the first layer takes.

use std::fmt;

use cpu_kernels::Norm;

use crate::ragged::Rows;

/// The tables that tokens are looked up in.
pub(crate) struct Embeddings {
    pub width: usize,
    /// `[vocabulary, width]`.
    pub words: Vec<f32>,
    /// `[positions, width]`; empty where positions come in later.
    pub positions: Vec<f32>,
    /// `[types, width]`; empty in families without.
    pub types: Vec<f32>,
    pub norm: Norm,
}

impl fmt::Debug for Embeddings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embeddings").field("width", &self.width).finish_non_exhaustive()
    }
}

impl Embeddings {
    /// The sum of a token's word, position and type, normalised: `[tokens, width]`.
    pub(crate) fn look_up(&self, texts: &[&Rows]) -> Vec<f32> {
        let mut out = Vec::with_capacity(texts.iter().map(|text| text.len()).sum::<usize>() * self.width);
        for text in texts {
            for ((id, position), kind) in text.ids.iter().zip(&text.positions).zip(&text.types) {
                let at = out.len();
                out.extend_from_slice(row(&self.words, *id as usize, self.width));
                // In the order of transformers' sum: words and types, then positions.
                for (table, index) in [(&self.types, *kind as usize), (&self.positions, *position)] {
                    if !table.is_empty() {
                        let added = row(table, index, self.width);
                        out[at..].iter_mut().zip(added).for_each(|(x, add)| *x += add);
                    }
                }
            }
        }
        self.norm.apply(&mut out);
        out
    }
}

fn row(table: &[f32], index: usize, width: usize) -> &[f32] {
    &table[index * width..(index + 1) * width]
}

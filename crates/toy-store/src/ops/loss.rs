//! Cross-entropy.

use crate::math::exp;
use crate::matrix::Matrix;
use crate::tape::{Tape, Var};

/// Softmax of one row, in place.
pub(crate) fn softmax(row: &mut [f32]) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    let sum = row.iter().sum::<f32>();
    for x in row {
        *x /= sum;
    }
}

/// For each row of logits the wanted distribution, as `(column, share)`; a row without any is left out of the loss.
pub(crate) type Targets = Vec<Vec<(usize, f32)>>;

impl Tape {
    /// Mean over the rows that have targets of `-Σ share · ln softmax(logits)`.
    #[expect(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^24 rows")]
    pub(crate) fn cross_entropy(&mut self, logits: Var, targets: Targets) -> Var {
        let mut probabilities = Matrix::clone(&self.value(logits));
        let counted = targets.iter().filter(|row| !row.is_empty()).count() as f32;
        let mut loss = 0.0;
        for (row, wanted) in targets.iter().enumerate() {
            let row = probabilities.row_mut(row);
            if wanted.is_empty() {
                row.fill(0.0);
                continue;
            }
            softmax(row);
            for (column, share) in wanted {
                loss -= share * libm::logf(row[*column].max(f32::MIN_POSITIVE));
            }
        }
        let loss = Matrix { rows: 1, cols: 1, data: vec![loss / counted] };
        self.push(loss, move |gradient, gradients| {
            let mut by_logits = probabilities;
            for (row, wanted) in targets.iter().enumerate() {
                for (column, share) in wanted {
                    by_logits.row_mut(row)[*column] -= share;
                }
            }
            let scale = gradient.data[0] / counted;
            by_logits.data.iter_mut().for_each(|g| *g *= scale);
            gradients.add(logits, by_logits);
        })
    }
}

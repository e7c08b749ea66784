//! Products, sums and row look-ups.

use std::rc::Rc;

use crate::matrix::Matrix;
use crate::tape::{Tape, Var};

impl Tape {
    /// `x · weightᵀ (+ bias)`, with `weight` as `PyTorch` stores it: `[out, in]`.
    pub(crate) fn linear(&mut self, x: Var, weight: Var, bias: Option<Var>) -> Var {
        let (input, matrix) = (self.value(x), self.value(weight));
        let mut output = input.matmul_transposed(&matrix);
        if let Some(bias) = bias {
            let bias = self.value(bias);
            for row in output.data.chunks_exact_mut(bias.cols) {
                for (value, offset) in row.iter_mut().zip(&bias.data) {
                    *value += offset;
                }
            }
        }
        self.push(output, move |gradient, gradients| {
            if let Some(bias) = bias {
                gradients.add(bias, gradient.column_sums());
            }
            gradients.add(weight, gradient.transposed().matmul(&input));
            gradients.add(x, gradient.matmul(&matrix));
        })
    }

    pub(crate) fn add(&mut self, a: Var, b: Var) -> Var {
        let sum = self.value(a).zip(&self.value(b), |a, b| a + b);
        self.push(sum, move |gradient, gradients| {
            gradients.add(a, gradient.clone());
            gradients.add(b, gradient);
        })
    }

    pub(crate) fn scale(&mut self, x: Var, factor: f32) -> Var {
        let scaled = self.value(x).map(|x| x * factor);
        self.push(scaled, move |mut gradient, gradients| {
            gradient.data.iter_mut().for_each(|g| *g *= factor);
            gradients.add(x, gradient);
        })
    }

    /// Rows of `table` by index: an embedding, or the first token of each sentence.
    pub(crate) fn gather(&mut self, table: Var, indices: Rc<[usize]>) -> Var {
        let source = self.value(table);
        let mut output = Matrix::zeros(indices.len(), source.cols);
        for (row, index) in indices.iter().enumerate() {
            output.row_mut(row).copy_from_slice(source.row(*index));
        }
        let (rows, cols) = (source.rows, source.cols);
        self.push(output, move |gradient, gradients| {
            let sum = gradients.accumulator(table, rows, cols);
            for (row, index) in indices.iter().enumerate() {
                for (a, b) in sum.row_mut(*index).iter_mut().zip(gradient.row(row)) {
                    *a += b;
                }
            }
        })
    }
}

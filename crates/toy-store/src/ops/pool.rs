//! From token vectors to sentence vectors.

use std::ops::Range;
use std::rc::Rc;

use crate::matrix::Matrix;
use crate::tape::{Tape, Var};

impl Tape {
    /// The mean of the rows of each span: mean pooling over a sentence's tokens.
    #[expect(clippy::cast_precision_loss, reason = "a sentence has far fewer than 2^24 tokens")]
    pub(crate) fn mean_rows(&mut self, x: Var, spans: Rc<[Range<usize>]>) -> Var {
        let input = self.value(x);
        let mut output = Matrix::zeros(spans.len(), input.cols);
        for (index, span) in spans.iter().enumerate() {
            let mean = output.row_mut(index);
            for row in span.clone() {
                for (sum, x) in mean.iter_mut().zip(input.row(row)) {
                    *sum += x;
                }
            }
            for sum in mean {
                *sum /= span.len() as f32;
            }
        }
        let (rows, cols) = (input.rows, input.cols);
        self.push(output, move |gradient, gradients| {
            let by_input = gradients.accumulator(x, rows, cols);
            for (index, span) in spans.iter().enumerate() {
                for row in span.clone() {
                    for (g, d) in by_input.row_mut(row).iter_mut().zip(gradient.row(index)) {
                        *g += d / span.len() as f32;
                    }
                }
            }
        })
    }
}

//! Normalisations over the columns of each row.

use crate::matrix::Matrix;
use crate::tape::{Tape, Var};

/// Smallest divisor of [`Tape::unit_rows`], as in `torch.nn.functional.normalize`.
const NORMALIZE_EPSILON: f32 = 1e-12;

#[expect(clippy::cast_precision_loss, reason = "a row has far fewer than 2^24 columns")]
fn width(matrix: &Matrix) -> f32 {
    matrix.cols as f32
}

impl Tape {
    /// `(x - mean) / √(variance + epsilon) · gain + shift`, row by row.
    pub(crate) fn layer_norm(&mut self, x: Var, gain: Var, shift: Var, epsilon: f32) -> Var {
        let (input, scale, offset) = (self.value(x), self.value(gain), self.value(shift));
        let n = width(&input);
        let mut unit = Matrix::zeros(input.rows, input.cols);
        let mut inverse_deviation = Vec::with_capacity(input.rows);
        for row in 0..input.rows {
            let values = input.row(row);
            let mean = values.iter().sum::<f32>() / n;
            let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
            let inverse = 1.0 / (variance + epsilon).sqrt();
            for (out, x) in unit.row_mut(row).iter_mut().zip(values) {
                *out = (x - mean) * inverse;
            }
            inverse_deviation.push(inverse);
        }
        let mut output = unit.clone();
        for row in output.data.chunks_exact_mut(input.cols) {
            for ((y, g), b) in row.iter_mut().zip(&scale.data).zip(&offset.data) {
                *y = *y * g + b;
            }
        }
        self.push(output, move |gradient, gradients| {
            gradients.add(shift, gradient.column_sums());
            gradients.add(gain, gradient.zip(&unit, |g, u| g * u).column_sums());
            let mut by_input = Matrix::zeros(unit.rows, unit.cols);
            for (row, inverse) in inverse_deviation.iter().enumerate() {
                let units = unit.row(row);
                let scaled = || gradient.row(row).iter().zip(&scale.data).map(|(g, s)| g * s);
                let mean = scaled().sum::<f32>() / n;
                let mean_along = scaled().zip(units).map(|(g, u)| g * u).sum::<f32>() / n;
                for ((out, g), u) in by_input.row_mut(row).iter_mut().zip(scaled()).zip(units) {
                    *out = inverse * (g - mean - u * mean_along);
                }
            }
            gradients.add(x, by_input);
        })
    }

    /// `x / √(mean(x²) + epsilon) · gain`, row by row.
    pub(crate) fn rms_norm(&mut self, x: Var, gain: Var, epsilon: f32) -> Var {
        let (input, scale) = (self.value(x), self.value(gain));
        let n = width(&input);
        let mut unit = Matrix::zeros(input.rows, input.cols);
        let mut inverse_rms = Vec::with_capacity(input.rows);
        for row in 0..input.rows {
            let values = input.row(row);
            let inverse = 1.0 / (values.iter().map(|x| x * x).sum::<f32>() / n + epsilon).sqrt();
            for (out, x) in unit.row_mut(row).iter_mut().zip(values) {
                *out = x * inverse;
            }
            inverse_rms.push(inverse);
        }
        let mut output = unit.clone();
        for row in output.data.chunks_exact_mut(input.cols) {
            for (y, g) in row.iter_mut().zip(&scale.data) {
                *y *= g;
            }
        }
        self.push(output, move |gradient, gradients| {
            gradients.add(gain, gradient.zip(&unit, |g, u| g * u).column_sums());
            let mut by_input = Matrix::zeros(unit.rows, unit.cols);
            for (row, inverse) in inverse_rms.iter().enumerate() {
                let units = unit.row(row);
                let scaled = || gradient.row(row).iter().zip(&scale.data).map(|(g, s)| g * s);
                let mean_along = scaled().zip(units).map(|(g, u)| g * u).sum::<f32>() / n;
                for ((out, g), u) in by_input.row_mut(row).iter_mut().zip(scaled()).zip(units) {
                    *out = inverse * (g - u * mean_along);
                }
            }
            gradients.add(x, by_input);
        })
    }

    /// Each row divided by its Euclidean length.
    pub(crate) fn unit_rows(&mut self, x: Var) -> Var {
        let mut unit = Matrix::clone(&self.value(x));
        let mut lengths = Vec::with_capacity(unit.rows);
        for row in unit.data.chunks_exact_mut(unit.cols) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(NORMALIZE_EPSILON);
            for x in row {
                *x /= length;
            }
            lengths.push(length);
        }
        let saved = unit.clone();
        self.push(unit, move |mut gradient, gradients| {
            for (row, length) in lengths.iter().enumerate() {
                let along = gradient.row(row).iter().zip(saved.row(row)).map(|(g, u)| g * u).sum::<f32>();
                for (g, u) in gradient.row_mut(row).iter_mut().zip(saved.row(row)) {
                    *g = (*g - u * along) / length;
                }
            }
            gradients.add(x, gradient);
        })
    }
}

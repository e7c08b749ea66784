//! Products with packed weights, tile by tile in registers.
//!
//! A tile is a few rows of the input against one panel, all of whose sums stay in registers while it runs
//! through the inputs: of sixteen vector registers AVX2 uses 6 × 2 for sums, 2 for a panel's row and one for the input;
//! AVX-512 has thirty-two and uses 12 × 2. Panels and blocks of rows are cut so that a panel stays in the first cache
//! while a block's rows come from the second (Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication", 2008).

use std::fmt;

use pulp::{Arch, Simd, WithSimd};

use crate::Activation;

/// Vectors side by side in a panel.
pub(crate) const VECTORS: usize = 2;
/// Inputs that a panel is run through at a time: 384 rows of 16 floats (AVX2) are 24 KiB of a first cache of 32, those of 32
/// (AVX-512) 48 KiB of the second.
const INPUT_BLOCK: usize = 384;
/// Rows of the input that are run against every panel before the next: 132 of 384 floats are 198 KiB of the second cache.
const ROW_BLOCK: usize = 132;
/// A cache line, which vectors of 64 bytes must not straddle.
const LINE_BYTES: usize = 64;

/// A linear layer's weights and bias, packed for the processor that it is packed on.
#[derive(Clone)]
pub struct Packed {
    inputs: usize,
    outputs: usize,
    /// Panel after panel; in each a row per input, of as many outputs as a panel has columns. Missing outputs are 0.
    panels: Panels,
    /// As many as the panels have columns.
    bias: Vec<f32>,
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inputs, outputs, .. } = self;
        f.debug_struct("Packed").field("inputs", inputs).field("outputs", outputs).finish_non_exhaustive()
    }
}

impl Packed {
    /// Packs `weight`, `[outputs, inputs]` row-major as checkpoints store it, and `bias`, `[outputs]`; an empty bias is 0.
    ///
    /// # Panics
    /// If the sizes do not fit each other.
    #[must_use]
    pub fn new(weight: &[f32], bias: &[f32], inputs: usize) -> Self {
        assert!(inputs > 0 && weight.len().is_multiple_of(inputs), "weights are [outputs, inputs]");
        let outputs = weight.len() / inputs;
        assert!(bias.is_empty() || bias.len() == outputs, "a bias has an element for each output");
        let columns = panel_columns();
        let mut panels = Panels::zeros(outputs.div_ceil(columns) * columns * inputs);
        let into = panels.as_mut_slice();
        for (panel, rows) in into.chunks_exact_mut(inputs * columns).zip(weight.chunks(columns * inputs)) {
            for (column, row) in rows.chunks_exact(inputs).enumerate() {
                for (input, x) in row.iter().enumerate() {
                    panel[input * columns + column] = *x;
                }
            }
        }
        let mut padded = bias.to_vec();
        padded.resize(outputs.div_ceil(columns) * columns, 0.0);
        Self { inputs, outputs, panels, bias: padded }
    }

    /// Elements of an input row.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Elements of an output row.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }
}

/// `out = activation(x · weightᵀ + bias)`: `x` is `[rows, inputs]`, `out` `[rows, outputs]`, both row-major.
///
/// # Panics
/// If the sizes do not fit each other.
pub fn linear(x: &[f32], weight: &Packed, activation: Activation, out: &mut [f32]) {
    struct Op<'a>(&'a [f32], &'a Packed, Activation, &'a mut [f32]);
    impl WithSimd for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(x, weight, activation, out) = self;
            let rows = x.len() / weight.inputs;
            for (x, out) in
                x.chunks(ROW_BLOCK * weight.inputs).zip(out.chunks_mut(ROW_BLOCK * weight.outputs))
            {
                let product = Product {
                    x: Rows { values: x, stride: weight.inputs },
                    inputs: weight.inputs,
                    panels: weight.panels.as_slice(),
                    outputs: weight.outputs,
                    bias: Some(&weight.bias),
                    activation,
                };
                product.run(simd, rows.min(x.len() / weight.inputs), out, weight.outputs);
            }
        }
    }
    assert!(x.len().is_multiple_of(weight.inputs), "the input is [rows, inputs]");
    assert_eq!(x.len() / weight.inputs * weight.outputs, out.len(), "the output is [rows, outputs]");
    Arch::new().dispatch(Op(x, weight, activation, out));
}

/// Columns of a panel on this processor.
pub(crate) fn panel_columns() -> usize {
    struct Columns;
    impl WithSimd for Columns {
        type Output = usize;
        fn with_simd<S: Simd>(self, _simd: S) -> usize {
            VECTORS * S::F32_LANES
        }
    }
    Arch::new().dispatch(Columns)
}

/// Floats that start at a cache line.
#[derive(Debug)]
pub(crate) struct Panels {
    values: Vec<f32>,
    start: usize,
    len: usize,
}

impl Panels {
    pub(crate) fn zeros(len: usize) -> Self {
        let values = vec![0.0; len + LINE_BYTES / size_of::<f32>()];
        let start = values.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / size_of::<f32>());
        Self { values, start, len }
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.values[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.len]
    }
}

impl Clone for Panels {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

/// Rows of one length at equal distances.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

/// Rows times panels.
pub(crate) struct Product<'a> {
    pub(crate) x: Rows<'a>,
    /// Elements of a row that take part.
    pub(crate) inputs: usize,
    pub(crate) panels: &'a [f32],
    /// Columns that are written; the panels have as many or more.
    pub(crate) outputs: usize,
    /// One for every column of the panels.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
}

impl<'a> Product<'a> {
    /// Sums and nothing else.
    pub(crate) fn plain(x: Rows<'a>, inputs: usize, panels: &'a [f32], outputs: usize) -> Self {
        Self { x, inputs, panels, outputs, bias: None, activation: Activation::Identity }
    }

    /// Writes `rows` rows of outputs at the distance `stride`.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(&self, simd: S, rows: usize, out: &mut [f32], stride: usize) {
        let columns = VECTORS * S::F32_LANES;
        for first in (0..self.inputs).step_by(INPUT_BLOCK) {
            let last = self.inputs.min(first + INPUT_BLOCK);
            for (index, panel) in self.panels.chunks_exact(self.inputs * columns).enumerate() {
                let tile = Tile {
                    product: self,
                    panel: S::as_simd_f32s(&panel[first * columns..last * columns])
                        .0
                        .as_chunks::<VECTORS>()
                        .0,
                    first,
                    last,
                    column: index * columns,
                };
                tile.column(simd, rows, out, stride);
            }
        }
    }
}

/// A block of one panel, against all rows.
struct Tile<'a, 'b, F> {
    product: &'a Product<'b>,
    panel: &'a [[F; VECTORS]],
    /// The inputs of this block.
    first: usize,
    last: usize,
    column: usize,
}

impl<F: Copy> Tile<'_, '_, F> {
    #[inline(always)]
    fn column<S: Simd<f32s = F>>(&self, simd: S, rows: usize, out: &mut [f32], stride: usize) {
        let mut row = 0;
        if S::F32_LANES == 16 {
            while row + 12 <= rows {
                self.rows::<S, 12>(simd, row, out, stride);
                row += 12;
            }
        }
        while row + 6 <= rows {
            self.rows::<S, 6>(simd, row, out, stride);
            row += 6;
        }
        if row + 4 <= rows {
            self.rows::<S, 4>(simd, row, out, stride);
            row += 4;
        }
        if row + 2 <= rows {
            self.rows::<S, 2>(simd, row, out, stride);
            row += 2;
        }
        if row < rows {
            self.rows::<S, 1>(simd, row, out, stride);
        }
    }

    /// `ROWS` rows against the panel.
    #[inline(always)]
    fn rows<S: Simd<f32s = F>, const ROWS: usize>(
        &self,
        simd: S,
        row: usize,
        out: &mut [f32],
        stride: usize,
    ) {
        let Rows { values, stride: distance } = self.product.x;
        let panel = self.panel;
        // Of the panel's length by their type's own word, so that the loop below needs no checks.
        let x: [&[f32]; ROWS] =
            std::array::from_fn(|i| &values[(row + i) * distance + self.first..][..panel.len()]);
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        for input in 0..panel.len() {
            let weights = panel[input];
            for (sums, x) in sums.iter_mut().zip(&x) {
                let x = simd.splat_f32s(x[input]);
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = simd.mul_add_e_f32s(x, weight, *sum);
                }
            }
        }
        let outputs = self.product.outputs;
        let (is_first, is_last) = (self.first == 0, self.last == self.product.inputs);
        let columns = VECTORS * S::F32_LANES;
        let width = columns.min(outputs - self.column);
        for (i, sums) in sums.into_iter().enumerate() {
            let at = (row + i) * stride + self.column;
            let out = &mut out[at..at + width];
            for (vector, mut sum) in sums.into_iter().enumerate() {
                let from = (vector * S::F32_LANES).min(width);
                let to = (from + S::F32_LANES).min(width);
                let out = &mut out[from..to];
                let whole = out.len() == S::F32_LANES;
                if !is_first {
                    let before = if whole { S::as_simd_f32s(out).0[0] } else { simd.partial_load_f32s(out) };
                    sum = simd.add_f32s(sum, before);
                }
                if is_last {
                    if let Some(bias) = self.product.bias {
                        let bias = &bias[self.column + vector * S::F32_LANES..][..S::F32_LANES];
                        sum = simd.add_f32s(sum, S::as_simd_f32s(bias).0[0]);
                    }
                    sum = self.product.activation.apply(simd, sum);
                }
                if whole {
                    S::as_mut_simd_f32s(out).0[0] = sum;
                } else {
                    simd.partial_store_f32s(out, sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers between −1 and 1 that follow from a seed.
    fn numbers(count: usize, mut state: u64) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 23) as f32) - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn products_are_those_of_float64() {
        let check = |rows: usize, inputs: usize, outputs: usize| {
            let x = numbers(rows * inputs, 1);
            let weight = numbers(outputs * inputs, 2);
            let bias = numbers(outputs, 3);
            let mut out = vec![f32::NAN; rows * outputs];
            linear(&x, &Packed::new(&weight, &bias, inputs), Activation::Relu, &mut out);
            for (row, out) in out.chunks(outputs).enumerate() {
                for (output, found) in out.iter().enumerate() {
                    let (x, w) = (&x[row * inputs..][..inputs], &weight[output * inputs..][..inputs]);
                    let parts = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let expected = (parts().sum::<f64>() + f64::from(bias[output])).max(0.0);
                    let off = (f64::from(*found) - expected).abs();
                    // Roundings of a sum grow with its parts and not with what is left of them.
                    let allowed = 1e-6 * (1.0 + parts().map(f64::abs).sum::<f64>());
                    assert!(
                        off <= allowed,
                        "[{rows}, {inputs}] · [{outputs}, {inputs}]ᵀ at {row}, {output}: {found}, not {expected}"
                    );
                }
            }
        };
        for rows in [1, 2, 3, 5, 6, 7, 11, 12, 13, 23, 133] {
            for (inputs, outputs) in [(1, 1), (3, 17), (32, 48), (385, 31), (800, 33)] {
                check(rows, inputs, outputs);
            }
        }
    }

    #[test]
    fn no_rows_are_no_work() {
        linear(&[], &Packed::new(&[1.0, 2.0], &[], 2), Activation::Gelu, &mut []);
    }
}

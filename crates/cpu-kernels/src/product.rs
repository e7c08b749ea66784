//! Products with packed weights, tile by tile in registers.
//!
//! A tile is a few rows of the input against one panel, all of whose sums stay in registers while it runs
//! through the inputs: of sixteen vector registers AVX2 uses 6 × 2 for sums, 2 for a panel's row and one for the input;
//! AVX-512 has thirty-two and uses 12 × 2. Panels and blocks of rows are cut so that a panel stays in the first cache
//! while a block's rows come from the second (Goto and van de Geijn, "Anatomy of High-Performance Matrix
//! Multiplication", 2008).

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::Activation;

/// Vectors side by side in a panel.
pub(crate) const VECTORS: usize = 2;
/// Inputs that a panel is run through at a time: 384 rows of 16 floats (AVX2) are 24 KiB of a first cache of 32, those of 32
/// (AVX-512) 48 KiB of the second.
const INPUT_BLOCK: usize = 384;

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
    pub(crate) finish: Finish<'a>,
}

impl<'a> Product<'a> {
    /// Sums and nothing else.
    pub(crate) fn plain(x: Rows<'a>, inputs: usize, panels: &'a [f32], outputs: usize) -> Self {
        Self { x, inputs, panels, finish: Finish { outputs, bias: None, activation: Activation::Identity } }
    }

    /// Writes `rows` rows of outputs at the distance `stride`.
    #[inline(always)]
    pub(crate) fn run<S: Simd>(&self, simd: S, rows: usize, out: &mut [f32], stride: usize) {
        let columns = VECTORS * S::F32_LANES;
        for first in (0..self.inputs).step_by(INPUT_BLOCK) {
            let inputs = first..self.inputs.min(first + INPUT_BLOCK);
            for (index, panel) in self.panels.chunks_exact(self.inputs * columns).enumerate() {
                let tile = Tile {
                    product: self,
                    panel: S::as_simd_f32s(&panel[inputs.start * columns..inputs.end * columns])
                        .0
                        .as_chunks::<VECTORS>()
                        .0,
                    part: Part::of(&inputs, self.inputs),
                    first,
                    column: index * columns,
                };
                tile.column(simd, rows, out, stride);
            }
        }
    }
}

/// What becomes of sums.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// Columns that are written; the panels have as many or more.
    pub(crate) outputs: usize,
    /// One for every column of the panels.
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) activation: Activation,
}

/// Which of a row's inputs sums are over: what was summed before is added, and what comes last is finished.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    is_first: bool,
    is_last: bool,
}

impl Part {
    pub(crate) fn of(inputs: &Range<usize>, all: usize) -> Self {
        Self { is_first: inputs.start == 0, is_last: inputs.end == all }
    }
}

impl Finish<'_> {
    /// Writes the sums of a tile's rows, which lie at the distance `stride` in `out`, from `column` on.
    #[inline(always)]
    pub(crate) fn write<S: Simd, const ROWS: usize>(
        &self,
        simd: S,
        sums: [[S::f32s; VECTORS]; ROWS],
        part: Part,
        column: usize,
        (out, stride): (&mut [f32], usize),
    ) {
        let columns = VECTORS * S::F32_LANES;
        let width = columns.min(self.outputs - column);
        for (row, sums) in sums.into_iter().enumerate() {
            let out = &mut out[row * stride + column..][..width];
            for (vector, mut sum) in sums.into_iter().enumerate() {
                let from = (vector * S::F32_LANES).min(width);
                let to = (from + S::F32_LANES).min(width);
                let out = &mut out[from..to];
                let whole = out.len() == S::F32_LANES;
                if !part.is_first {
                    let before = if whole { S::as_simd_f32s(out).0[0] } else { simd.partial_load_f32s(out) };
                    sum = simd.add_f32s(sum, before);
                }
                if part.is_last {
                    if let Some(bias) = self.bias {
                        let bias = &bias[column + vector * S::F32_LANES..][..S::F32_LANES];
                        sum = simd.add_f32s(sum, S::as_simd_f32s(bias).0[0]);
                    }
                    sum = self.activation.apply(simd, sum);
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

/// Some inputs of one panel, against all rows.
struct Tile<'a, 'b, F> {
    product: &'a Product<'b>,
    panel: &'a [[F; VECTORS]],
    part: Part,
    /// The first of the inputs.
    first: usize,
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
        let out = &mut out[row * stride..];
        self.product.finish.write(simd, sums, self.part, self.column, (out, stride));
    }
}

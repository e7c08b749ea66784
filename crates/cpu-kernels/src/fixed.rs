//! Products in block fixed point: whole numbers of 16 bits, a factor for each block, exact sums in 32 bits.
//!
//! AVX2's `vpmaddwd` multiplies sixteen pairs of 16-bit numbers and adds neighbours, twice as many as a fused
//! multiply-add of floats does, on as many ports; adding its eight sums to others has ports of its own. So a product can
//! take little more than half the time (measured: docs/decisions/027), with half the memory for the weights.
//!
//! How many bits fit follows from the sums, which must not leave 32 bits. For a block of a row `a` and one of an output's
//! weights `w` every partial sum is at most `‖a‖ · ‖w‖` (Cauchy and Schwarz), so norms of 2¹⁵ and 2¹⁶ are safe whatever the
//! numbers are. That leaves a random block of 64 numbers 12 and 13 bits and a sign for their root mean square, where counting
//! with 64 times the largest product would leave 10 or 11. Each number is rounded to the nearest whole one.

use std::cell::RefCell;
use std::ops::Range;

use pulp::x86::V3;
use pulp::{NullaryFnOnce, Simd, bytemuck, f32x8, i16x16, i32x8};

use crate::aligned::Aligned;
use crate::product::{Finish, Part, VECTORS};

/// Columns of a panel: two vectors of eight sums.
pub(crate) const COLUMNS: usize = 16;
/// Numbers with one factor.
const BLOCK: usize = 64;
/// Inputs that a panel is run through at a time: 768 rows of 16 numbers of 16 bits are 24 KiB of a first cache of 32.
const INPUT_BLOCK: usize = 768;

/// What rounding can add to a block's norm: half for each of 64 numbers, so at most `√64 / 2`.
const SLACK: f64 = 4.0;
/// The norm of a block of a row: with the slack below 2¹⁵, so that each number fits 16 bits too.
const ROW_NORM: f64 = 32_767.0 - SLACK;
/// The norm of a block of weights: `32,767 · 65,536 < 2³¹`.
const WEIGHT_NORM: f64 = 65_536.0 - SLACK;

/// What this takes of the processor, where it has it.
pub(crate) fn simd() -> Option<V3> {
    V3::try_new()
}

/// Weights in panels of [`COLUMNS`] outputs.
#[derive(Clone)]
pub(crate) struct Panels {
    inputs: usize,
    simd: V3,
    /// Panel after panel; in each a row per pair of inputs, with both weights of one output side by side. Missing outputs and
    /// a missing last input are 0.
    weights: Aligned<i16>,
    /// Panel after panel; in each a row per block, with a factor for each output.
    factors: Aligned<f32>,
}

impl Panels {
    /// Packs `[outputs, inputs]` that lie in panels of float32, `width` columns each.
    pub(crate) fn of(simd: V3, panels: &[f32], width: usize, [outputs, inputs]: [usize; 2]) -> Self {
        let count = outputs.div_ceil(COLUMNS);
        let mut weights = Aligned::zeros(count * inputs.next_multiple_of(2) * COLUMNS);
        let mut factors = Aligned::zeros(count * inputs.div_ceil(BLOCK) * COLUMNS);
        let (into, into_factors) = (weights.as_mut_slice(), factors.as_mut_slice());
        simd.vectorize(Pack { panels, width, inputs, weights: into, factors: into_factors });
        Self { inputs, simd, weights, factors }
    }

    /// The outputs of some rows.
    pub(crate) fn multiply(&self, x: &[f32], finish: Finish<'_>, out: &mut [f32]) {
        thread_local! {
            /// Used again from call to call: what is new has to be cleared first.
            static ROWS: RefCell<Rows> = const { RefCell::new(Rows { pairs: Vec::new(), factors: Vec::new() }) };
        }
        ROWS.with_borrow_mut(|rows| {
            self.simd.vectorize(Op { panels: self, x, finish, rows, out });
        });
    }
}

/// Weights on their way into whole numbers.
struct Pack<'a> {
    panels: &'a [f32],
    width: usize,
    inputs: usize,
    weights: &'a mut [i16],
    factors: &'a mut [f32],
}

impl NullaryFnOnce for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { panels, width, inputs, weights, factors } = self;
        let weights = weights.chunks_exact_mut(inputs.next_multiple_of(2) * COLUMNS);
        let factors = factors.chunks_exact_mut(inputs.div_ceil(BLOCK) * COLUMNS);
        for (index, (weights, factors)) in weights.zip(factors).enumerate() {
            let (panel, column) = (index * COLUMNS / width, index * COLUMNS % width);
            let rows = panels[panel * inputs * width..][..inputs * width].chunks_exact(width);
            let mut rows = rows.map(|row| &row[column..column + COLUMNS]);
            let blocks = weights.chunks_mut(BLOCK * COLUMNS).zip(factors.chunks_exact_mut(COLUMNS));
            for (weights, factors) in blocks {
                let mut block = [[0.0_f32; COLUMNS]; BLOCK];
                block.iter_mut().zip(&mut rows).for_each(|(into, row)| into.copy_from_slice(row));
                let (mut squares, mut largest) = ([0.0_f64; COLUMNS], [0.0_f32; COLUMNS]);
                for row in &block {
                    for ((squares, largest), x) in squares.iter_mut().zip(&mut largest).zip(row) {
                        *squares += f64::from(*x) * f64::from(*x);
                        *largest = if x.abs() > *largest { x.abs() } else { *largest };
                    }
                }
                let mut inverses = [0.0; COLUMNS];
                for column in 0..COLUMNS {
                    let by_norm = squares[column].sqrt() / WEIGHT_NORM;
                    let by_largest = f64::from(largest[column]) / f64::from(i16::MAX);
                    // Not `max`, which would lose NaN.
                    let factor = if by_largest > by_norm { by_largest } else { by_norm };
                    (factors[column], inverses[column]) = both_ways(factor);
                }
                for (weights, [first, second]) in
                    weights.as_chunks_mut::<{ 2 * COLUMNS }>().0.iter_mut().zip(block.as_chunks().0)
                {
                    for column in 0..COLUMNS {
                        weights[2 * column] = whole(first[column], inverses[column]);
                        weights[2 * column + 1] = whole(second[column], inverses[column]);
                    }
                }
            }
        }
    }
}

/// Some inputs of rows, as whole numbers, in the order in which the tiles take them: tile after tile, and in each a row's
/// first, the next one's first, and so on.
#[derive(Debug, Default)]
struct Rows {
    /// Pairs of neighbours, the first one in the lower half.
    pairs: Vec<i32>,
    /// A factor for each block.
    factors: Vec<f32>,
}

/// The rows of each tile: six at a time, and what is left over.
#[inline(always)]
fn tiles(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let size = [6, 4, 2, 1].into_iter().find(|size| first + size <= rows)?;
        first += size;
        Some(first - size..first)
    })
}

/// Rows on their way through the panels.
struct Op<'a> {
    panels: &'a Panels,
    x: &'a [f32],
    finish: Finish<'a>,
    rows: &'a mut Rows,
    out: &'a mut [f32],
}

impl NullaryFnOnce for Op<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { panels, x, finish, rows, out } = self;
        let Panels { inputs, simd, ref weights, ref factors } = *panels;
        let (of_weights, of_factors) =
            (inputs.next_multiple_of(2) * COLUMNS, inputs.div_ceil(BLOCK) * COLUMNS);
        let count = x.len() / inputs;
        for first in (0..inputs).step_by(INPUT_BLOCK) {
            let part = first..inputs.min(first + INPUT_BLOCK);
            rows.fill(simd, x, inputs, part.start, part.len());
            let panels = weights.as_slice().chunks_exact(of_weights);
            for (index, (weights, factors)) in
                panels.zip(factors.as_slice().chunks_exact(of_factors)).enumerate()
            {
                let weights = &weights[part.start * COLUMNS..part.end.next_multiple_of(2) * COLUMNS];
                let tile = Tile {
                    weights: bytemuck::cast_slice::<i16, [i16x16; VECTORS]>(weights),
                    factors: bytemuck::cast_slice::<f32, [f32x8; VECTORS]>(
                        &factors[part.start / BLOCK * COLUMNS..part.end.div_ceil(BLOCK) * COLUMNS],
                    ),
                    rows,
                    finish,
                    part: Part::of(&part, inputs),
                    column: index * COLUMNS,
                };
                tile.column(simd, count, out);
            }
        }
    }
}

impl Rows {
    /// Takes `len` inputs of each row, from `first` on.
    #[inline(always)]
    fn fill(&mut self, simd: V3, x: &[f32], inputs: usize, first: usize, len: usize) {
        let (pairs, blocks) = (len.div_ceil(2), len.div_ceil(BLOCK));
        let count = x.len() / inputs;
        self.pairs.resize(count * pairs, 0);
        self.factors.resize(count * blocks, 0.0);
        for tile in tiles(count) {
            let size = tile.len();
            let into = &mut self.pairs[tile.start * pairs..tile.end * pairs];
            let factors = &mut self.factors[tile.start * blocks..tile.end * blocks];
            for (index, row) in tile.enumerate() {
                let row = &x[row * inputs + first..][..len];
                let into = into.chunks_mut(BLOCK / 2 * size).zip(factors.chunks_exact_mut(size));
                for (block, (into, factors)) in row.chunks(BLOCK).zip(into) {
                    let inverse;
                    (factors[index], inverse) = both_ways(quick_norm(simd, block) / ROW_NORM);
                    let mut whole_pairs = [0; BLOCK / 2];
                    let (pairs, last) = block.as_chunks::<2>();
                    for (pair, [a, b]) in whole_pairs.iter_mut().zip(pairs) {
                        *pair = pair_of(whole(*a, inverse), whole(*b, inverse));
                    }
                    if let [last] = last {
                        whole_pairs[pairs.len()] = pair_of(whole(*last, inverse), 0);
                    }
                    for (into, pair) in into.chunks_exact_mut(size).zip(whole_pairs) {
                        into[index] = pair;
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn pair_of(a: i16, b: i16) -> i32 {
    i32::from(b) << 16 | i32::from(a) & 0xFFFF
}

/// A block's factor, and what its numbers are multiplied with to be whole. What is not finite stays NaN.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "float32 is what sums are made of")]
fn both_ways(factor: f64) -> (f32, f32) {
    let factor = if factor.is_finite() { factor as f32 } else { f32::NAN };
    // A block of zeros, or of numbers so small that float32 has no such factor.
    let inverse = if factor < f32::MIN_POSITIVE { 0.0 } else { 1.0 / factor };
    (factor, inverse)
}

/// `x · inverse`, rounded to the nearest whole number, of which the lower 16 bits are taken.
///
/// Adding 1.5 · 2²³ leaves a float's last bit worth 1, and so the number itself in its lower bits: two instructions on
/// vectors, where a conversion with checks takes many.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower bits are the number")]
fn whole(x: f32, inverse: f32) -> i16 {
    x.mul_add(inverse, 12_582_912.0).to_bits() as i16
}

/// The Euclidean norm, of any float32 numbers.
fn norm(block: &[f32]) -> f64 {
    block.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}

/// The same in vectors, where no square leaves float32.
#[inline(always)]
fn quick_norm(simd: V3, block: &[f32]) -> f64 {
    let (vectors, tail) = V3::as_simd_f32s(block);
    let mut sums = [simd.splat_f32s(0.0); 2];
    let (pairs, last) = vectors.as_chunks::<2>();
    for pair in pairs {
        for (sum, x) in sums.iter_mut().zip(pair) {
            *sum = simd.mul_add_e_f32s(*x, *x, *sum);
        }
    }
    for x in last {
        sums[0] = simd.mul_add_e_f32s(*x, *x, sums[0]);
    }
    let squares =
        simd.reduce_sum_f32s(simd.add_f32s(sums[0], sums[1])) + tail.iter().map(|x| x * x).sum::<f32>();
    // So far from the ends of float32 that no square is lost, and float32's own rounding is far below the slack.
    if (1e-20..1e38).contains(&squares) { f64::from(squares.sqrt()) } else { norm(block) }
}

/// Some inputs of one panel, against all rows.
struct Tile<'a> {
    weights: &'a [[i16x16; VECTORS]],
    factors: &'a [[f32x8; VECTORS]],
    rows: &'a Rows,
    finish: Finish<'a>,
    part: Part,
    column: usize,
}

impl Tile<'_> {
    #[inline(always)]
    fn column(&self, simd: V3, rows: usize, out: &mut [f32]) {
        for tile in tiles(rows) {
            match tile.len() {
                6 => self.rows::<6>(simd, tile.start, out),
                4 => self.rows::<4>(simd, tile.start, out),
                2 => self.rows::<2>(simd, tile.start, out),
                _ => self.rows::<1>(simd, tile.start, out),
            }
        }
    }

    /// `ROWS` rows against the panel.
    #[inline(always)]
    fn rows<const ROWS: usize>(&self, simd: V3, row: usize, out: &mut [f32]) {
        let (pairs, blocks) = (self.weights.len(), self.factors.len());
        let x = self.rows.pairs[row * pairs..][..ROWS * pairs].as_chunks::<ROWS>().0;
        let x_factors = self.rows.factors[row * blocks..][..ROWS * blocks].as_chunks::<ROWS>().0;
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
        let each_block = self.weights.chunks(BLOCK / 2).zip(x.chunks(BLOCK / 2));
        for ((weights, x), (factors, x_factors)) in each_block.zip(self.factors.iter().zip(x_factors)) {
            let mut whole = [[simd.splat_i32x8(0); VECTORS]; ROWS];
            for (weights, x) in weights.iter().zip(x) {
                for (whole, x) in whole.iter_mut().zip(x) {
                    let x = bytemuck::cast::<i32x8, i16x16>(simd.splat_i32x8(*x));
                    for (sum, weight) in whole.iter_mut().zip(weights) {
                        let products = simd.multiply_wrapping_add_adjacent_i16x16(x, *weight);
                        *sum = simd.wrapping_add_i32x8(*sum, products);
                    }
                }
            }
            for ((sums, whole), x) in sums.iter_mut().zip(whole).zip(x_factors) {
                let x = simd.splat_f32s(*x);
                for ((sum, whole), factor) in sums.iter_mut().zip(whole).zip(factors) {
                    let whole = simd.convert_i32x8_to_f32x8(whole);
                    *sum = simd.mul_add_e_f32s(whole, simd.mul_f32s(x, *factor), *sum);
                }
            }
        }
        let (stride, out) = (self.finish.outputs, &mut out[row * self.finish.outputs..]);
        self.finish.write(simd, sums, self.part, self.column, (out, stride));
    }
}

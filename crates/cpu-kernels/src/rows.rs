//! What is done row by row: layer norms, softmax, gates.

use pulp::{Arch, Simd, WithSimd};

use crate::Activation;
use crate::math::exp;

/// A layer norm: `(x − mean) / √(variance + eps) · gamma + beta` (Ba, Kiros and Hinton, 2016), the variance as the mean of
/// squared differences: as `E[x²] − E[x]²` it loses its digits where the mean is large.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Factors, one for each element of a row.
    pub gamma: Vec<f32>,
    /// Summands; empty where the norm has none.
    pub beta: Vec<f32>,
    /// Added to the variance.
    pub eps: f32,
}

impl Norm {
    /// Normalises each row of `[rows, width]` in place.
    ///
    /// # Panics
    /// If the rows have another width than the norm.
    pub fn apply(&self, x: &mut [f32]) {
        assert!(x.len().is_multiple_of(self.gamma.len()), "rows of the norm's width");
        Arch::new().dispatch(NormOp { norm: self, x, residual: None });
    }

    /// `x = norm(x + residual)`, row by row.
    ///
    /// # Panics
    /// If the sizes do not fit each other.
    pub fn add_apply(&self, x: &mut [f32], residual: &[f32]) {
        assert!(
            x.len().is_multiple_of(self.gamma.len()) && x.len() == residual.len(),
            "rows of the norm's width"
        );
        Arch::new().dispatch(NormOp { norm: self, x, residual: Some(residual) });
    }
}

struct NormOp<'a> {
    norm: &'a Norm,
    x: &'a mut [f32],
    residual: Option<&'a [f32]>,
}

impl WithSimd for NormOp<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.norm.gamma.len();
        for (index, row) in self.x.chunks_exact_mut(width).enumerate() {
            // While the row is at hand, not all rows before the first is normalised.
            if let Some(residual) = self.residual {
                for (x, r) in row.iter_mut().zip(&residual[index * width..]) {
                    *x += r;
                }
            }
            let mean = sum(simd, row) / width as f32;
            let variance = sum_of_squares(simd, row, mean) / width as f32;
            let scale = 1.0 / (variance + self.norm.eps).sqrt();
            for (x, gamma) in row.iter_mut().zip(&self.norm.gamma) {
                *x = (*x - mean) * scale * gamma;
            }
            for (x, beta) in row.iter_mut().zip(&self.norm.beta) {
                *x += beta;
            }
        }
    }
}

#[inline(always)]
fn sum<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let (head, tail) = S::as_simd_f32s(row);
    fold(simd, head, |sum, x| simd.add_f32s(sum, x)) + tail.iter().sum::<f32>()
}

/// The squared differences from `mean`, summed.
#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, row: &[f32], mean: f32) -> f32 {
    let (head, tail) = S::as_simd_f32s(row);
    let at = simd.splat_f32s(mean);
    let squares = fold(simd, head, |sum, x| {
        let off = simd.sub_f32s(x, at);
        simd.mul_add_e_f32s(off, off, sum)
    });
    squares + tail.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>()
}

/// Adds up vectors with `add` and then their elements; in four sums, none of which waits for the one before it.
#[inline(always)]
fn fold<S: Simd>(simd: S, vectors: &[S::f32s], add: impl Fn(S::f32s, S::f32s) -> S::f32s) -> f32 {
    let (fours, rest) = vectors.as_chunks::<4>();
    let mut sums = [simd.splat_f32s(0.0); 4];
    for four in fours {
        for (sum, x) in sums.iter_mut().zip(four) {
            *sum = add(*sum, *x);
        }
    }
    for x in rest {
        sums[0] = add(sums[0], *x);
    }
    let [a, b, c, d] = sums;
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)))
}

/// `softmax(scale · row)` in place, for a scale above 0. −∞ gets 0; a row of nothing else gets 0 everywhere.
pub fn softmax(row: &mut [f32], scale: f32) {
    struct Op<'a>(&'a mut [f32], f32);
    impl WithSimd for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            softmax_row(simd, self.0, self.1);
        }
    }
    Arch::new().dispatch(Op(row, scale));
}

#[inline(always)]
pub(crate) fn softmax_row<S: Simd>(simd: S, row: &mut [f32], scale: f32) {
    let (head, tail) = S::as_mut_simd_f32s(row);
    let mut max = simd.splat_f32s(f32::NEG_INFINITY);
    for x in head.iter() {
        max = simd.max_f32s(max, *x);
    }
    let max = tail.iter().copied().fold(simd.reduce_max_f32s(max), f32::max);
    if max == f32::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    let (max, scale) = (simd.splat_f32s(max), simd.splat_f32s(scale));
    let mut total = simd.splat_f32s(0.0);
    for x in head.iter_mut() {
        *x = weight(simd, *x, max, scale);
        total = simd.add_f32s(total, *x);
    }
    if !tail.is_empty() {
        let weights = weight(simd, simd.partial_load_f32s(tail), max, scale);
        simd.partial_store_f32s(tail, weights);
    }
    let total = simd.reduce_sum_f32s(total) + tail.iter().sum::<f32>();
    let share = 1.0 / total;
    for x in row {
        *x *= share;
    }
}

/// `exp(scale · (x − max))`, and 0 for −∞.
#[inline(always)]
fn weight<S: Simd>(simd: S, x: S::f32s, max: S::f32s, scale: S::f32s) -> S::f32s {
    let power = exp(simd, simd.mul_f32s(simd.sub_f32s(x, max), scale));
    let nothing = simd.equal_f32s(x, simd.splat_f32s(f32::NEG_INFINITY));
    simd.select_f32s(nothing, simd.splat_f32s(0.0), power)
}

/// The product of two vectors.
///
/// # Panics
/// If they are not of one length.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    struct Op<'a>(&'a [f32], &'a [f32]);
    impl WithSimd for Op<'_> {
        type Output = f32;
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f32 {
            let ((a, a_tail), (b, b_tail)) = (S::as_simd_f32s(self.0), S::as_simd_f32s(self.1));
            let mut sum = simd.splat_f32s(0.0);
            for (a, b) in a.iter().zip(b) {
                sum = simd.mul_add_e_f32s(*a, *b, sum);
            }
            simd.reduce_sum_f32s(sum) + a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum::<f32>()
        }
    }
    assert_eq!(a.len(), b.len(), "vectors of one length");
    Arch::new().dispatch(Op(a, b))
}

/// The gated half of a feed-forward block: each row of `x` is `[a, b]`, and becomes `activation(a) · b` in `out`,
/// `[rows, width]`.
///
/// # Panics
/// If the sizes do not fit each other.
pub fn gate(x: &[f32], width: usize, activation: Activation, out: &mut [f32]) {
    assert!(x.len() == 2 * out.len() && out.len().is_multiple_of(width), "rows of two halves");
    for (row, out) in x.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (a, b) = row.split_at(width);
        out.copy_from_slice(a);
        activation.apply_to(out);
        for (out, b) in out.iter_mut().zip(b) {
            *out *= b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_those_of_float64() {
        for width in [1, 5, 8, 16, 33, 384] {
            let row: Vec<f32> = (0..width).map(|i| 1000.0 + (i * i % 17) as f32).collect();
            let norm = Norm {
                gamma: (0..width).map(|i| 1.0 + i as f32 / 64.0).collect(),
                beta: vec![0.25; width],
                eps: 1e-5,
            };
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
            let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
            let mut found = row.clone();
            norm.apply(&mut found);
            let halves: Vec<f32> = row.iter().map(|x| x / 2.0).collect();
            let mut summed = halves.clone();
            norm.add_apply(&mut summed, &halves);
            for ((i, found), summed) in found.iter().enumerate().zip(&summed) {
                let scaled = (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt();
                let expected = scaled * f64::from(norm.gamma[i]) + 0.25;
                assert!((f64::from(*found) - expected).abs() < 2e-3, "{width}, {i}: {found}, not {expected}");
                assert!((found - summed).abs() < 1e-6, "{width}, {i}: {summed}, not {found}");
            }
        }
    }

    /// Where every number is one that float32 holds.
    fn equal(found: &[f32], expected: &[f32]) {
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(found), bits(expected), "{found:?}, not {expected:?}");
    }

    #[test]
    fn softmax_shares_one_among_what_is_allowed() {
        for length in [1, 3, 8, 21] {
            let mut row: Vec<f32> = (0..length).map(|i| i as f32 * 3.0 - 50.0).collect();
            let expected: Vec<f64> = row.iter().map(|x| (f64::from(*x) * 0.5).exp()).collect();
            let total: f64 = expected.iter().sum();
            softmax(&mut row, 0.5);
            for (found, expected) in row.iter().zip(expected) {
                assert!((f64::from(*found) - expected / total).abs() < 1e-6, "{length}: {row:?}");
            }
        }
        let mut masked = [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY];
        softmax(&mut masked, 1.0);
        equal(&masked, &[0.0, 0.5, 0.0, 0.5, 0.0]);
        let mut nothing = [f32::NEG_INFINITY; 11];
        softmax(&mut nothing, 1.0);
        equal(&nothing, &[0.0; 11]);
    }

    #[test]
    fn a_dot_product_counts_every_element() {
        for length in 1..40_u16 {
            let values: Vec<f32> = (0..length).map(f32::from).collect();
            let expected: f32 = values.iter().map(|x| x * x).sum();
            equal(&[dot(&values, &values)], &[expected]);
        }
    }

    #[test]
    fn a_gate_multiplies_the_halves() {
        let mut out = [0.0; 4];
        gate(&[1.0, -1.0, 5.0, 6.0, 2.0, 3.0, 7.0, 8.0], 2, Activation::Relu, &mut out);
        equal(&out, &[5.0, 0.0, 14.0, 24.0]);
    }
}

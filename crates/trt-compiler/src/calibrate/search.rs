//! A range, and a smoothing, by what they do to the products of a layer.

use cpu_kernels::{Activation, Packed, linear};
use onnx_export::Precision;

/// Numbers that a sample keeps: enough rows to tell ranges apart, few enough to multiply again and again.
const SAMPLE: usize = 1 << 18;
/// Rows of a sample of narrow layers.
const MAX_ROWS: usize = 512;
/// How much of what is hard to quantise smoothing moves from inputs to weights (`SmoothQuant`'s α).
const ALPHAS: [f32; 4] = [0.0, 0.3, 0.5, 0.7];
/// Ranges as shares of the largest magnitude.
const SHARES: [f32; 6] = [1.0, 0.9, 0.8, 0.65, 0.5, 0.35];

/// Rows that went into a layer, each as likely as any other to have been kept, and the largest magnitudes of all.
#[derive(Default)]
pub(super) struct Sample {
    rows: Vec<f32>,
    largest: Vec<f32>,
    seen: u64,
    random: u64,
}

impl Sample {
    pub(super) fn add(&mut self, row: &[f32]) {
        let width = row.len();
        self.largest.resize(width, 0.0);
        self.largest.iter_mut().zip(row).for_each(|(largest, x)| *largest = largest.max(x.abs()));
        let room = (SAMPLE / width).clamp(1, MAX_ROWS);
        self.seen += 1;
        if self.rows.len() < room * width {
            self.rows.extend_from_slice(row);
            return;
        }
        // Vitter's algorithm R, with Knuth's generator: the same texts give the same ranges.
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let place = (self.random >> 33) % self.seen;
        if let Some(kept) =
            usize::try_from(place).ok().and_then(|place| self.rows.chunks_mut(width).nth(place))
        {
            kept.copy_from_slice(row);
        }
    }

    /// The range of the input and its smoothing (empty for none) with which the products of all `weights`, each
    /// `[outputs, inputs]`, are nearest to those in fp32.
    pub(super) fn search(&self, weights: &[Vec<f32>], precision: Precision) -> (f32, Vec<f32>) {
        let width = self.largest.len();
        let peak = self.largest.iter().copied().fold(0.0, f32::max);
        if width == 0 || peak == 0.0 || !peak.is_finite() {
            return (peak, Vec::new());
        }
        let exact: Vec<Vec<f32>> = weights.iter().map(|weight| product(&self.rows, weight, width)).collect();
        let mut columns = vec![0.0_f32; width];
        for row in weights.iter().flat_map(|weight| weight.chunks(width)) {
            columns.iter_mut().zip(row).for_each(|(largest, w)| *largest = largest.max(w.abs()));
        }
        let mut best = (f64::INFINITY, peak, Vec::new());
        for alpha in ALPHAS {
            let smoothing: Vec<f32> = match alpha {
                0.0 => Vec::new(),
                _ => self.largest.iter().zip(&columns).map(|(x, w)| smooth(*x, *w, alpha)).collect(),
            };
            let of = |column: usize| smoothing.get(column).copied().unwrap_or(1.0);
            let short: Vec<Vec<f32>> = weights
                .iter()
                .map(|weight| {
                    let rounded = weight.chunks(width).flat_map(|row| {
                        let range = largest(row, &smoothing);
                        row.iter().enumerate().map(move |(column, w)| (column, w, range))
                    });
                    rounded.map(|(column, w, range)| round(w * of(column), range, precision)).collect()
                })
                .collect();
            let reach = self.largest.iter().enumerate().map(|(i, x)| x / of(i)).fold(0.0, f32::max);
            for share in SHARES {
                let range = share * reach;
                let rows: Vec<f32> = self
                    .rows
                    .chunks(width)
                    .flat_map(|row| row.iter().enumerate())
                    .map(|(column, x)| round(x / of(column), range, precision))
                    .collect();
                let off: f64 = short
                    .iter()
                    .zip(&exact)
                    .map(|(weight, exact)| distance(&product(&rows, weight, width), exact))
                    .sum();
                if off < best.0 {
                    best = (off, range, smoothing.clone());
                }
            }
        }
        (best.1, best.2)
    }
}

/// The largest magnitude of a row of weights, smoothed.
pub(super) fn largest(row: &[f32], smoothing: &[f32]) -> f32 {
    let smoothed = row.iter().enumerate().map(|(i, w)| w * smoothing.get(i).unwrap_or(&1.0));
    smoothed.map(f32::abs).fold(0.0, f32::max)
}

/// What an element that goes in is divided by and its weights are multiplied by: `SmoothQuant`'s equation 4.
fn smooth(input: f32, weight: f32, alpha: f32) -> f32 {
    let factor = input.powf(alpha) / weight.powf(1.0 - alpha);
    // Where one of them is zero, or so small that float16 could not hold the factor, there is nothing to even out.
    if (1e-3..=1e3).contains(&factor) { factor } else { 1.0 }
}

/// `x` in 8 bits and back.
fn round(x: f32, range: f32, precision: Precision) -> f32 {
    if range == 0.0 {
        return 0.0;
    }
    if precision == Precision::Fp8 {
        let scale = range / 448.0;
        e4m3((x / scale).clamp(-448.0, 448.0)) * scale
    } else {
        let scale = range / 127.0;
        (x / scale).round_ties_even().clamp(-128.0, 127.0) * scale
    }
}

/// The nearest 8-bit float: 3 bits of mantissa, down to 2⁻⁶ and evenly from there (OFP8, "OCP 8-bit Floating Point
/// Specification", 2023).
fn e4m3(x: f32) -> f32 {
    let step = (x.abs().log2().floor().max(-6.0) - 3.0).exp2();
    (x / step).round_ties_even() * step
}

/// `[rows, outputs]` of `[rows, inputs]` and `[outputs, inputs]`.
fn product(rows: &[f32], weight: &[f32], inputs: usize) -> Vec<f32> {
    let mut out = vec![0.0; rows.len() / inputs * (weight.len() / inputs)];
    linear(rows, &Packed::new(weight, &[], inputs), Activation::Identity, &mut out);
    out
}

/// The square of the distance, as a share of the square of the length.
fn distance(found: &[f32], exact: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x).powi(2)).sum::<f64>();
    let off = squares(&mut found.iter().zip(exact).map(|(a, b)| a - b));
    off / squares(&mut exact.iter().copied()).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every finite number of the format, from its bits.
    #[test]
    fn e4m3_rounds_to_the_nearest_number_of_the_format() {
        let numbers: Vec<f32> = (0_u8..0x7f)
            .map(|bits| {
                let (exponent, mantissa) = (bits >> 3, f32::from(bits & 7));
                match exponent {
                    0 => mantissa / 8.0 * (-6.0_f32).exp2(),
                    _ => (1.0 + mantissa / 8.0) * (f32::from(exponent) - 7.0).exp2(),
                }
            })
            .collect();
        assert_eq!(numbers.last(), Some(&448.0));
        for pair in numbers.windows(2) {
            let (low, high) = (pair[0], pair[1]);
            for (x, expected) in
                [(low, low), (low + 0.4 * (high - low), low), (low + 0.6 * (high - low), high)]
            {
                assert_eq!(e4m3(x).to_bits(), expected.to_bits(), "{x}");
                assert_eq!(e4m3(-x).to_bits(), (-expected).to_bits(), "-{x}");
            }
        }
    }

    /// One element is a hundred times the others, as in the layers after a norm: smoothing is worth it.
    #[test]
    fn a_large_element_is_smoothed_and_a_rare_one_cut_off() {
        let number = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0;
        let weight: Vec<f32> = (0..16 * 32).map(number).collect();
        let search = |row: &dyn Fn(usize) -> Vec<f32>| {
            let mut sample = Sample::default();
            (0..400).for_each(|i| sample.add(&row(i)));
            sample.search(std::slice::from_ref(&weight), Precision::Int8)
        };
        let even = |i: usize| (0..32).map(|j| number(i * 32 + j + 5)).collect::<Vec<_>>();
        let (range, smoothing) = search(&|i| {
            let mut row = even(i);
            row[7] *= 100.0;
            row
        });
        assert!(smoothing.len() == 32 && smoothing[7] > 5.0 * smoothing[6], "{smoothing:?}");
        assert!(range < 50.0, "{range}");
        let (range, _) = search(&|i| {
            let mut row = even(i);
            let factor = if i == 200 { 3.0 } else { 1.0 };
            row.iter_mut().map(|x| *x * factor).collect()
        });
        assert!(range < 3.0, "{range}");
    }
}

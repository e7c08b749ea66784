//! Linear layers with weights that were packed when the model was loaded.

use std::fmt;

use pulp::{Arch, Simd, WithSimd};

use crate::Activation;
use crate::aligned::Aligned;
#[cfg(target_arch = "x86_64")]
use crate::fixed;
use crate::product::{Finish, Product, Rows, panel_columns};

/// Rows of the input that are run against every panel before the next: 132 of 384 floats, or of 768 numbers of 16 bits, are
/// 198 KiB of the second cache.
const ROW_BLOCK: usize = 132;

/// What the numbers of a linear layer's product are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// Multiplied and added in float32.
    Float32,
    /// Block fixed point: blocks of 64 inputs of a row, and of 64 weights of an output, are whole numbers of 16 bits with
    /// one float32 factor for the block; their products are added exactly in 32 bits, and the blocks' sums in float32.
    /// Each number is off by at most its block's Euclidean norm / 65,000 (docs/decisions/027 has the bounds and what
    /// comes of them). A block with something in it that is not finite gives NaN.
    Fixed16,
}

impl Arithmetic {
    /// Whether this processor has what it takes: for [`Fixed16`](Self::Fixed16) AVX2, which multiplies and adds twice as many
    /// numbers of 16 bits in one instruction as floats.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Float32 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Fixed16 => fixed::simd().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Fixed16 => false,
        }
    }

    /// The faster one here: [`Fixed16`](Self::Fixed16) where AVX2 is the widest there is. On AVX-512, whose vectors hold
    /// twice as many floats, it is [`Float32`](Self::Float32).
    #[must_use]
    pub fn fastest() -> Self {
        if Self::Fixed16.is_available() && crate::instruction_set() == "avx2" {
            Self::Fixed16
        } else {
            Self::Float32
        }
    }
}

/// A linear layer's weights and bias, packed for the processor that it is packed on.
#[derive(Clone)]
pub struct Packed {
    inputs: usize,
    outputs: usize,
    panels: Panels,
    /// As many as the panels have columns.
    bias: Vec<f32>,
}

#[derive(Clone)]
enum Panels {
    /// Panel after panel; in each a row per input, of as many outputs as a panel has columns. Missing outputs are 0.
    Float(Aligned<f32>),
    #[cfg(target_arch = "x86_64")]
    Fixed(fixed::Panels),
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inputs, outputs, .. } = self;
        f.debug_struct("Packed")
            .field("inputs", inputs)
            .field("outputs", outputs)
            .field("arithmetic", &self.arithmetic())
            .finish_non_exhaustive()
    }
}

impl Packed {
    /// Packs `weight`, `[outputs, inputs]` row-major as checkpoints store it, and `bias`, `[outputs]`, for float32; an empty
    /// bias is 0.
    ///
    /// # Panics
    /// If the sizes do not fit each other.
    #[must_use]
    pub fn new(weight: &[f32], bias: &[f32], inputs: usize) -> Self {
        Self::with(Arithmetic::Float32, weight, bias, inputs)
    }

    /// [`new`](Self::new) for this arithmetic where it [is available](Arithmetic::is_available), else for float32.
    ///
    /// # Panics
    /// If the sizes do not fit each other.
    #[must_use]
    pub fn with(arithmetic: Arithmetic, weight: &[f32], bias: &[f32], inputs: usize) -> Self {
        assert!(inputs > 0 && weight.len().is_multiple_of(inputs), "weights are [outputs, inputs]");
        let outputs = weight.len() / inputs;
        assert!(bias.is_empty() || bias.len() == outputs, "a bias has an element for each output");
        let mut padded = bias.to_vec();
        padded.resize(outputs.next_multiple_of(panel_columns()), 0.0);
        let mut packed =
            Self { inputs, outputs, panels: Panels::Float(in_panels(weight, inputs)), bias: padded };
        if arithmetic == Arithmetic::Fixed16 {
            packed.turn_to_fixed16();
        }
        packed
    }

    /// Packs the weights again for block fixed point, where that [is available](Arithmetic::is_available).
    pub fn turn_to_fixed16(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if let Panels::Float(panels) = &self.panels
            && let Some(simd) = fixed::simd()
        {
            let sizes = [self.outputs, self.inputs];
            self.panels = Panels::Fixed(fixed::Panels::of(simd, panels.as_slice(), panel_columns(), sizes));
        }
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

    /// What it was packed for.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        match self.panels {
            Panels::Float(_) => Arithmetic::Float32,
            #[cfg(target_arch = "x86_64")]
            Panels::Fixed(_) => Arithmetic::Fixed16,
        }
    }
}

fn in_panels(weight: &[f32], inputs: usize) -> Aligned<f32> {
    let columns = panel_columns();
    let mut panels = Aligned::zeros((weight.len() / inputs).next_multiple_of(columns) * inputs);
    let into = panels.as_mut_slice();
    for (panel, rows) in into.chunks_exact_mut(inputs * columns).zip(weight.chunks(columns * inputs)) {
        for (column, row) in rows.chunks_exact(inputs).enumerate() {
            for (input, x) in row.iter().enumerate() {
                panel[input * columns + column] = *x;
            }
        }
    }
    panels
}

/// `out = activation(x · weightᵀ + bias)`: `x` is `[rows, inputs]`, `out` `[rows, outputs]`, both row-major. What a row
/// gives does not depend on the rows beside it.
///
/// # Panics
/// If the sizes do not fit each other.
pub fn linear(x: &[f32], weight: &Packed, activation: Activation, out: &mut [f32]) {
    let Packed { inputs, outputs, ref panels, ref bias } = *weight;
    assert!(x.len().is_multiple_of(inputs), "the input is [rows, inputs]");
    assert_eq!(x.len() / inputs * outputs, out.len(), "the output is [rows, outputs]");
    let finish = Finish { outputs, bias: Some(bias), activation };
    for (x, out) in x.chunks(ROW_BLOCK * inputs).zip(out.chunks_mut(ROW_BLOCK * outputs)) {
        match panels {
            Panels::Float(panels) => in_float32(x, inputs, panels.as_slice(), finish, out),
            #[cfg(target_arch = "x86_64")]
            Panels::Fixed(panels) => panels.multiply(x, finish, out),
        }
    }
}

fn in_float32(x: &[f32], inputs: usize, panels: &[f32], finish: Finish<'_>, out: &mut [f32]) {
    struct Op<'a>(Product<'a>, usize, &'a mut [f32]);
    impl WithSimd for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let Self(product, rows, out) = self;
            product.run(simd, rows, out, product.finish.outputs);
        }
    }
    let rows = x.len() / inputs;
    let product = Product { x: Rows { values: x, stride: inputs }, inputs, panels, finish };
    Arch::new().dispatch(Op(product, rows, out));
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

    /// The arithmetics that this processor has.
    #[expect(clippy::print_stderr, reason = "what is skipped says so")]
    fn each_arithmetic(check: impl Fn(Arithmetic)) {
        check(Arithmetic::Float32);
        if Arithmetic::Fixed16.is_available() {
            check(Arithmetic::Fixed16);
        } else {
            eprintln!("skipped for Fixed16: this processor has no AVX2");
        }
    }

    fn norm(values: &[f32]) -> f64 {
        values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
    }

    /// What a product may be off by. Roundings of a sum in float32 grow with its parts and not with what is left of them.
    /// In block fixed point each number of a block is off by up to its norm / 65,526, so the 64 together by 8 times that.
    fn allowed(arithmetic: Arithmetic, x: &[f32], w: &[f32]) -> f64 {
        let parts = x.iter().zip(w).map(|(x, w)| (f64::from(*x) * f64::from(*w)).abs()).sum::<f64>();
        let of_blocks = || x.chunks(64).zip(w.chunks(64)).map(|(x, w)| norm(x) * norm(w)).sum::<f64>();
        let fixed = if arithmetic == Arithmetic::Fixed16 { 2.0 * 8.0 / 65_526.0 * of_blocks() } else { 0.0 };
        fixed + 1e-6 * (1.0 + parts)
    }

    fn check(arithmetic: Arithmetic, what: &str, x: &[f32], weight: &[f32], bias: &[f32], inputs: usize) {
        let (rows, outputs) = (x.len() / inputs, weight.len() / inputs);
        let packed = Packed::with(arithmetic, weight, bias, inputs);
        assert_eq!(packed.arithmetic(), arithmetic);
        let mut out = vec![f32::NAN; rows * outputs];
        linear(x, &packed, Activation::Relu, &mut out);
        for (row, out) in out.chunks(outputs).enumerate() {
            for (output, found) in out.iter().enumerate() {
                let (x, w) = (&x[row * inputs..][..inputs], &weight[output * inputs..][..inputs]);
                let sum = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                let expected = (sum + f64::from(bias[output])).max(0.0);
                let (off, allowed) = ((f64::from(*found) - expected).abs(), allowed(arithmetic, x, w));
                assert!(
                    off <= allowed,
                    "{arithmetic:?}, {what}: [{rows}, {inputs}] · [{outputs}, {inputs}]ᵀ at {row}, {output}: \
                     {found}, not {expected} ± {allowed}"
                );
            }
        }
    }

    #[test]
    fn products_are_those_of_float64() {
        each_arithmetic(|arithmetic| {
            for rows in [1, 2, 3, 5, 6, 7, 11, 12, 13, 23, 133] {
                for (inputs, outputs) in [(1, 1), (3, 17), (32, 48), (65, 15), (385, 31), (800, 33)] {
                    let x = numbers(rows * inputs, 1);
                    let weight = numbers(outputs * inputs, 2);
                    check(arithmetic, "random", &x, &weight, &numbers(outputs, 3), inputs);
                }
            }
        });
    }

    /// What comes closest to leaving 16 or 32 bits, and what loses the most.
    #[test]
    fn extremes_stay_within_the_bounds() {
        let inputs = 192;
        let random = numbers(inputs, 4);
        let with = |value: f32| random.iter().map(|x| x * value).collect::<Vec<_>>();
        let outlier = |at: usize, value: f32| {
            let mut values = random.clone();
            values[at] = value;
            values
        };
        let signs = random.iter().map(|x| x.signum()).collect::<Vec<_>>();
        let alone = |at: usize| (0..inputs).map(|i| if i == at { 3.0 } else { 0.0 }).collect::<Vec<_>>();
        let rows = [
            ("all alike", vec![1.0; inputs]),
            ("all alike and negative", vec![-1.0; inputs]),
            ("of one size", signs),
            ("one alone", alone(1)),
            ("the last one alone", alone(inputs - 1)),
            ("an outlier", outlier(70, 1000.0)),
            ("a negative outlier", outlier(64, -1000.0)),
            ("nothing", vec![0.0; inputs]),
            ("large", with(1e17)),
            ("whose squares are none of float32's", with(1e18)),
            ("small", with(1e-18)),
            ("smaller than their squares can be", with(1e-30)),
            ("subnormal", with(1e-40)),
        ];
        each_arithmetic(|arithmetic| {
            for (x_name, x) in &rows {
                for (weight_name, weight) in &rows {
                    check(arithmetic, &format!("{x_name} · {weight_name}"), x, weight, &[0.5], inputs);
                }
            }
        });
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            each_arithmetic(|arithmetic| {
                let mut x = numbers(2 * 96, 5);
                x[96 + 80] = bad;
                let weight = numbers(3 * 96, 6);
                let mut out = [0.0; 6];
                linear(&x, &Packed::with(arithmetic, &weight, &[], 96), Activation::Identity, &mut out);
                assert!(
                    out[..3].iter().all(|x| x.is_finite()),
                    "{arithmetic:?}: the row without {bad}: {out:?}"
                );
                assert!(
                    out[3..].iter().all(|x| !x.is_finite()),
                    "{arithmetic:?}: the row with {bad}: {out:?}"
                );
                let mut weight = weight.clone();
                weight[96] = bad;
                linear(
                    &x[..96],
                    &Packed::with(arithmetic, &weight, &[], 96),
                    Activation::Identity,
                    &mut out[..3],
                );
                assert_eq!(
                    out[..3].iter().map(|x| x.is_finite()).collect::<Vec<_>>(),
                    [true, false, true],
                    "{bad}"
                );
            });
        }
    }

    /// To the last bit: no text's vector may depend on the texts that are asked for together with it.
    #[test]
    fn a_row_gives_the_same_in_any_company() {
        each_arithmetic(|arithmetic| {
            let (inputs, outputs) = (800, 33);
            let x = numbers(140 * inputs, 7);
            let packed = Packed::with(arithmetic, &numbers(outputs * inputs, 8), &[], inputs);
            let run = |x: &[f32]| {
                let mut out = vec![0.0; x.len() / inputs * outputs];
                linear(x, &packed, Activation::Gelu, &mut out);
                out
            };
            let together = run(&x);
            for (row, x) in x.chunks(inputs).enumerate() {
                assert_eq!(run(x), together[row * outputs..][..outputs], "{arithmetic:?}, row {row}");
            }
        });
    }

    #[test]
    fn no_rows_are_no_work() {
        each_arithmetic(|arithmetic| {
            linear(&[], &Packed::with(arithmetic, &[1.0, 2.0], &[], 2), Activation::Gelu, &mut []);
        });
    }
}

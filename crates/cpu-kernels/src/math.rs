//! Functions of one number, eight or sixteen at a time.

use pulp::Simd;

/// What is applied to each output of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `x/2 · (1 + erf(x/√2))`.
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))` (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x · sigmoid(x)`.
    Silu,
    /// `tanh(x)`.
    Tanh,
}

impl Activation {
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        match self {
            Self::Identity => x,
            Self::Gelu => {
                let scaled = simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2));
                let half = simd.mul_f32s(x, simd.splat_f32s(0.5));
                simd.mul_add_e_f32s(half, erf(simd, scaled), half)
            }
            Self::GeluTanh => {
                // (2/π)^½, and the same times 0.044715.
                let (first, third) = (0.797_884_6, 0.035_677_41);
                let inner =
                    simd.mul_add_e_f32s(simd.mul_f32s(x, x), simd.splat_f32s(third), simd.splat_f32s(first));
                let half = simd.mul_f32s(x, simd.splat_f32s(0.5));
                simd.mul_add_e_f32s(half, tanh(simd, simd.mul_f32s(x, inner)), half)
            }
            // In this order `max` keeps NaN.
            Self::Relu => simd.max_f32s(simd.splat_f32s(0.0), x),
            Self::Silu => {
                let one = simd.splat_f32s(1.0);
                simd.div_f32s(x, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
            }
            Self::Tanh => tanh(simd, x),
        }
    }

    /// Applies it to each element.
    pub fn apply_to(self, values: &mut [f32]) {
        struct Op<'a>(Activation, &'a mut [f32]);
        impl pulp::WithSimd for Op<'_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                let (head, tail) = S::as_mut_simd_f32s(self.1);
                for x in head {
                    *x = self.0.apply(simd, *x);
                }
                if !tail.is_empty() {
                    let x = self.0.apply(simd, simd.partial_load_f32s(tail));
                    simd.partial_store_f32s(tail, x);
                }
            }
        }
        pulp::Arch::new().dispatch(Op(self, values));
    }
}

/// `c[0] + c[1] x + …`, by Horner's rule.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, x: S::f32s, coefficients: [f32; N]) -> S::f32s {
    let mut power = N - 1;
    let mut sum = simd.splat_f32s(coefficients[power]);
    while power > 0 {
        power -= 1;
        sum = simd.mul_add_e_f32s(sum, x, simd.splat_f32s(coefficients[power]));
    }
    sum
}

/// `eˣ` within 2 units in the last place; below −87 it is e⁻⁸⁷ (1.6e-38), above 88 it is e⁸⁸.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2 / 2`, `ln 2` in two parts so that `r` is exact (Cody and Waite, 1980), the
/// exponential of `r` as its Taylor series to the seventh power, whose rest is below 6e-9 there, and `2ⁿ` by adding `n`
/// to the exponent's bits.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // 1.5 · 2²³: a float of this size has no fraction, so adding it rounds, and its low bits are the integer.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 with its last 9 bits cut off, and the rest.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const TAYLOR: [f32; 8] =
        [1.0, 1.0, 1.0 / 2.0, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0];

    let x = simd.min_f32s(simd.splat_f32s(88.0), simd.max_f32s(simd.splat_f32s(-87.0), x));
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(ROUND));
    let n = simd.sub_f32s(shifted, simd.splat_f32s(ROUND));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN2_HIGH), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN2_LOW), r);
    let fraction = polynomial(simd, r, TAYLOR);
    let exponent = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(fraction), exponent))
}

/// `tanh x = 1 − 2/(e²ˣ + 1)`, within 3e-7.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (one, two) = (simd.splat_f32s(1.0), simd.splat_f32s(2.0));
    let e = exp(simd, simd.mul_f32s(x, two));
    simd.sub_f32s(one, simd.div_f32s(two, simd.add_f32s(e, one)))
}

/// The error function, within 5e-7.
///
/// `erf x / x` is a smooth function of `x²`; on `|x| ≤ 3.92`, past which `erf` is 1 in float32, it is a quotient of two
/// polynomials. The first is 2/√π, the slope at 0; the others are from the least-squares fit of `erf x / x` at 4,000 Chebyshev nodes, reweighted until the
/// relative error was even (Lawson's algorithm, 1961): 1.9e-8 before rounding.
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const LIMIT: f32 = 3.92;
    const ABOVE: [f32; 6] = [
        std::f32::consts::FRAC_2_SQRT_PI,
        0.190_402_17,
        5.274_819e-2,
        3.765_444_5e-3,
        2.848_807_7e-4,
        2.050_142_8e-6,
    ];
    const BELOW: [f32; 6] = [1.0, 0.502_072_3, 0.114_107_37, 1.496_886_6e-2, 1.162_497_5e-3, 3.809_219_5e-5];
    let x = simd.min_f32s(simd.splat_f32s(LIMIT), simd.max_f32s(simd.splat_f32s(-LIMIT), x));
    let square = simd.mul_f32s(x, x);
    let above = simd.mul_f32s(x, polynomial(simd, square, ABOVE));
    simd.div_f32s(above, polynomial(simd, square, BELOW))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest difference from a function in float64 over `[-limit, limit]`.
    fn check(name: &str, activation: Activation, limit: f32, allowed: f64, exact: impl Fn(f64) -> f64) {
        let points = 200_001;
        let xs: Vec<f32> =
            (0..points).map(|i| (i as f32 / (points - 1) as f32).mul_add(2.0, -1.0) * limit).collect();
        let mut found = xs.clone();
        activation.apply_to(&mut found);
        for (x, y) in xs.iter().zip(&found) {
            let expected = exact(f64::from(*x));
            let off = (f64::from(*y) - expected).abs() / expected.abs().max(1.0);
            assert!(off <= allowed, "{name}({x}) is {y}, not {expected}: off by {off:e}");
        }
    }

    #[test]
    fn activations_are_those_of_float64() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        check("gelu", Activation::Gelu, 12.0, 1e-6, |x| {
            0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
        });
        check("gelu_tanh", Activation::GeluTanh, 12.0, 1e-6, |x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        });
        check("relu", Activation::Relu, 5.0, 0.0, |x| x.max(0.0));
        check("silu", Activation::Silu, 60.0, 1e-6, |x| x * sigmoid(x));
        check("tanh", Activation::Tanh, 20.0, 5e-7, f64::tanh);
        check("identity", Activation::Identity, 5.0, 0.0, |x| x);
    }

    /// A tail of fewer numbers than a vector holds is computed as the rest, and NaN stays NaN.
    #[test]
    fn every_length_is_computed_whole() {
        for length in 0..40 {
            let mut values = vec![1.0_f32; length];
            Activation::Tanh.apply_to(&mut values);
            assert!(values.iter().all(|x| (x - 1.0_f32.tanh()).abs() < 1e-6), "{length}: {values:?}");
        }
        let all =
            [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh];
        for activation in all {
            let mut values = [f32::NAN; 9];
            activation.apply_to(&mut values);
            assert!(values.iter().all(|x| x.is_nan()), "{activation:?} made {values:?} of NaN");
        }
    }

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place() {
        struct Exp<'a>(&'a mut [f32]);
        impl pulp::WithSimd for Exp<'_> {
            type Output = ();
            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                for x in S::as_mut_simd_f32s(self.0).0 {
                    *x = exp(simd, *x);
                }
            }
        }
        let xs: Vec<f32> = (0..1 << 18).map(|i| (i as f32) * (174.0 / (1 << 18) as f32) - 86.5).collect();
        let mut found = xs.clone();
        pulp::Arch::new().dispatch(Exp(&mut found));
        for (x, y) in xs.iter().zip(found) {
            let expected = f64::from(*x).exp();
            let off = (f64::from(y) / expected - 1.0).abs();
            assert!(off <= 2.0 * f64::from(f32::EPSILON), "exp({x}) is {y}, not {expected}: off by {off:e}");
        }
    }
}

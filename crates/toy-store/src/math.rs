//! The elementary functions of the inner loops, from additions and multiplications alone: a platform's own may differ in the
//! last bit, and these the compiler can vectorise without changing a bit.

use std::f32::consts::LOG2_E;

/// 1.5 · 2²³: adding it to a small number leaves its nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts (Cody and Waite), the first with so few bits that its multiples are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Beyond these the result would not be a normal number.
const LOWEST: f32 = -87.0;
const HIGHEST: f32 = 88.0;

/// `eˣ` with a relative error below 3·10⁻⁷, between e⁻⁸⁷ and e⁸⁸.
#[expect(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "bit patterns of numbers in the clamped range"
)]
#[inline]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(LOWEST, HIGHEST);
    let rounded = x * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor's series of eʳ; |r| ≤ ln 2 / 2, so the first term left out is below 1.2·10⁻⁷.
    let series = 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let series = series * r + 1.0;
    let exponent = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32) + 127;
    series * f32::from_bits((exponent as u32) << 23)
}

/// The standard normal distribution at `x`, given `bell` = exp(-x²/2): `(1 + erf(x/√2)) / 2` with an absolute error below
/// 3·10⁻⁷ (Abramowitz and Stegun, 7.1.26).
#[inline]
pub(crate) fn normal_cdf(x: f32, bell: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let series = 1.061_405_4;
    let series = series * t - 1.453_152;
    let series = series * t + 1.421_413_7;
    let series = series * t - 0.284_496_74;
    let series = series * t + 0.254_829_6;
    let tail = 0.5 * series * t * bell;
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 0.001 from -20 to 20.
    fn points() -> impl Iterator<Item = f32> {
        (-20_000_i16..=20_000).map(|thousandths| f32::from(thousandths) / 1000.0)
    }

    #[test]
    fn exp_is_close() {
        for x in points() {
            let wanted = libm::exp(f64::from(x));
            let error = (f64::from(exp(x)) - wanted).abs() / wanted;
            assert!(error < 3e-7, "exp({x}) is off by {error}");
        }
        assert!(exp(-1e30) > 0.0 && exp(1e30).is_finite());
    }

    #[test]
    fn normal_cdf_is_close() {
        for x in points() {
            let wanted = 0.5 * (1.0 + libm::erf(f64::from(x) / std::f64::consts::SQRT_2));
            let error = (f64::from(normal_cdf(x, exp(-0.5 * x * x))) - wanted).abs();
            assert!(error < 3e-7, "the normal distribution at {x} is off by {error}");
        }
    }
}

//! Rotary positions: the frequencies, and the cosines and sines of a run of positions.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::LoadError;

/// How positions turn the queries and keys: pair `i` of a head at position `p` by the angle `p · frequencies[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians a position, one for each pair: `head_size / 2` of them.
    pub frequencies: Vec<f32>,
    /// Which elements make a pair.
    pub pairs: Pairs,
}

/// Which elements of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairs {
    /// `i` with `i + head_size / 2`, as transformers stores its weights.
    Halves,
    /// `2i` with `2i + 1`, as GGUF stores Llama's.
    Neighbours,
}

/// What `rope_type` may be.
const SUPPORTED: &str = "default, linear, llama3";
const DEFAULT_THETA: f32 = 10_000.0;

impl Rope {
    /// From `rope_parameters`, or `rope_theta` and `rope_scaling` of files older than transformers 5.
    pub(crate) fn new(
        path: &Path,
        head_size: usize,
        theta: Option<f32>,
        partial: Option<f64>,
        scaling: Option<&Value>,
    ) -> Result<Self, LoadError> {
        let number = |key: &str| scaling.and_then(|scaling| scaling.get(key)).and_then(Value::as_f64);
        let partial = number("partial_rotary_factor").or(partial).unwrap_or(1.0);
        if (partial - 1.0).abs() > f64::EPSILON {
            return Err(LoadError::Unsupported {
                path: path.to_owned(),
                what: "partial_rotary_factor",
                found: partial.to_string(),
                supported: "1",
            });
        }
        let theta = number("rope_theta").map(single).or(theta).unwrap_or(DEFAULT_THETA);
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(LoadError::config(path, format!("`rope_theta` is {theta}, out of range")));
        }
        let name = |key: &str| scaling.and_then(|scaling| scaling.get(key)).and_then(Value::as_str);
        // A positive number that the kind of scaling cannot do without.
        let need = |key: &str| match number(key) {
            Some(value) if value > 0.0 && value.is_finite() => Ok(single(value)),
            Some(value) => {
                Err(LoadError::config(path, format!("rope scaling: `{key}` is {value}, out of range")))
            }
            None => Err(LoadError::config(path, format!("rope scaling: `{key}` is missing"))),
        };
        let mut rope = Self::plain(head_size, theta);
        match name("rope_type").or_else(|| name("type")).unwrap_or("default") {
            "default" => {}
            "linear" => rope.divide_by(&vec![need("factor")?; rope.frequencies.len()]),
            "llama3" => {
                let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
                if low >= high {
                    let reason = format!(
                        "rope scaling: `low_freq_factor` {low} is not below `high_freq_factor` {high}"
                    );
                    return Err(LoadError::config(path, reason));
                }
                rope.stretch(need("factor")?, low, high, need("original_max_position_embeddings")?);
            }
            other => {
                return Err(LoadError::Unsupported {
                    path: path.to_owned(),
                    what: "rope_type",
                    found: other.to_owned(),
                    supported: SUPPORTED,
                });
            }
        }
        Ok(rope)
    }

    /// `theta^(-2i / head_size)`, in float32 as transformers computes it.
    pub(crate) fn plain(head_size: usize, theta: f32) -> Self {
        let exponent = |i: usize| (2 * i) as f32 / head_size as f32;
        let frequencies = (0..head_size / 2).map(|i| 1.0 / theta.powf(exponent(i))).collect();
        Self { frequencies, pairs: Pairs::Halves }
    }

    pub(crate) fn divide_by(&mut self, factors: &[f32]) {
        for (frequency, factor) in self.frequencies.iter_mut().zip(factors) {
            *frequency /= factor;
        }
    }

    /// Llama 3.1's: slow turns are slowed by `factor`, fast ones left alone, those between go over smoothly.
    fn stretch(&mut self, factor: f32, low: f32, high: f32, original_positions: f32) {
        for frequency in &mut self.frequencies {
            let wavelength = std::f32::consts::TAU / *frequency;
            *frequency = if wavelength < original_positions / high {
                *frequency
            } else if wavelength > original_positions / low {
                *frequency / factor
            } else {
                let smooth = (original_positions / wavelength - low) / (high - low);
                (1.0 - smooth) * *frequency / factor + smooth * *frequency
            };
        }
    }

    /// The cosines and sines of `count` positions from `start` on: two of `[count, head_size / 2]`.
    pub(crate) fn turns(
        &self,
        start: usize,
        count: usize,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let angle = |position: usize| self.frequencies.iter().map(move |f| position as f32 * f);
        let angles: Vec<f32> = (start..start + count).flat_map(angle).collect();
        let part = |of: fn(f32) -> f32| {
            let values = angles.iter().map(|angle| of(*angle)).collect();
            Tensor::from_vec(values, (count, self.frequencies.len()), device)?.to_dtype(dtype)
        };
        Ok((part(f32::cos)?, part(f32::sin)?))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "torch computes the frequencies in float32")]
fn single(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalings_are_computed_or_refused_by_name() {
        let path = Path::new("config.json");
        let check = |row: &str, scaling: Value, expected: Result<[f32; 2], &str>| match (
            Rope::new(path, 4, Some(100.0), None, Some(&scaling)),
            expected,
        ) {
            (Ok(rope), Ok(expected)) => {
                for (found, expected) in rope.frequencies.iter().zip(expected) {
                    assert!((found - expected).abs() < 1e-6, "{row}: {:?}", rope.frequencies);
                }
            }
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{row}: {error}"),
            (found, _) => panic!("{row}: {found:?}"),
        };
        check("none", Value::Null, Ok([1.0, 0.1]));
        check("default", json!({ "rope_type": "default" }), Ok([1.0, 0.1]));
        check("its own theta", json!({ "rope_theta": 10_000.0 }), Ok([1.0, 0.01]));
        check("linear", json!({ "type": "linear", "factor": 2.0 }), Ok([0.5, 0.05]));
        check("no factor", json!({ "type": "linear" }), Err("`factor` is missing"));
        check("a bad factor", json!({ "type": "linear", "factor": 0 }), Err("`factor` is 0"));
        check("yarn", json!({ "rope_type": "yarn", "factor": 4.0 }), Err("`yarn` is not supported"));
        check("dynamic", json!({ "rope_type": "dynamic", "factor": 4.0 }), Err("`dynamic`"));
        check("partial", json!({ "partial_rotary_factor": 0.5 }), Err("partial_rotary_factor"));
        let llama3 = |high: f32| {
            json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": high,
                "original_max_position_embeddings": 32 })
        };
        // Wavelengths of 6.3 and 62.8: one below 32 / 4, the other above 32 / 1.
        check("llama3", llama3(4.0), Ok([1.0, 0.0125]));
        check("llama3, upside down", llama3(1.0), Err("not below"));
    }
}

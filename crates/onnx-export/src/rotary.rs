//! Rotary positions (Su et al., "`RoFormer`", 2021), by halves: element `i` of a head turns with element `i + size / 2`.

use serde::Deserialize;
use serde_json::Value as Json;

use crate::checkpoint::Checkpoint;
use crate::graph::{Attribute, Graph, Value};
use crate::{DataType, ExportError, Lowering};

/// What `rope_type` may be.
const SUPPORTED: &str = "default, linear, llama3";
const DEFAULT_THETA: f32 = 10_000.0;

/// How far a position turns each pair of a head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    /// Radians a position, one for each pair.
    frequencies: Vec<f32>,
}

/// Cosines and sines of the running positions, [batch, sequence, size / 2] in fp32.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    cos: Value,
    sin: Value,
}

/// The keys of `config.json` that say how positions turn: `rope_parameters`, or those from before transformers 5.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct RopeConfig {
    rope_theta: Option<f32>,
    rope_scaling: Option<Json>,
    rope_parameters: Option<Json>,
    partial_rotary_factor: Option<f64>,
}

impl Rope {
    /// `theta^(-2i / size)`, in fp32 as transformers computes it.
    pub(crate) fn plain(size: usize, theta: f32) -> Self {
        let frequencies = (0..size / 2).map(|i| 1.0 / theta.powf((2 * i) as f32 / size as f32)).collect();
        Self { frequencies }
    }

    /// The turns of a decoder with heads of `size`.
    pub(crate) fn open(
        checkpoint: &Checkpoint,
        size: usize,
        config: &RopeConfig,
    ) -> Result<Self, ExportError> {
        let scaling = config.rope_parameters.as_ref().or(config.rope_scaling.as_ref());
        let number = |key: &str| scaling.and_then(|scaling| scaling.get(key)).and_then(Json::as_f64);
        let word = |key: &str| scaling.and_then(|scaling| scaling.get(key)).and_then(Json::as_str);
        let wrong = |reason: String| ExportError::Config { path: checkpoint.config_path(), reason };
        let unsupported = |what: String, supported: &str| ExportError::Unsupported {
            path: checkpoint.config_path(),
            what,
            supported: supported.to_owned(),
        };
        let partial = number("partial_rotary_factor").or(config.partial_rotary_factor).unwrap_or(1.0);
        if (partial - 1.0).abs() > f64::EPSILON {
            return Err(unsupported(format!("partial_rotary_factor {partial}"), "1"));
        }
        let theta = number("rope_theta").map(single).or(config.rope_theta).unwrap_or(DEFAULT_THETA);
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(wrong(format!("rope_theta {theta} is out of range")));
        }
        // A positive number that the kind of scaling cannot do without.
        let need = |key: &str| match number(key) {
            Some(value) if value > 0.0 && value.is_finite() => Ok(single(value)),
            Some(value) => Err(wrong(format!("{key} {value} of its rope scaling is out of range"))),
            None => Err(wrong(format!("its rope scaling lacks {key}"))),
        };
        let mut rope = Self::plain(size, theta);
        match word("rope_type").or_else(|| word("type")).unwrap_or("default") {
            "default" => {}
            "linear" => {
                let factor = need("factor")?;
                rope.frequencies.iter_mut().for_each(|frequency| *frequency /= factor);
            }
            "llama3" => {
                let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
                if low >= high {
                    return Err(wrong(format!("low_freq_factor {low} is not below high_freq_factor {high}")));
                }
                rope.stretch(need("factor")?, low, high, need("original_max_position_embeddings")?);
            }
            other => return Err(unsupported(format!("rope_type {other:?}"), SUPPORTED)),
        }
        Ok(rope)
    }

    /// Llama 3.1's scaling: slow turns are slowed by `factor`, fast ones left alone, those between go over smoothly.
    fn stretch(&mut self, factor: f32, low: f32, high: f32, original_positions: f32) {
        for frequency in &mut self.frequencies {
            let wavelength = std::f32::consts::TAU / *frequency;
            if wavelength < original_positions / high {
                continue;
            }
            let slow = *frequency / factor;
            *frequency = if wavelength > original_positions / low {
                slow
            } else {
                let smooth = (original_positions / wavelength - low) / (high - low);
                (1.0 - smooth) * slow + smooth * *frequency
            };
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "torch computes the frequencies in fp32")]
pub(crate) fn single(value: f64) -> f32 {
    value as f32
}

impl Graph<'_> {
    /// The turns of `positions`, [batch, sequence] in fp32: angles of long texts leave the range in which a 16-bit float
    /// tells one from the next.
    ///
    /// `key` tells the ropes of one graph apart.
    pub(crate) fn turns(&mut self, key: &str, rope: &Rope, positions: &Value) -> Result<Turns, ExportError> {
        let angles = self.once(&format!("rope:{key}"), |graph| {
            graph.within("rotary", |graph| {
                graph.in_fp32("the angles of rotary positions");
                let frequencies = graph.number_table(&format!("rope/{key}"), &rope.frequencies);
                let positions = graph.unsqueeze(positions, &[2]);
                Ok(graph.arithmetic("Mul", &positions, &frequencies))
            })
        })?;
        let part = |graph: &mut Self, operator: &str| {
            graph.once(&format!("rope:{key}:{operator}"), |graph| {
                graph.within("rotary", |graph| Ok(graph.unary(operator, &angles)))
            })
        };
        Ok(Turns { cos: part(self, "Cos")?, sin: part(self, "Sin")? })
    }

    /// Turns the heads `x`, [batch, heads, sequence, size], in fp32, and gives them in the type they have.
    ///
    /// A cosine of 8 bits is off by a degree and more. With fp32 turns, bf16 logits of small random decoders came
    /// measurably nearer to fp32.
    /// `RotaryEmbedding` is in opset 23: ONNX Runtime 1.32 and TensorRT-RTX 1.7 take it in every float type.
    pub(crate) fn turn(&mut self, x: &Value, turns: &Turns, size: usize) -> Result<Value, ExportError> {
        let dtype = x.dtype;
        self.in_fp32("the turning of queries and keys");
        let (x, cos, sin) = (&self.cast(x, DataType::F32), turns.cos.clone(), turns.sin.clone());
        if self.lowering() == Lowering::TensorRt {
            let turned = self.node("RotaryEmbedding", &[x, &cos, &sin], Vec::new(), DataType::F32);
            return Ok(self.cast(&turned, dtype));
        }
        let by_head = |graph: &mut Self, turn: &Value| {
            graph.once(&format!("rope:heads:{}", turn.name), |graph| Ok(graph.unsqueeze(turn, &[1])))
        };
        let (cos, sin) = (by_head(self, &cos)?, by_head(self, &sin)?);
        let (a, b) = (self.columns(x, 0, size / 2), self.columns(x, size / 2, size));
        let mut product = |x: &Value, turn: &Value| self.arithmetic("Mul", x, turn);
        let (ac, bs, bc, asin) = (product(&a, &cos), product(&b, &sin), product(&b, &cos), product(&a, &sin));
        let first = self.arithmetic("Sub", &ac, &bs);
        let second = self.arithmetic("Add", &bc, &asin);
        let turned = self.node("Concat", &[&first, &second], vec![Attribute::Int("axis", -1)], DataType::F32);
        Ok(self.cast(&turned, dtype))
    }

    /// 0, 1, 2, … for each sentence of the batch, [batch, sequence] in fp32.
    pub(crate) fn plain_positions(&mut self) -> Result<Value, ExportError> {
        let (positions, shape) = (self.positions()?, self.batch_and_sequence()?);
        self.once("positions:batch", |graph| {
            let positions = graph.cast(&positions, DataType::F32);
            Ok(graph.node("Expand", &[&positions, &shape], Vec::new(), DataType::F32))
        })
    }
}

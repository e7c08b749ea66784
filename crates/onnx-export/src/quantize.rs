//! Products in 8 bits: explicit `QuantizeLinear` and `DequantizeLinear` nodes around what they take.
//!
//! TensorRT's networks are strongly typed and have no calibrators any more, so the ranges are in the graph. A product's
//! input has one range for the whole tensor, its weight one for each output (Wu et al., "Integer Quantization for Deep
//! Learning Inference", 2020). Both are symmetric: zero is zero. Weights stay where they are: the graph quantises
//! them itself, and engines fold that when they are built.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::graph::{Attribute, Graph, Value};
use crate::{DataType, ExportError, Precision};

/// The largest magnitudes that the 8-bit products of a model tell apart, by the tensor name of the layer without `.weight`.
pub type Ranges = BTreeMap<String, LinearRange>;

/// The largest magnitudes of one linear layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearRange {
    /// Of what goes in, after smoothing; what is beyond is cut off.
    pub input: f32,
    /// Of the weights of each output, after smoothing.
    #[serde(skip)]
    pub weight: Vec<f32>,
    /// What each element that goes in is divided by, and its weights are multiplied by; empty for nothing. It takes from
    /// the few elements that are far larger than the others, which a range for all of them would have to reach
    /// (Xiao et al., "`SmoothQuant`", 2023). Layers with one input have one smoothing.
    #[serde(skip)]
    pub smoothing: Vec<f32>,
}

/// An extra output that shows what goes into linear layers, `[tokens, width]` in fp32.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tap {
    /// Name of the output.
    pub output: String,
    /// The layers it goes into, by tensor name without `.weight`: query, key and value have one input.
    pub layers: Vec<String>,
}

/// An 8-bit format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Int8,
    E4m3,
}

impl Format {
    pub(crate) fn of(precision: Precision) -> Option<Self> {
        match precision {
            Precision::Int8 => Some(Self::Int8),
            Precision::Fp8 => Some(Self::E4m3),
            _ => None,
        }
    }

    fn dtype(self) -> DataType {
        match self {
            Self::Int8 => DataType::I8,
            Self::E4m3 => DataType::F8E4m3,
        }
    }

    /// The largest number: of int8 with the sign it has both of, of E4M3 as ONNX's `FLOAT8E4M3FN` has it.
    fn largest(self) -> f32 {
        match self {
            Self::Int8 => 127.0,
            Self::E4m3 => 448.0,
        }
    }
}

impl Graph<'_> {
    /// The input and the weight of a linear layer in 8 bits, and back in `dtype`; both as they are where the precision has
    /// none, or the layer is kept from it.
    pub(crate) fn in_8_bits(
        &mut self,
        x: Value,
        weight: Value,
        layer: &str,
        (inputs, outputs): (usize, usize),
        dtype: DataType,
    ) -> Result<(Value, Value), ExportError> {
        let Some(format) = Format::of(self.precision()).filter(|_| dtype != DataType::F32) else {
            return Ok((x, weight));
        };
        let no_range = || ExportError::NoRange { layer: layer.to_owned() };
        let range = self.ranges().get(layer).cloned().ok_or_else(no_range)?;
        let smooth = &range.smoothing;
        if range.weight.len() != outputs || ![0, inputs].contains(&smooth.len()) {
            return Err(no_range());
        }
        let key = format!("8 bits:{}", x.name);
        let x = self.once(&key, |graph| {
            let less: Vec<f32> = smooth.iter().map(|s| s.recip()).collect();
            graph.within(&format!("{layer}.input"), |graph| {
                let x = graph.times(&x, &less);
                Ok(graph.there_and_back(&x, &[range.input], None, format))
            })
        })?;
        let key = format!("8 bits:{layer}");
        let weight = self.once(&key, |graph| {
            graph.within(&format!("{layer}.weight"), |graph| {
                let weight = graph.times(&weight, smooth);
                Ok(graph.there_and_back(&weight, &range.weight, Some(0), format))
            })
        })?;
        Ok((x, weight))
    }

    /// Each column times its factor, where there are any.
    fn times(&mut self, x: &Value, factors: &[f32]) -> Value {
        if factors.is_empty() {
            return x.clone();
        }
        let factors = self.floats(&format!("{}/smoothing", x.name), factors, true, x.dtype);
        self.arithmetic("Mul", x, &factors)
    }

    /// Quantised by the ranges, one or as many as the axis has, and dequantised.
    fn there_and_back(&mut self, x: &Value, ranges: &[f32], axis: Option<i64>, format: Format) -> Value {
        // Before opset 19 both operators know fp32 only.
        let dtype = if self.opset() < 19 { DataType::F32 } else { x.dtype };
        // No range is that of zeros: any scale does, and 0 would divide by itself.
        // What rounds to 0 in the scale's own type is one of zeros as well.
        let scale = |range: &f32| {
            let scale = range / format.largest();
            let held = if dtype == DataType::F16 { half::f16::from_f32(scale).to_f32() } else { scale };
            if held > 0.0 { held } else { 1.0 }
        };
        let scales: Vec<f32> = ranges.iter().map(scale).collect();
        let scale = self.floats(&format!("{}/scale", x.name), &scales, axis.is_some(), dtype);
        let zero = self.zeros(scales.len(), axis.is_some(), format.dtype());
        let axis = || axis.map(|axis| Attribute::Int("axis", axis)).into_iter().collect();
        let wide = self.cast(x, dtype);
        let short = self.node("QuantizeLinear", &[&wide, &scale, &zero], axis(), format.dtype());
        let back = self.node("DequantizeLinear", &[&short, &scale, &zero], axis(), dtype);
        self.cast(&back, x.dtype)
    }

    /// Shows what goes into a linear layer, where that was asked for.
    pub(crate) fn tap(&mut self, x: &Value, layer: &str) {
        if !self.is_tapped() {
            return;
        }
        let output = format!("tap/{}", x.name);
        if let Some(tap) = self.taps.iter_mut().find(|tap| tap.output == output) {
            tap.layers.push(layer.to_owned());
            return;
        }
        let x = self.cast(x, DataType::F32);
        let shown = self.node("Identity", &[&x], Vec::new(), DataType::F32);
        self.show(&output, &shown);
        self.taps.push(Tap { output, layers: vec![layer.to_owned()] });
    }
}

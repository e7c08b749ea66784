//! Weights in few bits, activations in fp16: linear layers read integers from a second file and scale them.
//!
//! The graph points at bytes, so bytes in that form have to lie somewhere: in a safetensors file beside the model's own. The
//! layout of that file follows from shapes alone and is decided here; filling it reads weights, and is left to whoever
//! calls. Integers are symmetric, without a zero point. A scale belongs to an output (8 bits) or to a block of weights
//! along an output (4 bits), which is what `DequantizeLinear` takes from opset 21 on.

use serde_json::{Map, Value as Json, json};

use crate::graph::{Attribute, Graph, Value, dim};
use crate::proto::{StringStringEntryProto, TensorProto};
use crate::{DataType, ExportError, Precision};

/// Weights of a layer that share one scale in 4 bits: the first of these that its inputs are a multiple of. 128 is what the
/// field has settled on for models of billions (GPTQ, AWQ). TensorRT-RTX 1.7 was tried with all of them.
const BLOCKS: [usize; 4] = [128, 64, 32, 16];
/// Layers of fewer inputs have blocks of 32 at most: the fewer weights there are, the less their errors cancel, and the
/// scales cost half a bit a weight. Of all-MiniLM-L6-v2 (384), blocks of 128 keep a mean cosine of 0.957, of 32 0.969.
const WIDE: usize = 2048;

/// The block of a layer; `None` where none fits.
fn block_of(inputs: usize) -> Option<usize> {
    let most = if inputs < WIDE { 32 } else { 128 };
    BLOCKS.into_iter().find(|block| *block <= most && inputs > 0 && inputs.is_multiple_of(*block))
}

/// How many bits a weight has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedBits {
    /// From -127 to 127, a byte each.
    Eight,
    /// From -8 to 7, two in a byte, the first in its low half.
    Four,
}

impl PackedBits {
    pub(crate) fn of(precision: Precision) -> Option<Self> {
        match precision {
            Precision::W8a16 => Some(Self::Eight),
            Precision::W4a16 => Some(Self::Four),
            _ => None,
        }
    }

    /// Name of the file that holds such weights.
    fn file(self) -> &'static str {
        match self {
            Self::Eight => "model.w8.safetensors",
            Self::Four => "model.w4.safetensors",
        }
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Eight => 8,
            Self::Four => 4,
        }
    }
}

/// The weight of one linear layer in the second file: its integers, then its scales.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedLayer {
    /// The layer, by its tensor name without `.weight`.
    pub layer: String,
    /// Rows of the weight.
    pub outputs: usize,
    /// Columns of the weight.
    pub inputs: usize,
    /// Weights along a row that share a scale: all of them, or a divisor of `inputs`.
    pub block: usize,
}

impl PackedLayer {
    fn value_bytes(&self, bits: PackedBits) -> u64 {
        self.outputs as u64 * self.inputs as u64 * bits.count() as u64 / 8
    }

    fn scale_count(&self) -> usize {
        self.outputs * (self.inputs / self.block)
    }

    fn scale_bytes(&self) -> u64 {
        2 * self.scale_count() as u64
    }
}

/// The layout of the file that holds the weights in few bits.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Its name; it lies beside the graph.
    pub file: &'static str,
    /// Bits of a weight.
    pub bits: PackedBits,
    /// What the file begins with: the header of a safetensors file and its length.
    pub header: Vec<u8>,
    /// What follows, in order: of each layer the integers, row by row, then the scales in fp16, row by row.
    pub layers: Vec<PackedLayer>,
}

/// What is pointed at: a tensor of the second file by its name in the graph.
fn value_name(layer: &str) -> String {
    format!("packed/{layer}.weight")
}

fn scale_name(layer: &str) -> String {
    format!("packed/{layer}.weight_scale")
}

impl Packed {
    fn new(bits: PackedBits, layers: Vec<PackedLayer>) -> Self {
        let mut header = Map::new();
        header.insert(
            "__metadata__".to_owned(),
            json!({ "bits": bits.count().to_string(), "made_by": env!("CARGO_PKG_NAME") }),
        );
        let mut end = 0;
        for layer in &layers {
            let (values, scales) = (layer.value_bytes(bits), layer.scale_bytes());
            let (dtype, columns) = match bits {
                PackedBits::Eight => ("I8", layer.inputs),
                PackedBits::Four => ("U8", layer.inputs / 2),
            };
            let entry = |dtype: &str, shape: [usize; 2], from: u64, to: u64| json!({ "dtype": dtype, "shape": shape, "data_offsets": [from, to] });
            let of_values = entry(dtype, [layer.outputs, columns], end, end + values);
            let shape = [layer.outputs, layer.inputs / layer.block];
            let of_scales = entry("F16", shape, end + values, end + values + scales);
            header.insert(format!("{}.weight", layer.layer), of_values);
            header.insert(format!("{}.weight_scale", layer.layer), of_scales);
            end += values + scales;
        }
        let mut text = Json::Object(header).to_string();
        // What follows begins at a multiple of eight, as in every safetensors file.
        text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
        let header = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        Self { file: bits.file(), bits, header, layers }
    }

    /// Length of the whole file in bytes.
    #[must_use]
    pub fn length_bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.value_bytes(self.bits) + layer.scale_bytes());
        self.header.len() as u64 + layers.sum::<u64>()
    }

    /// The layout of the layers that a graph has in few bits, with the graph's initializers pointed at it; `None` where it has
    /// none.
    pub(crate) fn lay_out(
        precision: Precision,
        layers: Vec<PackedLayer>,
        initializers: &mut [TensorProto],
    ) -> Option<Self> {
        let packed = Self::new(PackedBits::of(precision)?, layers);
        let mut at = packed.header.len() as u64;
        for layer in &packed.layers {
            for (name, length) in [
                (value_name(&layer.layer), layer.value_bytes(packed.bits)),
                (scale_name(&layer.layer), layer.scale_bytes()),
            ] {
                let named = initializers.iter_mut().find(|it| it.name.as_deref() == Some(name.as_str()));
                if let Some(initializer) = named {
                    initializer.external_data = external_data(packed.file, at, length);
                    initializer.data_location = Some(1);
                }
                at += length;
            }
        }
        Some(packed)
    }
}

/// Where the bytes of an initializer lie.
pub(crate) fn external_data(file: &str, offset_bytes: u64, length_bytes: u64) -> Vec<StringStringEntryProto> {
    let entry =
        |key: &str, value: String| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) };
    vec![
        entry("location", file.to_owned()),
        entry("offset", offset_bytes.to_string()),
        entry("length", length_bytes.to_string()),
    ]
}

impl Graph<'_> {
    /// The weight of a linear layer from the second file, scaled, in `dtype`; `None` where the precision has none there, the
    /// layer is kept in fp32, or no block fits its inputs.
    pub(crate) fn packed_weight(
        &mut self,
        layer: &str,
        (inputs, outputs): (usize, usize),
        dtype: DataType,
    ) -> Result<Option<Value>, ExportError> {
        let Some(bits) = PackedBits::of(self.precision()).filter(|_| dtype == DataType::F16) else {
            return Ok(None);
        };
        // A multiple of 16 keeps the file's tensors on even offsets as well.
        let Some(block) = block_of(inputs) else {
            return Ok(None);
        };
        if self.opset() < 21 {
            return Err(ExportError::Unsupported {
                path: self.checkpoint.config_path(),
                what: format!("{} in the portable lowering", self.precision()),
                supported: "the lowering for TensorRT: scales in fp16 and in blocks need opset 21".to_owned(),
            });
        }
        let name = format!("{layer}.weight");
        self.checked(&name, &[outputs, inputs])?;
        self.narrow(&name);
        let block = if bits == PackedBits::Eight { inputs } else { block };
        let weight = self.once(&format!("packed:{layer}"), |graph| {
            let packed = PackedLayer { layer: layer.to_owned(), outputs, inputs, block };
            let integer = if bits == PackedBits::Eight { DataType::I8 } else { DataType::I4 };
            let values = graph.packed_initializer(value_name(layer), integer, &[outputs, inputs]);
            let per_row = inputs / block;
            let (shape, attributes) = match bits {
                PackedBits::Eight => (vec![outputs], vec![Attribute::Int("axis", 0)]),
                PackedBits::Four => (
                    vec![outputs, per_row],
                    vec![Attribute::Int("axis", 1), Attribute::Int("block_size", dim(block))],
                ),
            };
            let scales = graph.packed_initializer(scale_name(layer), DataType::F16, &shape);
            graph.count_weight(packed.value_bytes(bits) + packed.scale_bytes());
            graph.packed.push(packed);
            graph.within(&name, |graph| {
                Ok(graph.node("DequantizeLinear", &[&values, &scales], attributes, dtype))
            })
        })?;
        Ok(Some(weight))
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype::{F16, I8, U8};

    use super::*;

    #[test]
    fn blocks_go_by_width() {
        for (inputs, expected) in
            [(384, Some(32)), (4096, Some(128)), (2112, Some(64)), (48, Some(16)), (24, None), (0, None)]
        {
            assert_eq!(block_of(inputs), expected, "{inputs}");
        }
    }

    #[test]
    fn the_layout_is_a_safetensors_file() {
        let layer =
            |layer: &str, block| PackedLayer { layer: layer.to_owned(), outputs: 3, inputs: 64, block };
        let check = |bits, block, expected: [(&str, safetensors::Dtype, [usize; 2]); 2]| {
            let packed = Packed::new(bits, vec![layer("a.q", block), layer("b", block)]);
            let mut bytes = packed.header.clone();
            bytes.resize(usize::try_from(packed.length_bytes()).unwrap_or_default(), 0);
            let file = safetensors::SafeTensors::deserialize(&bytes)
                .unwrap_or_else(|error| panic!("{bits:?}: {error}"));
            assert_eq!(packed.header.len() % 8, 0, "{bits:?}");
            for layer in ["a.q", "b"] {
                for (part, dtype, shape) in expected {
                    let tensor =
                        file.tensor(&format!("{layer}{part}")).unwrap_or_else(|error| panic!("{error}"));
                    assert_eq!(
                        (tensor.dtype(), tensor.shape()),
                        (dtype, &shape[..]),
                        "{bits:?}, {layer}{part}"
                    );
                }
            }
        };
        check(PackedBits::Eight, 64, [(".weight", I8, [3, 64]), (".weight_scale", F16, [3, 1])]);
        check(PackedBits::Four, 32, [(".weight", U8, [3, 32]), (".weight_scale", F16, [3, 2])]);
    }
}

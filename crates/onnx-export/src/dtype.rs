//! Element types and the precision an engine computes in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Element type of a tensor, with ONNX's number for it (`TensorProto.DataType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(i32)]
pub enum DataType {
    /// 32-bit IEEE float.
    F32 = 1,
    /// 8-bit signed integer.
    I8 = 3,
    /// 32-bit signed integer.
    I32 = 6,
    /// 64-bit signed integer.
    I64 = 7,
    /// Truth value, one byte.
    Bool = 9,
    /// 16-bit IEEE float.
    F16 = 10,
    /// 64-bit IEEE float.
    F64 = 11,
    /// 16-bit float with the exponent range of `F32`.
    Bf16 = 16,
    /// 4-bit signed integer, two in a byte.
    I4 = 22,
    /// 8-bit float with 4 bits of exponent, 3 of mantissa and no infinity.
    F8E4m3 = 17,
}

impl DataType {
    /// ONNX's number for the type.
    #[must_use]
    pub fn onnx(self) -> i32 {
        self as i32
    }

    /// The type of ONNX's number, if it is one of these.
    #[must_use]
    pub fn from_onnx(number: i32) -> Option<Self> {
        [
            Self::F32,
            Self::I8,
            Self::I32,
            Self::I64,
            Self::Bool,
            Self::F16,
            Self::F64,
            Self::Bf16,
            Self::F8E4m3,
            Self::I4,
        ]
        .into_iter()
        .find(|dtype| dtype.onnx() == number)
    }

    /// The type that a safetensors header names, where a graph can hold it as a weight.
    #[must_use]
    pub fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::F16 => Some(Self::F16),
            safetensors::Dtype::BF16 => Some(Self::Bf16),
            safetensors::Dtype::F64 => Some(Self::F64),
            safetensors::Dtype::I64 => Some(Self::I64),
            safetensors::Dtype::I32 => Some(Self::I32),
            safetensors::Dtype::BOOL => Some(Self::Bool),
            _ => None,
        }
    }
}

/// How a graph computes in bfloat16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bf16 {
    /// With values of that type: what an engine is built from.
    #[default]
    Native,
    /// With fp32 values that are rounded to bfloat16 after every operation: what a runtime without bfloat16 kernels,
    /// such as ONNX Runtime on a CPU, can check. Sums run in fp32, as they do in an engine.
    Emulated,
}

/// What the matrix products of a graph compute in. A property of the graph: TensorRT networks are strongly typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats throughout.
    Fp32,
    /// 32-bit floats; matrix products may round their operands to 19 bits (10 of mantissa) on tensor cores.
    Tf32,
    /// Weights and matrix products in 16-bit IEEE floats.
    Fp16,
    /// Weights and matrix products in bfloat16.
    Bf16,
    /// Inputs and weights of linear layers in 8-bit floats (E4M3), everything else as `Fp16`.
    Fp8,
    /// Inputs and weights of linear layers in 8-bit integers, everything else as `Fp16`.
    Int8,
    /// Weights of linear layers in 8-bit integers with a scale for each output, everything that is computed as `Fp16`.
    W8a16,
    /// Weights of linear layers in 4-bit integers with a scale for each block of up to 128, everything that is computed as
    /// `Fp16`.
    W4a16,
}

impl Precision {
    /// All of them, from exact to coarse.
    pub const ALL: [Self; 8] =
        [Self::Fp32, Self::Tf32, Self::Fp16, Self::Bf16, Self::W8a16, Self::Fp8, Self::Int8, Self::W4a16];
    /// Those that are what they are without knowing the model's activations.
    pub const FLOATS: [Self; 4] = [Self::Fp32, Self::Tf32, Self::Fp16, Self::Bf16];

    /// Whether the ranges of the model's activations have to be known.
    #[must_use]
    pub fn needs_calibration(self) -> bool {
        matches!(self, Self::Fp8 | Self::Int8)
    }

    /// Whether values are held in fp16, whose range they may leave; with products in 8 bits, what is between those.
    #[must_use]
    pub fn may_overflow(self) -> bool {
        self.compute_type() == DataType::F16
    }

    /// Element type of weights and activations between the nodes of the graph.
    #[must_use]
    pub fn compute_type(self) -> DataType {
        match self {
            Self::Fp32 | Self::Tf32 => DataType::F32,
            Self::Fp16 | Self::Fp8 | Self::Int8 | Self::W8a16 | Self::W4a16 => DataType::F16,
            Self::Bf16 => DataType::Bf16,
        }
    }

    /// The word for it on a command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Fp8 => "fp8",
            Self::Int8 => "int8",
            Self::W8a16 => "w8a16",
            Self::W4a16 => "w4a16",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|precision| precision.as_str() == word).ok_or_else(|| {
            format!("{word:?} is no precision; one of {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

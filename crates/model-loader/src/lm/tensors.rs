//! Where a decoder's weights come from, and the products that they become.

use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Device, Module as _, Tensor};

use crate::LoadError;
use crate::lm::lora::Adapter;
use crate::weights::Weights;

/// The weights of a folder or of a file, under the names that transformers gives them.
pub(crate) trait Tensors: Sync {
    /// The weight of a product, `[output, input]`.
    fn matrix(&self, name: &str, output: usize, input: usize) -> Result<Matrix, LoadError>;
    /// A norm's gain or a bias.
    fn vector(&self, name: &str, len: usize) -> Result<Tensor, LoadError>;
    /// An error if something that had to be used was not.
    fn finish(&self) -> Result<(), LoadError>;
}

/// A weight `[output, input]`, as numbers of the precision of the computation or as blocks of a GGUF file.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    Dense(Tensor),
    /// The product multiplies with the blocks; rows of an embedding are unpacked as they are asked for.
    Blocks(Arc<QTensor>, QMatMul),
}

impl Matrix {
    /// `x · weightᵀ` for `[rows, input]`.
    pub(crate) fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(weight) => x.matmul(&weight.t()?),
            Self::Blocks(_, product) => product.forward(x),
        }
    }

    /// The rows of these numbers: `[rows, input]`.
    pub(crate) fn rows(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(weight) => weight.index_select(ids, 0),
            Self::Blocks(blocks, _) => blocks.embedding(ids),
        }
    }
}

/// A product with its bias.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn load(
        tensors: &dyn Tensors,
        name: &str,
        output: usize,
        input: usize,
        bias: bool,
    ) -> Result<Self, LoadError> {
        let weight = tensors.matrix(&format!("{name}.weight"), output, input)?;
        let bias = if bias { Some(tensors.vector(&format!("{name}.bias"), output)?) } else { None };
        Ok(Self { weight, bias })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = self.weight.product(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// A folder's safetensors: read one tensor at a time, checked, an adapter merged in float32, then rounded to the
/// precision of the computation. No more than a tensor a thread is held twice.
pub(crate) struct Safetensors<'a> {
    pub weights: &'a Weights,
    pub adapter: Option<&'a Adapter>,
    pub dtype: DType,
    pub device: Device,
}

impl Safetensors<'_> {
    fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let mut values = Vec::new();
        let replaced = match self.adapter {
            Some(adapter) => adapter.replace(name, shape, &mut values)?,
            None => false,
        };
        if !replaced {
            self.weights.read(name, shape, &mut values)?;
        }
        let failed = LoadError::compute("a weight of the language model");
        if let Some(adapter) = self.adapter {
            adapter.merge(name, shape, &mut values)?;
        }
        let on_device =
            || Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device);
        on_device().map_err(failed)
    }
}

impl Tensors for Safetensors<'_> {
    fn matrix(&self, name: &str, output: usize, input: usize) -> Result<Matrix, LoadError> {
        self.read(name, &[output, input]).map(Matrix::Dense)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor, LoadError> {
        self.read(name, &[len])
    }

    fn finish(&self) -> Result<(), LoadError> {
        self.adapter.map_or(Ok(()), Adapter::all_used)
    }
}

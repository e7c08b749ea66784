//! Tensors of any shape, for graphs whose inputs are more than a batch of tokens: a decoder with a cache.

use half::f16;
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor};

use super::{RUN, SessionError, refused};
use crate::Output;

/// A tensor that goes into a graph, or that came out of one.
#[derive(Debug)]
pub struct OnnxTensor(DynValue);

impl OnnxTensor {
    /// Integers, `I64`, in row-major order; dimensions may be 0.
    pub fn integers(shape: &[usize], values: Vec<i64>) -> Result<Self, SessionError> {
        Self::new(shape, values)
    }

    /// Numbers in fp32, in row-major order; dimensions may be 0.
    pub fn floats(shape: &[usize], values: Vec<f32>) -> Result<Self, SessionError> {
        Self::new(shape, values)
    }

    /// Numbers in fp16, in row-major order; dimensions may be 0.
    pub fn halves(shape: &[usize], values: Vec<f16>) -> Result<Self, SessionError> {
        Self::new(shape, values)
    }

    fn new<T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static>(
        shape: &[usize],
        values: Vec<T>,
    ) -> Result<Self, SessionError> {
        let tensor = Tensor::from_array((shape.to_vec(), values)).map_err(|error| refused(RUN, &error))?;
        Ok(Self(tensor.into_dyn()))
    }

    /// Its shape and its values as fp32. It is of fp32 or fp16.
    pub fn to_f32(&self) -> Result<Output, SessionError> {
        let sizes =
            |shape: &[i64]| shape.iter().map(|&size| usize::try_from(size).unwrap_or_default()).collect();
        if let Ok((shape, values)) = self.0.try_extract_tensor::<f32>() {
            return Ok(Output { shape: sizes(shape), values: values.to_vec() });
        }
        let (shape, values) = self.0.try_extract_tensor::<f16>().map_err(|error| refused(RUN, &error))?;
        Ok(Output { shape: sizes(shape), values: values.iter().map(|value| value.to_f32()).collect() })
    }

    pub(super) fn from_value(value: DynValue) -> Self {
        Self(value)
    }

    pub(super) fn into_value(self) -> DynValue {
        self.0
    }
}

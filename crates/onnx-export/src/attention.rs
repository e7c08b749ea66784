//! Bidirectional multi-head attention and the mask that goes with it.

use std::ops::RangeInclusive;

use crate::graph::{Attribute, Graph, Value, dim};
use crate::{DataType, ExportError, Lowering};

/// Added to the score of a padded position.
///
/// Large enough that its exponential is exactly zero beside any real score in fp32, small enough that adding it
/// to a score does not leave the range of fp16 (65504).
const MASKED_SCORE: f32 = -30_000.0;

/// Head sizes that TensorRT-RTX 1.7 has fused kernels for. Tried with it: 10, 12, 16 to 160 and 256 build; 3, 4, 8 and
/// 300 do not.
const FUSED_HEAD_SIZES: RangeInclusive<usize> = 10..=256;

/// Names of the two inputs that every encoder has.
pub(crate) const INPUT_IDS: &str = "input_ids";
pub(crate) const ATTENTION_MASK: &str = "attention_mask";

/// Sizes of an attention block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) count: usize,
    pub(crate) size: usize,
}

impl Graph<'_> {
    /// The value [batch, sequence] of the running input, as a list of two integers.
    pub(crate) fn batch_and_sequence(&mut self) -> Result<Value, ExportError> {
        let ids = Value { name: INPUT_IDS.to_owned(), dtype: DataType::I64 };
        self.once("shape", |graph| Ok(graph.node("Shape", &[&ids], Vec::new(), DataType::I64)))
    }

    /// [batch, sequence, heads, size]
    fn split_shape(&mut self, heads: Heads) -> Result<Value, ExportError> {
        let shape = self.batch_and_sequence()?;
        self.once("shape:heads", |graph| {
            let rest = graph.integers(&[dim(heads.count), dim(heads.size)]);
            Ok(graph.concat(&[&shape, &rest]))
        })
    }

    /// `attention_mask` as `dtype`, [batch, sequence] with 1 for a token and 0 for padding.
    pub(crate) fn mask(&mut self, dtype: DataType) -> Result<Value, ExportError> {
        let mask = Value { name: ATTENTION_MASK.to_owned(), dtype: DataType::I64 };
        self.once(&format!("mask:{}", dtype.onnx()), |graph| Ok(graph.cast(&mask, dtype)))
    }

    /// What is added to the scores, as `dtype`: [batch, 1, 1, sequence], 0 for a token.
    fn score_mask(&mut self, dtype: DataType) -> Result<Value, ExportError> {
        let mask = self.mask(DataType::F32)?;
        self.once(&format!("mask:scores:{}", dtype.onnx()), |graph| {
            let (one, masked) = (graph.scalar(1.0, DataType::F32), graph.scalar(MASKED_SCORE, DataType::F32));
            let padding = graph.arithmetic("Sub", &one, &mask);
            let scores = graph.arithmetic("Mul", &padding, &masked);
            let scores = graph.unsqueeze(&scores, &[1, 2]);
            Ok(graph.cast(&scores, dtype))
        })
    }

    /// The same for the `Attention` operator, which wants [batch, 1, sequence, sequence].
    fn square_score_mask(&mut self, dtype: DataType) -> Result<Value, ExportError> {
        let (mask, shape) = (self.score_mask(dtype)?, self.batch_and_sequence()?);
        self.once(&format!("mask:square:{}", dtype.onnx()), |graph| {
            let (zero, one) = (graph.integers(&[0]), graph.integers(&[1]));
            let (batch, sequence) = (graph.gather(&shape, &zero, 0), graph.gather(&shape, &one, 0));
            let target = graph.concat(&[&batch, &one, &sequence, &sequence]);
            Ok(graph.node("Expand", &[&mask, &target], Vec::new(), dtype))
        })
    }

    /// softmax(Q·Kᵀ/√size + mask)·V for each head; all of shape [tokens, hidden], in and out.
    ///
    /// TensorRT has fused kernels for the `Attention` operator in 16-bit floats and refuses it in fp32, where the
    /// operator is written out. The softmax is taken in fp32: here where it is written out, and by TensorRT's fused
    /// kernels themselves (its parser refuses the attribute `softmax_precision` that would say so).
    pub(crate) fn attention(&mut self, [q, k, v]: [&Value; 3], heads: Heads) -> Result<Value, ExportError> {
        let dtype = self.compute_type();
        let shape = self.split_shape(heads)?;
        let split = |graph: &mut Self, x: &Value, permutation: [i64; 4]| {
            let x = graph.cast(x, dtype);
            let x = graph.reshape_to(&x, &shape);
            graph.transpose(&x, &permutation)
        };
        let scale = (heads.size as f32).sqrt().recip();
        let fused = self.lowering() == Lowering::TensorRt
            && dtype != DataType::F32
            && FUSED_HEAD_SIZES.contains(&heads.size);
        let context = if fused {
            let [q, k, v] = [q, k, v].map(|x| split(self, x, [0, 2, 1, 3]));
            let mask = self.square_score_mask(dtype)?;
            self.node("Attention", &[&q, &k, &v, &mask], vec![Attribute::Float("scale", scale)], dtype)
        } else {
            let q = split(self, q, [0, 2, 1, 3]);
            let k = split(self, k, [0, 2, 3, 1]);
            let v = split(self, v, [0, 2, 1, 3]);
            // Scaling the query instead of the scores keeps the product in range.
            let scale = self.scalar(scale, dtype);
            let q = self.arithmetic("Mul", &q, &scale);
            let scores = self.node("MatMul", &[&q, &k], Vec::new(), dtype);
            let scores = self.cast(&scores, DataType::F32);
            let mask = self.score_mask(DataType::F32)?;
            let scores = self.arithmetic("Add", &scores, &mask);
            let weights = self.node("Softmax", &[&scores], vec![Attribute::Int("axis", -1)], DataType::F32);
            let weights = self.cast(&weights, dtype);
            self.node("MatMul", &[&weights, &v], Vec::new(), dtype)
        };
        let context = self.transpose(&context, &[0, 2, 1, 3]);
        Ok(self.reshape(&context, &[-1, dim(heads.count * heads.size)]))
    }
}

//! Multi-head attention and the masks that go with it.

use std::ops::RangeInclusive;

use crate::graph::{Attribute, Graph, Value, dim};
use crate::{DataType, ExportError, Lowering};

/// Added to the score of a padded position.
///
/// Large enough that its exponential is exactly zero beside any real score in fp32, small enough that adding it
/// to a score does not leave the range of fp16 (65504).
pub(crate) const MASKED_SCORE: f32 = -30_000.0;

/// Head sizes that TensorRT-RTX 1.7 has fused kernels for. Tried with it: 10, 12, 16 to 160 and 256 build; 3, 4, 8 and
/// 300 do not.
const FUSED_HEAD_SIZES: RangeInclusive<usize> = 10..=256;

/// Names of the two inputs that every model has, and of a third that some encoders have.
pub(crate) const INPUT_IDS: &str = "input_ids";
pub(crate) const ATTENTION_MASK: &str = "attention_mask";
pub(crate) const TOKEN_TYPE_IDS: &str = "token_type_ids";

/// Sizes of an attention block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Heads of the queries.
    pub(crate) count: usize,
    /// Heads of the keys and values; they divide `count`.
    pub(crate) kv: usize,
    pub(crate) size: usize,
}

impl Heads {
    /// As many heads of keys and values as of queries.
    pub(crate) fn plain(count: usize, size: usize) -> Self {
        Self { count, kv: count, size }
    }

    /// What scores are multiplied by.
    pub(crate) fn scale(self) -> f32 {
        (self.size as f32).sqrt().recip()
    }
}

/// What is added to the scores of a block, in fp32.
#[derive(Clone, Debug)]
pub(crate) struct Mask {
    value: Value,
    /// Whether it is [batch, 1, 1, sequence], and the same for every query.
    is_row: bool,
}

impl Mask {
    /// A mask with a row for every query: [batch or 1, heads or 1, queries, keys].
    pub(crate) fn square(value: Value) -> Self {
        Self { value, is_row: false }
    }
}

impl Graph<'_> {
    /// The value [batch, sequence] of the running input, as a list of two integers.
    pub(crate) fn batch_and_sequence(&mut self) -> Result<Value, ExportError> {
        let ids = Value { name: INPUT_IDS.to_owned(), dtype: DataType::I64 };
        self.once("shape", |graph| Ok(graph.node("Shape", &[&ids], Vec::new(), DataType::I64)))
    }

    /// `attention_mask` as `dtype`, [batch, sequence] with 1 for a token and 0 for padding.
    pub(crate) fn mask(&mut self, dtype: DataType) -> Result<Value, ExportError> {
        let mask = Value { name: ATTENTION_MASK.to_owned(), dtype: DataType::I64 };
        self.once(&format!("mask:{}", dtype.onnx()), |graph| Ok(graph.cast(&mask, dtype)))
    }

    /// What hides padding from every query: 0 for a token.
    pub(crate) fn padding_mask(&mut self) -> Result<Mask, ExportError> {
        let mask = self.mask(DataType::F32)?;
        let value = self.once("mask:scores", |graph| {
            let (one, masked) = (graph.scalar(1.0, DataType::F32), graph.scalar(MASKED_SCORE, DataType::F32));
            let padding = graph.arithmetic("Sub", &one, &mask);
            let scores = graph.arithmetic("Mul", &padding, &masked);
            Ok(graph.unsqueeze(&scores, &[1, 2]))
        })?;
        Ok(Mask { value, is_row: true })
    }

    /// Hides padding, and what is more than `reach` tokens away on either side.
    pub(crate) fn window_mask(&mut self, reach: usize) -> Result<Mask, ExportError> {
        let padding = self.padding_mask()?;
        let distances = self.distances()?;
        let value = self.once(&format!("mask:window:{reach}"), |graph| {
            let far = graph.unary("Abs", &distances);
            let reach = graph.integer(dim(reach));
            let far = graph.node("Greater", &[&far, &reach], Vec::new(), DataType::Bool);
            let hidden = graph.scalar(MASKED_SCORE, DataType::F32);
            // Not the sum of both: it would leave the range of fp16.
            Ok(graph.node("Where", &[&far, &hidden, &padding.value], Vec::new(), DataType::F32))
        })?;
        Ok(Mask::square(value))
    }

    /// `mask` with a bias [1 or batch, heads, sequence, sequence] of its own for each pair of tokens.
    pub(crate) fn biased(&mut self, mask: &Mask, bias: &Value) -> Mask {
        let bias = self.cast(bias, DataType::F32);
        Mask::square(self.arithmetic("Add", &bias, &mask.value))
    }

    /// Where each key lies from each query: key − query, [sequence, sequence] as `I64`.
    pub(crate) fn distances(&mut self) -> Result<Value, ExportError> {
        let positions = self.positions()?;
        self.once("positions:distances", |graph| {
            let (keys, queries) = (graph.unsqueeze(&positions, &[0]), graph.unsqueeze(&positions, &[1]));
            Ok(graph.arithmetic("Sub", &keys, &queries))
        })
    }

    /// For each pair of tokens the entry of `table`, which has one for every distance from `1 - longest` to
    /// `longest - 1`: [sequence, sequence] as `I64`.
    pub(crate) fn by_distance(
        &mut self,
        name: &str,
        longest: usize,
        table: impl Fn(i64) -> i64,
    ) -> Result<Value, ExportError> {
        let distances = self.distances()?;
        self.once(name, |graph| {
            let reach = dim(longest) - 1;
            let entries: Vec<i64> = (-reach..=reach).map(table).collect();
            let (table, reach) = (graph.integer_table(name, &entries), graph.integer(reach));
            let rows = graph.arithmetic("Add", &distances, &reach);
            Ok(graph.gather(&table, &rows, 0))
        })
    }

    /// `x`, [tokens, count · size] of a rectangle of sentences, as [batch, count, sequence, size].
    pub(crate) fn split_heads(&mut self, x: &Value, count: usize, size: usize) -> Result<Value, ExportError> {
        let dtype = self.compute_type();
        let shape = self.batch_and_sequence()?;
        let shape = self.once(&format!("shape:heads:{count}:{size}"), |graph| {
            let rest = graph.integers(&[dim(count), dim(size)]);
            Ok(graph.concat(&[&shape, &rest]))
        })?;
        let x = self.cast(x, dtype);
        let x = self.reshape_to(&x, &shape);
        Ok(self.transpose(&x, &[0, 2, 1, 3]))
    }

    /// softmax(scale · Q·Kᵀ + mask)·V for each head, from [batch, heads, sequence, size] to [tokens, hidden].
    ///
    /// TensorRT has fused kernels for the `Attention` operator in 16-bit floats and refuses it in fp32, where the
    /// operator is written out. The softmax is taken in fp32: here where it is written out, and by TensorRT's fused
    /// kernels themselves (its parser refuses the attribute `softmax_precision` that would say so).
    pub(crate) fn attend(
        &mut self,
        [q, k, v]: [&Value; 3],
        heads: Heads,
        scale: f32,
        mask: &Mask,
    ) -> Result<Value, ExportError> {
        let dtype = self.compute_type();
        let [q, k, v] = [q, k, v].map(|x| self.cast(x, dtype));
        let fused = self.lowering() == Lowering::TensorRt
            && dtype != DataType::F32
            && FUSED_HEAD_SIZES.contains(&heads.size);
        let context = if fused {
            // Keys and values may have fewer heads than queries: the operator shares them out by itself.
            let mask = self.mask_of_attention(mask, dtype)?;
            self.node("Attention", &[&q, &k, &v, &mask], vec![Attribute::Float("scale", scale)], dtype)
        } else {
            self.in_fp32("the softmax of attention");
            self.written_out([&q, &k, &v], heads, scale, mask, dtype)
        };
        let context = self.transpose(&context, &[0, 2, 1, 3]);
        Ok(self.reshape(&context, &[-1, dim(heads.count * heads.size)]))
    }

    fn written_out(
        &mut self,
        [q, k, v]: [&Value; 3],
        heads: Heads,
        scale: f32,
        mask: &Mask,
        dtype: DataType,
    ) -> Value {
        // The queries that share a head of keys are rows of one product: keys and values are not repeated.
        let regroup = |graph: &mut Self, x: &Value, count: usize| {
            if heads.kv == heads.count { x.clone() } else { graph.reshape(x, &[0, dim(count), -1, 0]) }
        };
        // Scaling the query instead of the scores keeps the product in range.
        let scale = self.scalar(scale, dtype);
        let q = self.arithmetic("Mul", q, &scale);
        let q = regroup(self, &q, heads.kv);
        let k = self.transpose(k, &[0, 1, 3, 2]);
        let scores = self.node("MatMul", &[&q, &k], Vec::new(), dtype);
        let scores = self.cast(&scores, DataType::F32);
        let scores = regroup(self, &scores, heads.count);
        let scores = self.arithmetic("Add", &scores, &mask.value);
        let weights = self.node("Softmax", &[&scores], vec![Attribute::Int("axis", -1)], DataType::F32);
        let weights = self.cast(&weights, dtype);
        let weights = regroup(self, &weights, heads.kv);
        let context = self.node("MatMul", &[&weights, v], Vec::new(), dtype);
        regroup(self, &context, heads.count)
    }

    /// The mask as the `Attention` operator wants it: a row for every query.
    fn mask_of_attention(&mut self, mask: &Mask, dtype: DataType) -> Result<Value, ExportError> {
        let value = self.once(&format!("mask:{}:{}", mask.value.name, dtype.onnx()), |graph| {
            Ok(graph.cast(&mask.value, dtype))
        })?;
        if !mask.is_row {
            return Ok(value);
        }
        let shape = self.batch_and_sequence()?;
        self.once(&format!("mask:square:{}:{}", mask.value.name, dtype.onnx()), |graph| {
            let (zero, one) = (graph.integers(&[0]), graph.integers(&[1]));
            let (batch, sequence) = (graph.gather(&shape, &zero, 0), graph.gather(&shape, &one, 0));
            let target = graph.concat(&[&batch, &one, &sequence, &sequence]);
            Ok(graph.node("Expand", &[&value, &target], Vec::new(), dtype))
        })
    }
}

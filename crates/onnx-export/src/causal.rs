//! What a decoder needs beside attention: positions and masks that follow from `attention_mask`, and a cache.

use crate::attention::{MASKED_SCORE, Mask};
use crate::graph::{Attribute, Graph, Value};
use crate::{DataType, ExportError};

impl Graph<'_> {
    /// The position of each token among those that are no padding, from 0 on: [batch, total] in fp32.
    ///
    /// Padding has the position of the token before it, or -1. So it may be on either side, and on both.
    pub(crate) fn token_positions_by_mask(&mut self) -> Result<Value, ExportError> {
        let mask = self.mask(DataType::F32)?;
        self.once("positions:mask", |graph| {
            graph.within("position_ids", |graph| {
                graph.in_fp32("the counting of positions");
                // Exact up to 2²⁴; TensorRT sums no integers.
                let (axis, one) = (graph.integer(1), graph.scalar(1.0, DataType::F32));
                let exclusive = vec![Attribute::Int("exclusive", 0)];
                let count = graph.node("CumSum", &[&mask, &axis], exclusive, DataType::F32);
                Ok(graph.arithmetic("Sub", &count, &one))
            })
        })
    }

    /// Of [batch, total] the last ones, as many as tokens come in: [batch, sequence].
    pub(crate) fn last_tokens(&mut self, x: &Value) -> Result<Value, ExportError> {
        let shape = self.batch_and_sequence()?;
        self.once(&format!("last:{}", x.name), |graph| {
            let (one, zero, end) = (graph.integers(&[1]), graph.integers(&[0]), graph.integers(&[i64::MAX]));
            let sequence = graph.gather(&shape, &one, 0);
            let start = graph.arithmetic("Sub", &zero, &sequence);
            Ok(graph.node("Slice", &[x, &start, &end, &one], Vec::new(), x.dtype))
        })
    }

    /// What hides from the token at each position of `queries` all padding, all tokens after it, and those that are
    /// `window` or more before it: [batch, 1, queries, keys] from positions [batch, queries] and [batch, keys].
    pub(crate) fn causal_mask(
        &mut self,
        queries: &Value,
        keys: &Value,
        window: Option<usize>,
    ) -> Result<Mask, ExportError> {
        let mask = self.mask(DataType::F32)?;
        let value = self.once(&format!("mask:causal:{window:?}"), |graph| {
            graph.within("mask", |graph| {
                let (queries, keys) = (graph.unsqueeze(queries, &[1, 3]), graph.unsqueeze(keys, &[1, 2]));
                let distance = graph.arithmetic("Sub", &queries, &keys);
                let zero = graph.scalar(0.0, DataType::F32);
                let mut seen = graph.node("GreaterOrEqual", &[&distance, &zero], Vec::new(), DataType::Bool);
                if let Some(window) = window {
                    let window = graph.scalar(window as f32, DataType::F32);
                    let near = graph.node("Less", &[&distance, &window], Vec::new(), DataType::Bool);
                    seen = graph.node("And", &[&seen, &near], Vec::new(), DataType::Bool);
                }
                let is_token = graph.cast(&mask, DataType::Bool);
                let is_token = graph.unsqueeze(&is_token, &[1, 2]);
                let seen = graph.node("And", &[&seen, &is_token], Vec::new(), DataType::Bool);
                let hidden = graph.scalar(MASKED_SCORE, DataType::F32);
                Ok(graph.node("Where", &[&seen, &zero, &hidden], Vec::new(), DataType::F32))
            })
        })?;
        Ok(Mask::square(value))
    }

    /// Keys or values of the past and, after them, new ones: [batch, heads, total, size].
    pub(crate) fn append(&mut self, past: &Value, new: &Value) -> Value {
        let new = self.cast(new, past.dtype);
        self.node("Concat", &[past, &new], vec![Attribute::Int("axis", 2)], past.dtype)
    }
}

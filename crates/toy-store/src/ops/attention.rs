//! Scaled dot-product attention over sentences that lie one after the other in one matrix, without padding.

use std::ops::Range;
use std::rc::Rc;

use crate::matrix::Matrix;
use crate::ops::loss::softmax;
use crate::tape::{Tape, Var};

/// How the channels of queries and of keys/values are divided into heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Heads of the queries.
    pub(crate) query: usize,
    /// Heads of keys and values; divides `query` (grouped-query attention when smaller).
    pub(crate) key_value: usize,
    /// Channels of one head.
    pub(crate) size: usize,
    /// Whether a token sees only itself and what is before it.
    pub(crate) causal: bool,
}

impl Heads {
    #[expect(clippy::cast_precision_loss, reason = "a head has far fewer than 2^24 channels")]
    fn scale(self) -> f32 {
        1.0 / (self.size as f32).sqrt()
    }

    fn channels(self, head: usize) -> Range<usize> {
        head * self.size..(head + 1) * self.size
    }

    fn key_value_channels(self, head: usize) -> Range<usize> {
        self.channels(head * self.key_value / self.query)
    }

    /// One past the last row of `span` that `row` may see.
    fn horizon(self, span: &Range<usize>, row: usize) -> usize {
        if self.causal { row + 1 } else { span.end }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `target += factor · source`
fn add_scaled(target: &mut [f32], factor: f32, source: &[f32]) {
    for (t, s) in target.iter_mut().zip(source) {
        *t += factor * s;
    }
}

impl Tape {
    /// Attention inside each span; `q` is `[tokens, query·size]`, `k` and `v` are `[tokens, key_value·size]`.
    pub(crate) fn attention(
        &mut self,
        q: Var,
        k: Var,
        v: Var,
        heads: Heads,
        spans: Rc<[Range<usize>]>,
    ) -> Var {
        let (queries, keys, values) = (self.value(q), self.value(k), self.value(v));
        let mut output = Matrix::zeros(queries.rows, queries.cols);
        // In the order span, head, row: that row's probabilities over what it may see.
        let mut weights = Vec::new();
        for span in spans.iter() {
            for head in 0..heads.query {
                let (channels, shared) = (heads.channels(head), heads.key_value_channels(head));
                for row in span.clone() {
                    let query = &queries.row(row)[channels.clone()];
                    let seen = span.start..heads.horizon(span, row);
                    let start = weights.len();
                    weights.extend(
                        seen.clone()
                            .map(|other| dot(query, &keys.row(other)[shared.clone()]) * heads.scale()),
                    );
                    softmax(&mut weights[start..]);
                    let mixed = &mut output.row_mut(row)[channels.clone()];
                    for (other, weight) in seen.zip(&weights[start..]) {
                        add_scaled(mixed, *weight, &values.row(other)[shared.clone()]);
                    }
                }
            }
        }
        self.push(output, move |gradient, gradients| {
            let mut by_query = Matrix::zeros(queries.rows, queries.cols);
            let mut by_key = Matrix::zeros(keys.rows, keys.cols);
            let mut by_value = Matrix::zeros(values.rows, values.cols);
            let mut rest = weights.as_slice();
            for span in spans.iter() {
                for head in 0..heads.query {
                    let (channels, shared) = (heads.channels(head), heads.key_value_channels(head));
                    for row in span.clone() {
                        let seen = span.start..heads.horizon(span, row);
                        let (weights, later) = rest.split_at(seen.len());
                        rest = later;
                        let outer = &gradient.row(row)[channels.clone()];
                        let by_weight: Vec<f32> = seen
                            .clone()
                            .map(|other| dot(outer, &values.row(other)[shared.clone()]))
                            .collect();
                        let mean = dot(&by_weight, weights);
                        for ((other, weight), by_weight) in seen.zip(weights).zip(&by_weight) {
                            add_scaled(&mut by_value.row_mut(other)[shared.clone()], *weight, outer);
                            let by_score = weight * (by_weight - mean) * heads.scale();
                            let key = &keys.row(other)[shared.clone()];
                            add_scaled(&mut by_query.row_mut(row)[channels.clone()], by_score, key);
                            let query = &queries.row(row)[channels.clone()];
                            add_scaled(&mut by_key.row_mut(other)[shared.clone()], by_score, query);
                        }
                    }
                }
            }
            gradients.add(q, by_query);
            gradients.add(k, by_key);
            gradients.add(v, by_value);
        })
    }
}

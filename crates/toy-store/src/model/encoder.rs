//! The BERT encoder (Devlin et al., 2019), and RoBERTa as the same encoder with shifted positions.

use std::rc::Rc;

use crate::model::Batch;
use crate::ops::Heads;
use crate::params::{Bound, Params};
use crate::rng::Rng;
use crate::tape::{Tape, Var};

/// Sizes and conventions of an encoder.
#[derive(Clone, Debug)]
pub(crate) struct Encoder {
    /// What the names of its parameters start with: `bert.`, `roberta.` or nothing.
    pub(crate) prefix: &'static str,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) intermediate: usize,
    /// Rows of the position table.
    pub(crate) positions: usize,
    /// The position of the first token: 0 in BERT, the padding token's id + 1 in RoBERTa.
    pub(crate) first_position: usize,
    pub(crate) token_types: usize,
    pub(crate) epsilon: f32,
    /// Whether it ends in BERT's pooler.
    pub(crate) has_pooler: bool,
}

/// Before training words weigh more than places, so that a sentence starts out as the sum of its words.
const WORD_DEVIATION: f32 = 0.05;
const PLACE_DEVIATION: f32 = 0.01;

impl Encoder {
    /// Adds fresh parameters.
    pub(crate) fn init(&self, params: &mut Params, rng: &mut Rng) {
        let Self { prefix, hidden, intermediate, .. } = *self;
        let tables = [
            ("word", self.vocabulary, WORD_DEVIATION),
            ("position", self.positions, PLACE_DEVIATION),
            ("token_type", self.token_types, PLACE_DEVIATION),
        ];
        for (table, rows, deviation) in tables {
            params.normal(
                &format!("{prefix}embeddings.{table}_embeddings.weight"),
                rows,
                hidden,
                deviation,
                rng,
            );
        }
        params.layer_norm(&format!("{prefix}embeddings.LayerNorm"), hidden);
        for layer in 0..self.layers {
            let layer = format!("{prefix}encoder.layer.{layer}");
            for part in ["self.query", "self.key", "self.value", "output.dense"] {
                params.linear(&format!("{layer}.attention.{part}"), hidden, hidden, rng);
            }
            params.layer_norm(&format!("{layer}.attention.output.LayerNorm"), hidden);
            params.linear(&format!("{layer}.intermediate.dense"), intermediate, hidden, rng);
            params.linear(&format!("{layer}.output.dense"), hidden, intermediate, rng);
            params.layer_norm(&format!("{layer}.output.LayerNorm"), hidden);
        }
        if self.has_pooler {
            params.linear(&format!("{prefix}pooler.dense"), hidden, hidden, rng);
        }
    }

    /// The last hidden state, `[tokens, hidden]`.
    pub(crate) fn encode(&self, tape: &mut Tape, bound: &Bound, batch: &Batch) -> Var {
        let Self { prefix, epsilon, .. } = *self;
        let table = |name: &str| bound.get(&format!("{prefix}embeddings.{name}_embeddings.weight"));
        let words = tape.gather(table("word"), Rc::clone(&batch.ids));
        let places = batch.positions().map(|position| position + self.first_position).collect();
        let places = tape.gather(table("position"), places);
        let types = tape.gather(table("token_type"), batch.ids.iter().map(|_| 0).collect());
        let sum = tape.add(words, types);
        let sum = tape.add(sum, places);
        let mut x = bound.layer_norm(tape, &format!("{prefix}embeddings.LayerNorm"), sum, epsilon);
        for layer in 0..self.layers {
            let name = |part: &str| format!("{prefix}encoder.layer.{layer}.{part}");
            let [q, k, v] = ["query", "key", "value"]
                .map(|part| bound.linear(tape, &name(&format!("attention.self.{part}")), x));
            let mixed = tape.attention(q, k, v, self.attention_heads(), Rc::clone(&batch.spans));
            let attended = bound.linear(tape, &name("attention.output.dense"), mixed);
            let sum = tape.add(attended, x);
            let attended = bound.layer_norm(tape, &name("attention.output.LayerNorm"), sum, epsilon);
            let inner = bound.linear(tape, &name("intermediate.dense"), attended);
            let inner = tape.gelu(inner);
            let outer = bound.linear(tape, &name("output.dense"), inner);
            let sum = tape.add(outer, attended);
            x = bound.layer_norm(tape, &name("output.LayerNorm"), sum, epsilon);
        }
        x
    }

    /// One row of logits for each row of `hidden`: the classification head of `BertForSequenceClassification` (pooler, tanh,
    /// classifier), or of its RoBERTa counterpart. The models apply it to the first token only; see [`Self::classify`].
    pub(crate) fn head(&self, tape: &mut Tape, bound: &Bound, hidden: Var) -> Var {
        let (dense, output) = self.head_names();
        let pooled = bound.linear(tape, &dense, hidden);
        let pooled = tape.tanh(pooled);
        bound.linear(tape, output, pooled)
    }

    /// One row of logits a sentence.
    pub(crate) fn classify(&self, tape: &mut Tape, bound: &Bound, batch: &Batch) -> Var {
        let hidden = self.encode(tape, bound, batch);
        let first = tape.gather(hidden, batch.first_rows());
        self.head(tape, bound, first)
    }

    fn head_names(&self) -> (String, &'static str) {
        if self.has_pooler {
            (format!("{}pooler.dense", self.prefix), "classifier")
        } else {
            ("classifier.dense".to_owned(), "classifier.out_proj")
        }
    }

    /// One unit vector a sentence: the mean over its tokens, normalised.
    pub(crate) fn embed(&self, tape: &mut Tape, bound: &Bound, batch: &Batch) -> Var {
        let hidden = self.encode(tape, bound, batch);
        let mean = tape.mean_rows(hidden, Rc::clone(&batch.spans));
        tape.unit_rows(mean)
    }

    fn attention_heads(&self) -> Heads {
        Heads { query: self.heads, key_value: self.heads, size: self.hidden / self.heads, causal: false }
    }
}

//! The Llama decoder: RMS norm, rotary positions, grouped-query attention, `SwiGLU`.

use std::rc::Rc;

use crate::model::Batch;
use crate::ops::Heads;
use crate::params::{Bound, Params};
use crate::rng::Rng;
use crate::tape::{Tape, Var};

/// Sizes of a decoder.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) key_value_heads: usize,
    pub(crate) intermediate: usize,
    pub(crate) epsilon: f32,
    /// Base of the rotary frequencies.
    pub(crate) theta: f32,
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

impl Decoder {
    /// Adds fresh parameters.
    #[expect(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
    pub(crate) fn init(&self, params: &mut Params, rng: &mut Rng) {
        let Self { hidden, intermediate, .. } = *self;
        let shared = self.key_value_heads * self.head_size();
        params.normal(EMBEDDING, self.vocabulary, hidden, 1.0, rng);
        params.normal(HEAD, self.vocabulary, hidden, 0.02, rng);
        for layer in 0..self.layers {
            let layer = format!("model.layers.{layer}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                params.constant(&format!("{layer}.{norm}.weight"), hidden, 1.0);
            }
            let products = [
                ("self_attn.q_proj", hidden, hidden),
                ("self_attn.k_proj", shared, hidden),
                ("self_attn.v_proj", shared, hidden),
                ("self_attn.o_proj", hidden, hidden),
                ("mlp.gate_proj", intermediate, hidden),
                ("mlp.up_proj", intermediate, hidden),
                ("mlp.down_proj", hidden, intermediate),
            ];
            for (name, outputs, inputs) in products {
                let deviation = 1.0 / (inputs as f32).sqrt();
                params.normal(&format!("{layer}.{name}.weight"), outputs, inputs, deviation, rng);
            }
        }
        params.constant("model.norm.weight", hidden, 1.0);
    }

    /// The logits of the next token after each token, `[tokens, vocabulary]`.
    pub(crate) fn logits(&self, tape: &mut Tape, bound: &Bound, batch: &Batch) -> Var {
        let positions: Vec<usize> = batch.positions().collect();
        let size = self.head_size();
        let mut x = tape.gather(bound.get(EMBEDDING), Rc::clone(&batch.ids));
        for layer in 0..self.layers {
            let weight = |part: &str| bound.get(&format!("model.layers.{layer}.{part}.weight"));
            let unit = tape.rms_norm(x, weight("input_layernorm"), self.epsilon);
            let [q, k, v] = ["q_proj", "k_proj", "v_proj"]
                .map(|p| tape.linear(unit, weight(&format!("self_attn.{p}")), None));
            let q = tape.rotary(q, &positions, size, self.theta);
            let k = tape.rotary(k, &positions, size, self.theta);
            let mixed = tape.attention(q, k, v, self.attention_heads(), Rc::clone(&batch.spans));
            let attended = tape.linear(mixed, weight("self_attn.o_proj"), None);
            x = tape.add(x, attended);
            let unit = tape.rms_norm(x, weight("post_attention_layernorm"), self.epsilon);
            let [gate, up] =
                ["gate_proj", "up_proj"].map(|p| tape.linear(unit, weight(&format!("mlp.{p}")), None));
            let inner = tape.swiglu(gate, up);
            let outer = tape.linear(inner, weight("mlp.down_proj"), None);
            x = tape.add(x, outer);
        }
        let unit = tape.rms_norm(x, bound.get("model.norm.weight"), self.epsilon);
        tape.linear(unit, bound.get(HEAD), None)
    }

    pub(crate) fn head_size(&self) -> usize {
        self.hidden / self.heads
    }

    fn attention_heads(&self) -> Heads {
        Heads { query: self.heads, key_value: self.key_value_heads, size: self.head_size(), causal: true }
    }
}

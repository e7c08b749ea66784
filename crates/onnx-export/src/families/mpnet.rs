//! `MPNet` (Song et al. 2020): RoBERTa with a bias by distance in its attention, one table for all layers.

use super::Family;
use super::post_norm::{Classifier, Names, PostNorm};
use crate::ExportError;
use crate::attention::{ATTENTION_MASK, INPUT_IDS, Mask};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value};
use crate::ops::Activation;

const NAMES: Names = Names {
    layer: "encoder.layer.{}",
    attention: "attention.attn",
    query_key_value: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    out: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    feed_norm: "output.LayerNorm",
};

/// Buckets of distances; transformers computes with this number whatever `config.json` says.
const BUCKETS: i64 = 32;
/// A row of the table for each.
const ROWS: usize = 32;
/// Distances from here on share the last bucket of their side.
const MAX_DISTANCE: f32 = 128.0;

/// `MPNet` with its classifier.
#[derive(Debug)]
pub(super) struct Mpnet {
    encoder: PostNorm,
    pad: i64,
}

impl Mpnet {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        let mut config: super::post_norm::Config = checkpoint.config()?;
        config.type_vocab_size = 0;
        let pad = config.pad_token_id.unwrap_or(1);
        Ok(Self { encoder: PostNorm::open(checkpoint, config, "mpnet.", &NAMES)?, pad })
    }

    /// Padding, and the bias of each head for each distance: [batch, heads, sequence, sequence].
    fn mask(&self, graph: &mut Graph<'_>) -> Result<Mask, ExportError> {
        let padding = graph.padding_mask()?;
        graph.within("encoder.relative_attention_bias", |graph| {
            let rows = graph.by_distance("distance/buckets", self.max_sequence(), bucket)?;
            let dtype = graph.compute_type();
            let name = self.encoder.tensor("encoder.relative_attention_bias.weight");
            let table = graph.weight(&name, &[ROWS, self.encoder.heads.count], dtype)?;
            let bias = graph.gather(&table, &rows, 0);
            let bias = graph.transpose(&bias, &[2, 0, 1]);
            let bias = graph.unsqueeze(&bias, &[0]);
            Ok(graph.biased(&padding, &bias))
        })
    }
}

/// T5's buckets of key − query (Raffel et al. 2020): each side is exact up to half of its buckets, then logarithmic. Keys
/// after their query have the upper half.
fn bucket(distance: i64) -> i64 {
    const SIDE: i64 = BUCKETS / 2;
    const EXACT: i64 = SIDE / 2;
    let side = if distance > 0 { SIDE } else { 0 };
    let distance = distance.abs();
    if distance < EXACT {
        return side + distance;
    }
    let share = (distance as f32 / EXACT as f32).ln() / (MAX_DISTANCE / EXACT as f32).ln();
    #[expect(clippy::cast_possible_truncation, reason = "rounded down, as torch does it")]
    let further = (share * (SIDE - EXACT) as f32) as i64;
    side + (EXACT + further).min(SIDE - 1)
}

impl Family for Mpnet {
    fn hidden_size(&self) -> usize {
        self.encoder.hidden_size()
    }

    fn max_sequence(&self) -> usize {
        super::positions_left(self.encoder.max_positions(), Some(self.pad))
    }

    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError> {
        let ids = graph.input(INPUT_IDS);
        graph.input(ATTENTION_MASK);
        let positions = super::positions_after_pad(graph, &ids, self.pad)?;
        let embedded = self.encoder.embed(graph, &ids, Some(&positions), None)?;
        let mask = self.mask(graph)?;
        self.encoder.layers_with(graph, &embedded, |graph, _, qkv| self.encoder.attend(graph, &qkv, &mask))
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        let head = Classifier::new("classifier.dense", Activation::Tanh, "classifier.out_proj");
        head.write(graph, hidden, self.hidden_size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that transformers' `MPNetEncoder.relative_position_bucket` gives.
    #[test]
    fn distances_fall_into_t5s_buckets() {
        let rows =
            [(0, 0), (7, 7), (8, 8), (11, 8), (12, 9), (16, 10), (32, 12), (64, 14), (91, 15), (500, 15)];
        for (distance, expected) in rows {
            assert_eq!(bucket(-distance), expected, "{distance} before");
            let after = if distance == 0 { 0 } else { 16 + expected };
            assert_eq!(bucket(distance), after, "{distance} after");
        }
    }
}

//! ALBERT (Lan et al. 2019): one layer of BERT's, run again and again over narrow embeddings.

use serde::Deserialize;

use super::Family;
use super::post_norm::{Classifier, Config, Names, PostNorm};
use crate::ExportError;
use crate::attention::{ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value};
use crate::ops::Activation;

const NAMES: Names = Names {
    layer: "encoder.albert_layer_groups.0.albert_layers.0",
    attention: "attention",
    query_key_value: ["attention.query", "attention.key", "attention.value"],
    out: "attention.dense",
    attention_norm: "attention.LayerNorm",
    up: "ffn",
    down: "ffn_output",
    feed_norm: "full_layer_layer_norm",
};

/// How layers are shared out; released checkpoints have one group of one layer.
#[derive(Deserialize)]
struct Groups {
    #[serde(default = "one")]
    num_hidden_groups: usize,
    #[serde(default = "one")]
    inner_group_num: usize,
}

fn one() -> usize {
    1
}

/// ALBERT with its pooler and classifier.
#[derive(Debug)]
pub(super) struct Albert(PostNorm);

impl Albert {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        let Groups { num_hidden_groups, inner_group_num } = checkpoint.config()?;
        if (num_hidden_groups, inner_group_num) != (1, 1) {
            let what = format!(
                "{num_hidden_groups} groups of {inner_group_num} layers (num_hidden_groups, inner_group_num)"
            );
            return Err(super::unsupported(checkpoint, what, "1 of 1"));
        }
        let mut config: Config = checkpoint.config()?;
        // The defaults of `transformers.AlbertConfig`.
        config.embedding_size.get_or_insert(128);
        config.hidden_act.get_or_insert_with(|| "gelu_new".to_owned());
        PostNorm::open(checkpoint, config, "albert.", &NAMES).map(Self)
    }
}

impl Family for Albert {
    fn hidden_size(&self) -> usize {
        self.0.hidden_size()
    }

    fn max_sequence(&self) -> usize {
        self.0.max_positions()
    }

    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError> {
        let ids = graph.input(INPUT_IDS);
        graph.input(ATTENTION_MASK);
        let types = graph.input(TOKEN_TYPE_IDS);
        let positions = graph.positions()?;
        let embedded = self.0.embed(graph, &ids, Some(&positions), Some(&types))?;
        let projected = self.0.project(graph, "encoder.embedding_hidden_mapping_in", &embedded)?;
        self.0.layers(graph, &projected)
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, "classifier.weight")?;
        let dense = self.0.tensor("pooler");
        let head = Classifier { dense: &dense, activation: Activation::Tanh, output: "classifier" };
        head.write(graph, hidden, self.hidden_size())
    }
}

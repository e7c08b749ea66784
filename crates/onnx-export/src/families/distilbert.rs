//! DistilBERT (Sanh et al. 2019): half of BERT's layers, without token types and pooler.

use super::Family;
use super::post_norm::{Classifier, DistilConfig, Names, PostNorm};
use crate::ExportError;
use crate::attention::{ATTENTION_MASK, INPUT_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value};
use crate::ops::Activation;

const NAMES: Names = Names {
    layer: "transformer.layer.{}",
    attention: "attention",
    query_key_value: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    feed_norm: "output_layer_norm",
};

/// DistilBERT with its classifier.
#[derive(Debug)]
pub(super) struct DistilBert(PostNorm);

impl DistilBert {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        let config: DistilConfig = checkpoint.config()?;
        PostNorm::open(checkpoint, config.into(), "distilbert.", &NAMES).map(Self)
    }
}

impl Family for DistilBert {
    fn hidden_size(&self) -> usize {
        self.0.hidden_size()
    }

    fn max_sequence(&self) -> usize {
        self.0.max_positions()
    }

    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError> {
        let ids = graph.input(INPUT_IDS);
        graph.input(ATTENTION_MASK);
        let positions = graph.positions()?;
        let embedded = self.0.embed(graph, &ids, Some(&positions), None)?;
        self.0.layers(graph, &embedded)
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, "pre_classifier.weight")?;
        let head = Classifier { dense: "pre_classifier", activation: Activation::Relu, output: "classifier" };
        head.write(graph, hidden, self.hidden_size())
    }
}

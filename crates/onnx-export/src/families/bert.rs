//! BERT (Devlin et al. 2018), as `transformers.BertModel` computes it.

use super::Family;
use super::post_norm::{BERT, Classifier, PostNorm};
use crate::ExportError;
use crate::attention::{ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value};
use crate::ops::Activation;

/// BERT with its pooler and classifier.
#[derive(Debug)]
pub(super) struct Bert(PostNorm);

impl Bert {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        PostNorm::open(checkpoint, checkpoint.config()?, "bert.", &BERT).map(Self)
    }
}

impl Family for Bert {
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
        self.0.layers(graph, &embedded)
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, "classifier.weight")?;
        let dense = self.0.tensor("pooler.dense");
        let head = Classifier { dense: &dense, activation: Activation::Tanh, output: "classifier" };
        head.write(graph, hidden, self.hidden_size())
    }
}

//! RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT: BERT's layers, other positions, another classifier.

use super::Family;
use super::post_norm::{BERT, Classifier, PostNorm};
use crate::ExportError;
use crate::attention::{ATTENTION_MASK, INPUT_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value};
use crate::ops::Activation;

/// RoBERTa with its classifier.
#[derive(Debug)]
pub(super) struct Roberta {
    encoder: PostNorm,
    pad: i64,
}

impl Roberta {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        let encoder = PostNorm::open(checkpoint, checkpoint.config()?, "roberta.", &BERT)?;
        // 1 is the default of `transformers.RobertaConfig`.
        let pad = encoder.config.pad_token_id.unwrap_or(1);
        Ok(Self { encoder, pad })
    }
}

impl Family for Roberta {
    fn hidden_size(&self) -> usize {
        self.encoder.hidden_size()
    }

    fn max_sequence(&self) -> usize {
        let reserved = usize::try_from(self.pad + 1).unwrap_or_default();
        self.encoder.max_positions().saturating_sub(reserved)
    }

    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError> {
        let ids = graph.input(INPUT_IDS);
        graph.input(ATTENTION_MASK);
        let positions = super::positions_after_pad(graph, &ids, self.pad)?;
        let embedded = self.encoder.embed(graph, &ids, Some(&positions), None)?;
        self.encoder.layers(graph, &embedded)
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, "classifier.out_proj.weight")?;
        let head = Classifier {
            dense: "classifier.dense",
            activation: Activation::Tanh,
            output: "classifier.out_proj",
        };
        head.write(graph, hidden, self.hidden_size())
    }
}

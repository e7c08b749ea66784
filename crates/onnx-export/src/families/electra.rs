//! ELECTRA's discriminator (Clark et al. 2020): BERT, maybe over narrower embeddings.

use super::Family;
use super::post_norm::{BERT, Classifier, Config, PostNorm};
use crate::ExportError;
use crate::attention::{ATTENTION_MASK, INPUT_IDS, TOKEN_TYPE_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value};
use crate::ops::Activation;

/// ELECTRA with its classifier.
#[derive(Debug)]
pub(super) struct Electra(PostNorm);

impl Electra {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        let mut config: Config = checkpoint.config()?;
        // The default of `transformers.ElectraConfig`.
        config.embedding_size.get_or_insert(128);
        PostNorm::open(checkpoint, config, "electra.", &BERT).map(Self)
    }
}

impl Family for Electra {
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
        let mut embedded = self.0.embed(graph, &ids, Some(&positions), Some(&types))?;
        if self.0.config.embedding_size != Some(self.0.hidden_size()) {
            embedded = self.0.project(graph, "embeddings_project", &embedded)?;
        }
        self.0.layers(graph, &embedded)
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, "classifier.out_proj.weight")?;
        let head = Classifier {
            dense: "classifier.dense",
            activation: Activation::Gelu,
            output: "classifier.out_proj",
        };
        head.write(graph, hidden, self.hidden_size())
    }
}

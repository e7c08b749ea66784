//! RoBERTa (Liu et al. 2019), XLM-RoBERTa and CamemBERT: BERT's layers, other positions, another classifier.

use super::Family;
use super::bert::{Encoder, label_count};
use crate::attention::{ATTENTION_MASK, INPUT_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Attribute, Graph, Value};
use crate::{DataType, ExportError, heads};

/// RoBERTa with its classifier.
#[derive(Debug)]
pub(super) struct Roberta {
    encoder: Encoder,
    pad: i64,
}

impl Roberta {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        let encoder = Encoder::open(checkpoint, "roberta.")?;
        // 1 is the default of `transformers.RobertaConfig`.
        let pad = encoder.config.pad_token_id.unwrap_or(1);
        Ok(Self { encoder, pad })
    }

    /// Positions count from `pad + 1` over the tokens that are no padding; padding has position `pad`
    /// (`create_position_ids_from_input_ids` in transformers).
    fn positions(&self, graph: &mut Graph<'_>, ids: &Value) -> Result<Value, ExportError> {
        graph.within("embeddings.position_ids", |graph| {
            let (pad, axis) = (graph.integer(self.pad), graph.integer(1));
            let is_pad = graph.node("Equal", &[ids, &pad], Vec::new(), DataType::Bool);
            let is_token = graph.unary("Not", &is_pad);
            // Counted in fp32, which is exact up to 2²⁴: TensorRT sums no integers.
            let is_token = graph.cast(&is_token, DataType::F32);
            let exclusive = vec![Attribute::Int("exclusive", 0)];
            let count = graph.node("CumSum", &[&is_token, &axis], exclusive, DataType::F32);
            let count = graph.arithmetic("Mul", &count, &is_token);
            let count = graph.cast(&count, DataType::I64);
            Ok(graph.arithmetic("Add", &count, &pad))
        })
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
        let positions = self.positions(graph, &ids)?;
        let embedded = self.encoder.embed(graph, &ids, &positions, None)?;
        self.encoder.layers(graph, &embedded)
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, "classifier.out_proj.weight")?;
        let size = self.hidden_size();
        let labels = label_count(graph.checkpoint, "classifier.out_proj.weight")?;
        let logits = graph.within("classifier", |graph| {
            let first = heads::first_token(graph, hidden, size)?;
            let dense = graph.linear(&first, "classifier.dense", (size, size), DataType::F32)?;
            let active = graph.unary("Tanh", &dense);
            graph.linear(&active, "classifier.out_proj", (size, labels), DataType::F32)
        })?;
        Ok((logits, labels))
    }
}

//! The model families that can be exported, one file each.
//!
//! To add one: write a file with a type that implements [`Family`], and add its line to [`open`] and [`SUPPORTED`].

mod bert;
mod roberta;

use crate::ExportError;
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value};

/// The families there are, in the words of `model_type`.
pub const SUPPORTED: &[&str] = &["bert", "roberta", "xlm-roberta", "camembert"];

/// What every family can do: write its layers into a graph.
pub(crate) trait Family {
    /// Size of a token vector.
    fn hidden_size(&self) -> usize;

    /// Longest sequence, in tokens, that the position embeddings allow.
    fn max_sequence(&self) -> usize;

    /// Declares the inputs and writes everything up to the last hidden state, [tokens, hidden].
    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError>;

    /// Writes the sequence classification head: logits [batch, labels] in fp32, and the number of labels.
    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError>;
}

/// The family of a checkpoint, by its `model_type`.
pub(crate) fn open(checkpoint: &Checkpoint) -> Result<Box<dyn Family>, ExportError> {
    match checkpoint.model_type() {
        "bert" => Ok(Box::new(bert::Bert::open(checkpoint)?)),
        // XLM-RoBERTa and CamemBERT are RoBERTa with another vocabulary.
        "roberta" | "xlm-roberta" | "camembert" => Ok(Box::new(roberta::Roberta::open(checkpoint)?)),
        other => Err(ExportError::UnsupportedFamily {
            path: checkpoint.config_path(),
            model_type: other.to_owned(),
            supported: SUPPORTED.join(", "),
        }),
    }
}

/// Refuses sequence classification, before anything is written, where the weights have no layer for it.
pub(crate) fn require_classifier(checkpoint: &Checkpoint, tensor: &str) -> Result<(), ExportError> {
    if checkpoint.has(tensor) {
        return Ok(());
    }
    Err(ExportError::Unsupported {
        path: checkpoint.config_path(),
        what: format!("sequence classification (there is no tensor {tensor:?})"),
        supported: "hidden states, sentence embedding".to_owned(),
    })
}

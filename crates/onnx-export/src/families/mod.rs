//! The model families that can be exported, one file each; those that are BERT's layers and nothing else share `plain`.
//!
//! To add one: write a file with a type that implements [`Family`], and add its line to [`open`] and [`SUPPORTED`].

mod deberta;
mod decoder;
mod modernbert;
mod mpnet;
mod plain;
mod post_norm;

use crate::checkpoint::Checkpoint;
use crate::graph::{Attribute, Graph, Value};
use crate::{DataType, ExportError};

/// The families there are, in the words of `model_type`.
pub const SUPPORTED: &[&str] = &[
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "distilbert",
    "mpnet",
    "albert",
    "electra",
    "modernbert",
    "deberta-v2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
];

/// Those that continue texts.
pub(crate) const DECODERS: &[&str] = &["llama", "mistral", "qwen2", "qwen3"];

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

    /// Writes the token classification head: logits [tokens, labels] in fp32, and the number of labels.
    fn classify_tokens(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        require(graph.checkpoint, "classifier.weight", "token classification")?;
        let (size, labels) = (self.hidden_size(), label_count(graph.checkpoint, "classifier")?);
        let logits = graph.within("classifier", |graph| {
            graph.in_fp32("class scores: a small product");
            graph.linear(hidden, "classifier", (size, labels), DataType::F32)
        })?;
        Ok((logits, labels))
    }

    /// Declares inputs and outputs of a language model and writes all of it.
    fn causal_lm(&self, graph: &mut Graph<'_>, _cache: bool) -> Result<(), ExportError> {
        Err(ExportError::Unsupported {
            path: graph.checkpoint.config_path(),
            what: "the logits of a language model".to_owned(),
            supported: "hidden states, sentence embedding, classification".to_owned(),
        })
    }
}

/// The family of a checkpoint, by its `model_type`.
pub(crate) fn open(checkpoint: &Checkpoint) -> Result<Box<dyn Family>, ExportError> {
    match checkpoint.model_type() {
        "bert" => Ok(Box::new(plain::bert(checkpoint)?)),
        // XLM-RoBERTa and CamemBERT are RoBERTa with another vocabulary.
        "roberta" | "xlm-roberta" | "camembert" => Ok(Box::new(plain::roberta(checkpoint)?)),
        "distilbert" => Ok(Box::new(plain::distilbert(checkpoint)?)),
        "mpnet" => Ok(Box::new(mpnet::Mpnet::open(checkpoint)?)),
        "albert" => Ok(Box::new(plain::albert(checkpoint)?)),
        "electra" => Ok(Box::new(plain::electra(checkpoint)?)),
        "modernbert" => Ok(Box::new(modernbert::ModernBert::open(checkpoint)?)),
        "deberta-v2" => Ok(Box::new(deberta::Deberta::open(checkpoint)?)),
        "llama" | "mistral" | "qwen2" | "qwen3" => Ok(Box::new(decoder::Decoder::open(checkpoint)?)),
        other => Err(ExportError::UnsupportedFamily {
            path: checkpoint.config_path(),
            model_type: other.to_owned(),
            supported: SUPPORTED.join(", "),
        }),
    }
}

/// Refuses a head, before anything is written, where the weights have no layer for it.
fn require(checkpoint: &Checkpoint, tensor: &str, head: &str) -> Result<(), ExportError> {
    if checkpoint.has(tensor) {
        return Ok(());
    }
    Err(ExportError::Unsupported {
        path: checkpoint.config_path(),
        what: format!("{head} (there is no tensor {tensor:?})"),
        supported: "hidden states, sentence embedding".to_owned(),
    })
}

/// Refuses sequence classification where the weights have no layer for it.
fn require_classifier(checkpoint: &Checkpoint, tensor: &str) -> Result<(), ExportError> {
    require(checkpoint, tensor, "sequence classification")
}

/// Outputs of a classification layer: the number of labels.
fn label_count(checkpoint: &Checkpoint, layer: &str) -> Result<usize, ExportError> {
    Ok(checkpoint.tensor(&format!("{layer}.weight"))?.shape.first().copied().unwrap_or_default())
}

/// Size of a head, where heads share the hidden size among them.
fn head_size(checkpoint: &Checkpoint, hidden: usize, heads: usize) -> Result<usize, ExportError> {
    if heads == 0 || !hidden.is_multiple_of(heads) {
        let reason = format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}");
        return Err(ExportError::Config { path: checkpoint.config_path(), reason });
    }
    Ok(hidden / heads)
}

/// Layers that a model may have, before any tensor has confirmed their number.
const MAX_LAYERS: usize = 1 << 12;
/// Positions that a model may have where no table of them is stored.
const MAX_POSITIONS: usize = 1 << 24;
/// Size of a head that the rotary positions of are worked out.
const MAX_HEAD_SIZE: usize = 1 << 14;

/// Refuses a number from `config.json` that something is made as long as, where no tensor has confirmed it yet.
fn limit(checkpoint: &Checkpoint, key: &str, value: usize, most: usize) -> Result<(), ExportError> {
    if value <= most {
        return Ok(());
    }
    let reason = format!("{key} is {value}, out of range");
    Err(ExportError::Config { path: checkpoint.config_path(), reason })
}

/// The error for a setting that would change the numbers and is not computed here.
fn unsupported(checkpoint: &Checkpoint, what: String, supported: &str) -> ExportError {
    ExportError::Unsupported { path: checkpoint.config_path(), what, supported: supported.to_owned() }
}

/// Positions that are left for tokens where those up to `pad` are not counted from.
fn positions_left(positions: usize, pad: Option<i64>) -> usize {
    let reserved = pad.map_or(0, |pad| usize::try_from(pad + 1).unwrap_or_default());
    positions.saturating_sub(reserved)
}

/// Positions that count from `pad + 1` over the tokens that are no padding; padding has position `pad`
/// (`create_position_ids_from_input_ids` in transformers).
fn positions_after_pad(graph: &mut Graph<'_>, ids: &Value, pad: i64) -> Result<Value, ExportError> {
    graph.within("embeddings.position_ids", |graph| {
        let (pad, axis) = (graph.integer(pad), graph.integer(1));
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

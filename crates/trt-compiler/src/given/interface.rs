//! What a graph takes and gives: whether a tokenizer can feed it, and which of its outputs is the model's answer.

use std::path::Path;

use onnx_export::proto::{TensorTypeProto, ValueInfoProto};
use onnx_export::{DataType, Head, SentenceHead, TensorDescription};
use serde_json::Value;

use super::GraphError;
use super::schema::{Graph, Model};

/// What a tokenizer gives.
const INPUTS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];
/// Without these nothing is told apart from padding.
const NEEDED: [&str; 2] = ["input_ids", "attention_mask"];
/// Families whose logits are those of the next token, beside what `architectures` says.
const NEXT_TOKEN: [&str; 3] = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"];

/// What a graph takes and gives.
pub(super) struct Interface {
    pub(super) inputs: Vec<TensorDescription>,
    pub(super) outputs: Vec<TensorDescription>,
    /// Name of the output that is judged.
    pub(super) output: String,
    /// What it is.
    pub(super) head: Head,
}

/// Reads inputs and outputs, and refuses what cannot be fed or compared.
pub(super) fn read(model: &Model, path: &Path, config: &Value) -> Result<Interface, GraphError> {
    let empty = Graph::default();
    let graph = model.graph.as_ref().unwrap_or(&empty);
    let refuse = |what: String| GraphError::Interface { path: path.to_owned(), what };
    // Before IR version 4 every initializer was an input as well.
    let is_fed = |input: &&ValueInfoProto| {
        !graph.initializer.iter().any(|tensor| tensor.name.is_some() && tensor.name == input.name)
    };
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(is_fed).collect();
    for input in &inputs {
        let name = input.name.as_deref().unwrap_or_default();
        if !INPUTS.contains(&name) || !is_batch_of_tokens(input) {
            return Err(refuse(format!(
                "its input {} is none that a tokenizer gives: {} of int64, [batch, sequence], both of any size; export it without a cache and without positions, with dynamic axes",
                shown(input),
                INPUTS.join(", ")
            )));
        }
    }
    if let Some(lacking) =
        NEEDED.iter().find(|name| !inputs.iter().any(|it| it.name.as_deref() == Some(name)))
    {
        return Err(refuse(format!(
            "it takes no {lacking}, so texts of different lengths cannot be run together"
        )));
    }
    let (output, head) = answer(&graph.output, config).map_err(refuse)?;
    Ok(Interface {
        inputs: inputs.into_iter().map(TensorDescription::from).collect(),
        outputs: graph.output.iter().map(TensorDescription::from).collect(),
        output,
        head,
    })
}

/// Which output is the model's answer, by the names that exporters give, and what it is.
fn answer(outputs: &[ValueInfoProto], config: &Value) -> Result<(String, Head), String> {
    let axes = |name: &str| {
        let output = outputs.iter().find(|output| output.name.as_deref() == Some(name))?;
        let tensor = tensor(output)?;
        (tensor.elem_type == Some(DataType::F32.onnx())).then_some(tensor.shape.as_ref()?.dim.len())
    };
    let architectures = config.get("architectures").and_then(Value::as_array);
    let is_saved_as = |ending: &str| {
        let names = architectures.into_iter().flatten().filter_map(Value::as_str);
        names.into_iter().any(|name| name.ends_with(ending))
    };
    let head = if axes("sentence_embedding") == Some(2) {
        ("sentence_embedding", Head::SentenceEmbedding(SentenceHead::default()))
    } else if axes("logits") == Some(2) {
        ("logits", Head::SequenceClassification)
    } else if axes("logits") == Some(3) && NEXT_TOKEN.iter().any(|ending| is_saved_as(ending)) {
        ("logits", Head::CausalLm { cache: false })
    } else if axes("logits") == Some(3) && is_saved_as("ForTokenClassification") {
        ("logits", Head::TokenClassification)
    } else if axes("last_hidden_state") == Some(3) {
        ("last_hidden_state", Head::HiddenStates)
    } else if axes("token_embeddings") == Some(3) {
        ("token_embeddings", Head::HiddenStates)
    } else {
        let found: Vec<String> = outputs.iter().map(shown).collect();
        return Err(format!(
            "it gives {}; taken are, in float32: sentence_embedding [batch, size], logits [batch, labels], last_hidden_state or token_embeddings [batch, sequence, size], and logits of each token where config.json names a …ForTokenClassification or a …ForCausalLM",
            found.join(", ")
        ));
    };
    Ok((head.0.to_owned(), head.1))
}

fn tensor(value: &ValueInfoProto) -> Option<&TensorTypeProto> {
    value.r#type.as_ref()?.tensor_type.as_ref()
}

fn is_batch_of_tokens(input: &ValueInfoProto) -> bool {
    let Some(tensor) = tensor(input) else { return false };
    let dims = tensor.shape.as_ref().map_or(&[][..], |shape| &shape.dim);
    let is_any = |size: &onnx_export::proto::DimensionProto| size.dim_value.is_none_or(|size| size < 0);
    tensor.elem_type == Some(DataType::I64.onnx()) && dims.len() == 2 && dims.iter().all(is_any)
}

/// `name type [dims]`, whatever the type.
fn shown(value: &ValueInfoProto) -> String {
    let name = value.name.as_deref().unwrap_or_default();
    let Some(tensor) = tensor(value) else { return format!("{name:?} (no tensor)") };
    let number = tensor.elem_type.unwrap_or_default();
    let dtype = DataType::from_onnx(number)
        .map_or_else(|| format!("type {number}"), |dtype| format!("{dtype:?}").to_lowercase());
    let dims = TensorDescription::from(value).shape.join(", ");
    format!("{name:?} ({dtype} [{dims}])")
}

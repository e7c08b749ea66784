//! A language model's graph with a cache, run as an agent runs it: the prompts at once, then token by token.

use half::f16;
use model_loader::onnx::OnnxTensor;
use model_loader::{Output, TokenBatch};
use onnx_export::{DataType, TensorDescription};

use crate::session::{OnnxSession, SessionError};

/// Tokens that come in one by one, at the most.
const STEPS: usize = 8;
const PAST: &str = "past_key_values.";
const PRESENT: &str = "present.";

/// The logits after each token of each row, `[rows, sequence, vocabulary]`. The last tokens of the rectangle, up to eight
/// and no more than half of it, come in one by one; keys and values of all before them, and of padding, are in the cache.
///
/// `inputs` are the graph's, which say what the cache is made of.
pub(super) fn run(
    session: &mut OnnxSession,
    inputs: &[TensorDescription],
    batch: &TokenBatch,
    logits: &str,
) -> Result<Output, SessionError> {
    let (rows, sequence) = (batch.rows(), batch.seq());
    let (ids, mask) = (batch.ids_i64(), batch.mask_i64());
    let mut cache = Vec::new();
    for input in inputs.iter().filter(|input| input.name.starts_with(PAST)) {
        cache.push((input.name.clone(), empty(input, rows)?));
    }
    let prompt = sequence - STEPS.min(sequence / 2);
    let pieces = std::iter::once((0, prompt)).chain((prompt..sequence).map(|at| (at, at + 1)));
    let (mut values, mut vocabulary) = (Vec::new(), 0);
    for (from, to) in pieces {
        let columns = |all: &[i64], from: usize| -> Vec<i64> {
            all.chunks(sequence).flat_map(|row| &row[from..to]).copied().collect()
        };
        let mut feed = vec![
            ("input_ids".to_owned(), OnnxTensor::integers(&[rows, to - from], columns(&ids, from))?),
            ("attention_mask".to_owned(), OnnxTensor::integers(&[rows, to], columns(&mask, 0))?),
        ];
        feed.append(&mut cache);
        let mut piece = None;
        for (name, tensor) in session.run_named(feed)? {
            if name == logits {
                piece = Some(tensor.to_f32()?);
            } else if let Some(layer) = name.strip_prefix(PRESENT) {
                cache.push((format!("{PAST}{layer}"), tensor));
            }
        }
        let piece = piece.filter(|piece| piece.shape.len() == 3 && piece.shape[..2] == [rows, to - from]);
        let piece =
            piece.ok_or_else(|| refused(format!("it has no output {logits:?} of a row for each token")))?;
        if values.is_empty() {
            vocabulary = piece.shape[2];
            values = vec![0.0; rows * sequence * vocabulary];
        }
        let width = (to - from) * vocabulary;
        for (row, found) in piece.values.chunks(width).enumerate() {
            values[(row * sequence + from) * vocabulary..][..width].copy_from_slice(found);
        }
    }
    Ok(Output { shape: vec![rows, sequence, vocabulary], values })
}

/// A cache without tokens, as the graph declares it: [batch, heads, tokens, size].
fn empty(input: &TensorDescription, rows: usize) -> Result<OnnxTensor, SessionError> {
    let fixed = |place: usize| input.shape.get(place).and_then(|size| size.parse::<usize>().ok());
    let (Some(heads), Some(size)) = (fixed(1), fixed(3)) else {
        return Err(refused(format!(
            "its cache {} is {:?}, not [batch, heads, tokens, size]",
            input.name, input.shape
        )));
    };
    let shape = [rows, heads, 0, size];
    match input.dtype {
        DataType::F16 => OnnxTensor::halves(&shape, Vec::<f16>::new()),
        _ => OnnxTensor::floats(&shape, Vec::new()),
    }
}

fn refused(reason: String) -> SessionError {
    SessionError::Refused { doing: "run the graph", reason }
}

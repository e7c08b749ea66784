//! What a graph gives: hidden states, a sentence embedding, or class scores.

use serde::{Deserialize, Serialize};

use crate::graph::{Attribute, Dim, Graph, Value, dim};
use crate::{DataType, ExportError, SentenceStep};

/// What a graph gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// `last_hidden_state` [batch, sequence, hidden], fp32.
    HiddenStates,
    /// `sentence_embedding` [batch, size], fp32, pooled and normalised inside the graph.
    SentenceEmbedding(SentenceHead),
    /// `logits` [batch, labels], fp32.
    SequenceClassification,
    /// `logits` [batch, sequence, labels], fp32.
    TokenClassification,
    /// `logits` [batch, sequence, vocabulary], fp32, of the token that follows each.
    ///
    /// Positions are counted over the tokens that `attention_mask` names, so padding may be on either side.
    CausalLm {
        /// Whether keys and values come in as `past_key_values.N.key` and `.value`, [batch, heads, past, size], and go out
        /// with the new ones as `present.N.key` and `.value`. `attention_mask` then covers past and new tokens.
        cache: bool,
    },
}

impl Head {
    /// The same with a cache left out: what it gives is computed by the same modules, from whole texts.
    #[must_use]
    pub fn without_cache(&self) -> Self {
        match self {
            Self::CausalLm { .. } => Self::CausalLm { cache: false },
            other => other.clone(),
        }
    }

    /// Name of the graph's output.
    #[must_use]
    pub fn output(&self) -> &'static str {
        match self {
            Self::HiddenStates => "last_hidden_state",
            Self::SentenceEmbedding(_) => "sentence_embedding",
            Self::SequenceClassification | Self::TokenClassification | Self::CausalLm { .. } => "logits",
        }
    }
}

/// How token vectors become one vector a sentence. [`SentenceHead::read`] takes it from `modules.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentenceHead {
    /// The pooling modes; several are concatenated in the order cls, max, mean, mean over root of length, weighted mean, last token.
    pub pooling: Vec<Pooling>,
    /// Whether the result is divided by its Euclidean length (at least 1e-12).
    pub normalize: bool,
    /// What is done between pooling and that division, in order.
    #[serde(default)]
    pub steps: Vec<SentenceStep>,
}

/// One way to make one vector of many, as sentence-transformers defines them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The first token.
    Cls,
    /// The largest value in each dimension.
    Max,
    /// The sum over tokens, divided by their number (at least 1e-9).
    Mean,
    /// The sum over tokens, divided by the root of their number.
    MeanSqrtLen,
    /// The mean with weight 1 for the first position, 2 for the second, …
    WeightedMean,
    /// The last token.
    LastToken,
}

/// Masked positions take part in a maximum with this value, as in sentence-transformers.
const MASKED_MAXIMUM: f32 = -1e9;
/// Floor of the number of tokens in a mean, as in sentence-transformers.
const LEAST_COUNT: f32 = 1e-9;
/// Floor of the length that a vector is divided by, as in `torch.nn.functional.normalize`.
const LEAST_LENGTH: f32 = 1e-12;

/// Hidden states [tokens, hidden] as [batch, sequence, hidden] in fp32.
pub(crate) fn by_sentence(graph: &mut Graph<'_>, hidden: &Value, size: usize) -> Result<Value, ExportError> {
    let shape = graph.batch_and_sequence()?;
    let size = graph.integers(&[dim(size)]);
    let shape = graph.concat(&[&shape, &size]);
    let hidden = graph.reshape_to(hidden, &shape);
    Ok(graph.cast(&hidden, DataType::F32))
}

/// Writes the output `last_hidden_state`.
pub(crate) fn hidden_states(graph: &mut Graph<'_>, hidden: &Value, size: usize) -> Result<(), ExportError> {
    graph.within("output", |graph| {
        let states = by_sentence(graph, hidden, size)?;
        graph.output(Head::HiddenStates.output(), &states, &[Dim::Batch, Dim::Sequence, Dim::Fixed(size)]);
        Ok(())
    })
}

/// Writes the output `logits` of a token classifier, from [tokens, labels].
pub(crate) fn token_logits(graph: &mut Graph<'_>, logits: &Value, labels: usize) -> Result<(), ExportError> {
    graph.within("output", |graph| {
        let logits = by_sentence(graph, logits, labels)?;
        let name = Head::TokenClassification.output();
        graph.output(name, &logits, &[Dim::Batch, Dim::Sequence, Dim::Fixed(labels)]);
        Ok(())
    })
}

/// The vector of each sentence's first token, [batch, hidden] in fp32.
pub(crate) fn first_token(graph: &mut Graph<'_>, hidden: &Value, size: usize) -> Result<Value, ExportError> {
    let states = by_sentence(graph, hidden, size)?;
    let first = graph.integer(0);
    Ok(graph.gather(&states, &first, 1))
}

/// The mean of each sentence's tokens, [batch, hidden] in fp32.
pub(crate) fn mean(graph: &mut Graph<'_>, hidden: &Value, size: usize) -> Result<Value, ExportError> {
    let states = by_sentence(graph, hidden, size)?;
    let mask = graph.mask(DataType::F32)?;
    let mask = graph.unsqueeze(&mask, &[2]);
    pool(graph, &states, &mask, Pooling::Mean)
}

/// Writes the output `sentence_embedding`.
pub(crate) fn sentence_embedding(
    graph: &mut Graph<'_>,
    hidden: &Value,
    size: usize,
    head: &SentenceHead,
) -> Result<(), ExportError> {
    let mut modes = head.pooling.clone();
    modes.sort_unstable();
    modes.dedup();
    if modes.is_empty() {
        modes.push(Pooling::Mean);
    }
    graph.within("pooling", |graph| {
        graph.in_fp32("pooling and normalisation: sums over all tokens");
        let states = by_sentence(graph, hidden, size)?;
        let mask = graph.mask(DataType::F32)?;
        let mask = graph.unsqueeze(&mask, &[2]);
        let mut pooled = Vec::new();
        for mode in &modes {
            pooled.push(pool(graph, &states, &mask, *mode)?);
        }
        let parts: Vec<&Value> = pooled.iter().collect();
        let mut vector = match parts.as_slice() {
            [only] => (*only).clone(),
            several => graph.node("Concat", several, vec![Attribute::Int("axis", -1)], DataType::F32),
        };
        let mut size = size * modes.len();
        for step in &head.steps {
            (vector, size) = graph.sentence_step(&vector, size, step)?;
        }
        if head.normalize {
            vector = graph.unit_length(&vector);
        }
        let name = Head::SentenceEmbedding(head.clone()).output();
        graph.output(name, &vector, &[Dim::Batch, Dim::Fixed(size)]);
        Ok(())
    })
}

/// `states` [batch, sequence, hidden] and `mask` [batch, sequence, 1] to [batch, hidden], all fp32.
fn pool(graph: &mut Graph<'_>, states: &Value, mask: &Value, mode: Pooling) -> Result<Value, ExportError> {
    let drop_sequence = |graph: &mut Graph<'_>, x: &Value| {
        let axis = graph.integers(&[1]);
        graph.node("Squeeze", &[x, &axis], Vec::new(), DataType::F32)
    };
    let weighted = |graph: &mut Graph<'_>, weights: &Value| {
        let product = graph.arithmetic("Mul", states, weights);
        (graph.reduce_sum(&product, 1), graph.reduce_sum(weights, 1))
    };
    let pooled = match mode {
        Pooling::Cls => {
            let first = graph.integer(0);
            return Ok(graph.gather(states, &first, 1));
        }
        Pooling::Max => {
            let masked = graph.scalar(MASKED_MAXIMUM, DataType::F32);
            let is_token = graph.cast(mask, DataType::Bool);
            let kept = graph.node("Where", &[&is_token, states, &masked], Vec::new(), DataType::F32);
            graph.reduce_max(&kept, 1)
        }
        Pooling::Mean | Pooling::MeanSqrtLen => {
            let (sum, count) = weighted(graph, mask);
            let count = graph.at_least(&count, LEAST_COUNT);
            let divisor = if mode == Pooling::Mean { count } else { graph.unary("Sqrt", &count) };
            graph.arithmetic("Div", &sum, &divisor)
        }
        Pooling::WeightedMean => {
            let weights = token_positions(graph, mask)?;
            let (sum, weight) = weighted(graph, &weights);
            let weight = graph.at_least(&weight, LEAST_COUNT);
            graph.arithmetic("Div", &sum, &weight)
        }
        Pooling::LastToken => {
            // The token whose position is the largest of its sentence; a sentence without tokens gives zeros.
            let positions = token_positions(graph, mask)?;
            let last = graph.reduce_max(&positions, 1);
            let last = graph.at_least(&last, 1.0);
            let is_last = graph.node("Equal", &[&positions, &last], Vec::new(), DataType::Bool);
            let is_last = graph.cast(&is_last, DataType::F32);
            weighted(graph, &is_last).0
        }
    };
    Ok(drop_sequence(graph, &pooled))
}

/// 1, 2, 3, … for tokens and 0 for padding, [batch, sequence, 1] in fp32.
fn token_positions(graph: &mut Graph<'_>, mask: &Value) -> Result<Value, ExportError> {
    let range = graph.positions()?;
    let range = graph.cast(&range, DataType::F32);
    let one = graph.scalar(1.0, DataType::F32);
    let range = graph.arithmetic("Add", &range, &one);
    let range = graph.unsqueeze(&range, &[0, 2]);
    Ok(graph.arithmetic("Mul", mask, &range))
}

impl Graph<'_> {
    /// `vector`, [batch, size] in fp32, divided by its Euclidean length.
    pub(crate) fn unit_length(&mut self, vector: &Value) -> Value {
        let square = self.arithmetic("Mul", vector, vector);
        let sum = self.reduce_sum(&square, 1);
        let length = self.unary("Sqrt", &sum);
        let length = self.at_least(&length, LEAST_LENGTH);
        self.arithmetic("Div", vector, &length)
    }

    /// 0, 1, 2, … up to the sequence length, [sequence].
    pub(crate) fn positions(&mut self) -> Result<Value, ExportError> {
        let shape = self.batch_and_sequence()?;
        self.once("positions", |graph| {
            let (zero, one) = (graph.integer(0), graph.integer(1));
            let length = graph.gather(&shape, &one, 0);
            Ok(graph.node("Range", &[&zero, &length, &one], Vec::new(), DataType::I64))
        })
    }
}

//! The model at hand: its texts as tokens, and what it gives for them in fp32.

use std::path::Path;

use model_loader::{
    CausalLm, LmOptions, LmTokenizer, LoadError, ModelConfig, Output, Reference, TokenBatch, Tokenizer,
    Tokens,
};
use onnx_export::{Checkpoint, Head};

use crate::error::CompileError;

/// What makes tokens of texts, as the model's own folder has it.
pub(crate) enum Words {
    Encoder {
        tokenizer: Box<Tokenizer>,
        /// Whether tokens of a second segment are told from those of the first.
        segments: bool,
    },
    Lm(Box<LmTokenizer>),
}

impl Words {
    pub(crate) fn open(folder: &Path, head: &Head) -> Result<Self, CompileError> {
        let folder = Checkpoint::open(folder)?.encoder_folder();
        let open = || {
            if let Head::CausalLm { .. } = head {
                return LmTokenizer::from_dir(&folder).map(|it| Self::Lm(Box::new(it)));
            }
            let config = ModelConfig::from_dir(&folder)?;
            let tokenizer = Box::new(Tokenizer::from_dir(&folder, &config)?);
            Ok(Self::Encoder { tokenizer, segments: config.type_vocab_size > 1 })
        };
        open().map_err(CompileError::Reference)
    }

    /// The words of a graph that came as ONNX: its family need not be known, as long as there is a `tokenizer.json`.
    pub(crate) fn of_given(folder: &Path, head: &Head) -> Result<Self, CompileError> {
        let open = || match (ModelConfig::from_dir(folder), head) {
            (Ok(config), Head::HiddenStates | Head::SentenceEmbedding(_) | Head::SequenceClassification) => {
                let tokenizer = Box::new(Tokenizer::from_dir(folder, &config)?);
                Ok(Self::Encoder { tokenizer, segments: config.type_vocab_size > 1 })
            }
            _ => LmTokenizer::from_dir(folder).map(|it| Self::Lm(Box::new(it))),
        };
        open().map_err(CompileError::Reference)
    }

    pub(crate) fn encode(&self, texts: &[String]) -> Result<Vec<Tokens>, CompileError> {
        let tokens = |ids: Vec<u32>| Tokens { type_ids: vec![0; ids.len()], ids };
        match self {
            Self::Encoder { tokenizer, .. } => tokenizer.encode_batch(texts),
            Self::Lm(tokenizer) => {
                texts.iter().map(|text| tokenizer.encode(text, true).map(tokens)).collect()
            }
        }
        .map_err(CompileError::Reference)
    }

    /// What fills up a row; nobody looks at it.
    pub(crate) fn pad_id(&self) -> u32 {
        match self {
            Self::Encoder { tokenizer, .. } => tokenizer.pad_id(),
            Self::Lm(_) => 0,
        }
    }

    pub(crate) fn tells_segments(&self) -> bool {
        matches!(self, Self::Encoder { segments: true, .. })
    }
}

/// The model as it is loaded to be compared with.
pub(crate) enum Subject {
    Encoder(Box<Reference>),
    Lm(Box<CausalLm>),
}

impl Subject {
    pub(crate) fn open(folder: &Path, head: &Head) -> Result<Self, CompileError> {
        let of = |head| Reference::from_dir(folder, head).map(|it| Self::Encoder(Box::new(it)));
        match head {
            Head::CausalLm { .. } => {
                CausalLm::from_dir(folder, &LmOptions::default()).map(|it| Self::Lm(Box::new(it)))
            }
            Head::SentenceEmbedding(_) => of(model_loader::Head::SentenceEmbedding),
            Head::SequenceClassification => of(model_loader::Head::SequenceClassification),
            Head::HiddenStates | Head::TokenClassification => of(model_loader::Head::HiddenStates),
        }
        .map_err(CompileError::Reference)
    }

    pub(crate) fn run(&self, batch: &TokenBatch) -> Result<Output, CompileError> {
        match self {
            Self::Encoder(reference) => reference.run(batch),
            Self::Lm(model) => next_tokens(model, batch),
        }
        .map_err(CompileError::Reference)
    }
}

/// The logits after each token of each row, `[rows, sequence, vocabulary]`; zeros after padding.
fn next_tokens(model: &CausalLm, batch: &TokenBatch) -> Result<Output, LoadError> {
    let (rows, sequence) = (batch.rows(), batch.seq());
    let vocabulary = model.config().vocab_size;
    let mut values = vec![0.0; rows * sequence * vocabulary];
    let inputs = batch.ids().chunks(sequence).zip(batch.mask().chunks(sequence));
    for ((ids, mask), out) in inputs.zip(values.chunks_mut(sequence * vocabulary)) {
        let kept: Vec<usize> = (0..sequence).filter(|at| mask[*at] == 1).collect();
        let ids: Vec<u32> = kept.iter().map(|at| ids[*at]).collect();
        let logits = model.all_logits(&ids)?;
        for (at, logits) in kept.iter().zip(logits.chunks(vocabulary)) {
            out[at * vocabulary..][..vocabulary].copy_from_slice(logits);
        }
    }
    Ok(Output { shape: vec![rows, sequence, vocabulary], values })
}

//! Texts one after another without padding: what the encoder computes on, and what it gives.

use crate::config::Family;
use crate::{LoadError, ModelConfig, TokenBatch, Tokens};

/// The tokens of one text as the embeddings look them up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rows {
    pub ids: Vec<u32>,
    pub positions: Vec<usize>,
    /// 0 for families without token types.
    pub types: Vec<u32>,
}

impl Rows {
    pub(crate) fn of_text(text: &Tokens, config: &ModelConfig) -> Self {
        let tokens = text.ids.iter().copied().zip(text.type_ids.iter().copied()).enumerate();
        Self::collect(tokens.map(|(index, (id, kind))| (index, id, kind)), config)
    }

    /// A row of a batch, without its padding. Positions are counted as transformers counts them in that batch.
    pub(crate) fn of_batch(batch: &TokenBatch, row: usize, config: &ModelConfig) -> Self {
        let at = row * batch.seq()..(row + 1) * batch.seq();
        let tokens = batch.ids()[at.clone()].iter().zip(&batch.type_ids()[at.clone()]);
        let tokens = tokens.enumerate().map(|(index, (id, kind))| (index, *id, *kind));
        let all = Self::collect(tokens, config);
        let mask = &batch.mask()[at];
        let kept = |values: &[u32]| {
            values.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(value, _)| *value).collect()
        };
        let positions = all.positions.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(p, _)| *p).collect();
        Self { ids: kept(&all.ids), types: kept(&all.types), positions }
    }

    fn collect(tokens: impl Iterator<Item = (usize, u32, u32)>, config: &ModelConfig) -> Self {
        let mut rows = Self::default();
        let (pad, counts) = (config.position_pad(), config.family.counts_from_pad());
        let uses_types = config.family.uses_types() && config.type_vocab_size > 0;
        let mut seen = 0;
        for (index, id, kind) in tokens {
            // fairseq counts the tokens that are not padding, from the padding's id + 1 on, goes by the ids and not by
            // the mask, and gives padding the row of its id.
            let position = if counts && id == pad {
                pad as usize
            } else if counts {
                seen += 1;
                pad as usize + seen
            } else {
                index
            };
            rows.ids.push(id);
            rows.positions.push(position);
            rows.types.push(if uses_types { kind } else { 0 });
        }
        rows
    }

    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the model has a row for each of them.
    pub(crate) fn check(&self, config: &ModelConfig) -> Result<(), LoadError> {
        let ModelConfig { vocab_size, type_vocab_size, max_positions, .. } = *config;
        // A distance bias reaches no further than a text may be long, whatever the ids make of positions.
        let too_long = config.family == Family::Mpnet && self.len() > config.max_tokens();
        if too_long || self.positions.iter().any(|position| *position >= max_positions) {
            return Err(LoadError::Tokens(format!(
                "{} tokens where it has positions for {}",
                self.len(),
                config.max_tokens()
            )));
        }
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(LoadError::Tokens(format!(
                "token id {id} where its vocabulary has {vocab_size} entries; the tokenizer belongs to another model"
            )));
        }
        match self.types.iter().find(|id| **id as usize >= type_vocab_size.max(1)) {
            Some(id) => {
                Err(LoadError::Tokens(format!("token type {id} where it has {type_vocab_size} types")))
            }
            None => Ok(()),
        }
    }
}

/// A vector for each token of several texts, one text after another, none padded.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Ragged {
    /// Length of a token's vector.
    pub width: usize,
    /// Where each text's tokens start, counted in tokens; one more than there are texts.
    pub starts: Vec<usize>,
    /// `[tokens, width]`, row-major.
    pub values: Vec<f32>,
}

impl Ragged {
    /// The vectors of one text: `[its tokens, width]`.
    pub(crate) fn text(&self, index: usize) -> &[f32] {
        &self.values[self.starts[index] * self.width..self.starts[index + 1] * self.width]
    }
}

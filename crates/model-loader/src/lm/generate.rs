//! A prompt continued, token by token.

use crate::LoadError;
use crate::lm::CausalLm;
use crate::lm::attention::Cache;
use crate::lm::options::GenerateOptions;
use crate::lm::sample::Sampler;
use crate::lm::text::{Detokenizer, StopTexts};

/// What is continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A text; the tokenizer adds its special tokens, such as one for the beginning.
    Text(String),
    /// A text with its special tokens written out, as a chat template gives it; none are added.
    Rendered(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model ended it.
    Eos,
    /// A stop text came.
    Stop,
    /// `max_new_tokens` were reached, or the model's last position.
    Length,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Its text, without special tokens and without the stop text.
    pub text: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that were computed, the end token and those of a stop text included.
    pub generated_tokens: usize,
    /// Why it ended.
    pub finish: FinishReason,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Its text, never empty and never part of a character.
    pub text: String,
    /// Tokens computed so far.
    pub generated_tokens: usize,
}

/// An answer in the making: an iterator over its pieces, which computes as it is asked. Dropped, it computes no more.
///
/// Its cache of keys and values is its own, so any number of them run over one model at a time.
#[derive(Debug)]
pub struct Generation<'a> {
    lm: &'a CausalLm,
    cache: Cache,
    sampler: Sampler,
    text: Detokenizer,
    stops: StopTexts,
    /// What the model has not seen yet: the prompt, then the last token.
    next: Vec<u32>,
    prompt_tokens: usize,
    generated: Vec<u32>,
    max_new_tokens: usize,
    ignore_eos: bool,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Finished(FinishReason),
    Failed,
}

impl<'a> Generation<'a> {
    pub(crate) fn new(
        lm: &'a CausalLm,
        prompt: Vec<u32>,
        options: &GenerateOptions,
    ) -> Result<Self, LoadError> {
        options.check()?;
        let room = lm.config().max_positions;
        if prompt.is_empty() {
            return Err(LoadError::Tokens("the prompt has none; give at least one".to_owned()));
        }
        if prompt.len() > room {
            return Err(LoadError::Tokens(format!(
                "the prompt has {} where the model has positions for {room} (max_position_embeddings): shorten it",
                prompt.len()
            )));
        }
        // The last token that is drawn takes no position.
        let max_new_tokens = options.max_new_tokens.min(room - prompt.len() + 1);
        Ok(Self {
            lm,
            cache: lm.decoder().cache(),
            sampler: Sampler::new(options, &prompt),
            text: Detokenizer::default(),
            stops: StopTexts::new(&options.stop),
            prompt_tokens: prompt.len(),
            next: prompt,
            generated: Vec::new(),
            max_new_tokens,
            ignore_eos: options.ignore_eos,
            state: State::Running,
        })
    }

    /// Tokens of the prompt, special ones included.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The tokens computed so far, an end token included.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.generated
    }

    /// Why it ended; `None` while it goes on, and after an error.
    #[must_use]
    pub fn finish(&self) -> Option<FinishReason> {
        match self.state {
            State::Finished(reason) => Some(reason),
            State::Running | State::Failed => None,
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// Whatever a piece fails with.
    pub fn complete(mut self) -> Result<Completion, LoadError> {
        let mut text = String::new();
        for piece in &mut self {
            text.push_str(&piece?.text);
        }
        Ok(Completion {
            text,
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.generated.len(),
            finish: self.finish().unwrap_or(FinishReason::Length),
        })
    }

    /// One token further: the text that became certain.
    fn step(&mut self) -> Result<String, LoadError> {
        if self.generated.len() >= self.max_new_tokens {
            return self.end(FinishReason::Length);
        }
        let logits = self.lm.decoder().logits(&self.next, &mut self.cache)?;
        let id = self.sampler.next(logits);
        self.next = vec![id];
        self.generated.push(id);
        if !self.ignore_eos && self.lm.eos_ids().contains(&id) {
            return self.end(FinishReason::Eos);
        }
        let text = self.text.push(id, self.lm.tokenizer())?;
        let (text, stopped) = self.stops.push(&text);
        if stopped {
            self.state = State::Finished(FinishReason::Stop);
        }
        Ok(text)
    }

    /// What was held back, unless it turns out to hold a stop text after all.
    fn end(&mut self, reason: FinishReason) -> Result<String, LoadError> {
        let rest = self.text.finish(self.lm.tokenizer())?;
        let (mut text, stopped) = self.stops.push(&rest);
        text.push_str(&self.stops.finish());
        self.state = State::Finished(if stopped { FinishReason::Stop } else { reason });
        Ok(text)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece, LoadError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.state == State::Running {
            match self.step() {
                Ok(text) if text.is_empty() => {}
                Ok(text) => return Some(Ok(Piece { text, generated_tokens: self.generated.len() })),
                Err(error) => {
                    self.state = State::Failed;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl std::iter::FusedIterator for Generation<'_> {}

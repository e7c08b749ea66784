//! Text to tokens, and tokens back to text as they come.

use std::path::{Path, PathBuf};

use crate::LoadError;
use crate::files;

/// When the tokens that are decoded again with each new one are this many, the older ones are let go.
const WINDOW_TOKENS: usize = 64;
/// The tokens that stay: enough for what a decoder makes of a token to follow from those before it.
const KEPT_TOKENS: usize = 16;

/// The tokenizer of a language model: no truncation, no padding.
#[derive(Debug, Clone)]
pub struct LmTokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
}

impl LmTokenizer {
    /// Reads `tokenizer.json` in a folder.
    ///
    /// # Errors
    /// A [`LoadError`] that names the file.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        Self::find(dir)?.ok_or_else(|| super::no_tokenizer(dir))
    }

    pub(crate) fn find(dir: &Path) -> Result<Option<Self>, LoadError> {
        let path = dir.join("tokenizer.json");
        let Some(bytes) = files::read(&path)? else { return Ok(None) };
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|source| LoadError::Tokenizer { path: path.clone(), source })?;
        Self::new(inner, path).map(Some)
    }

    /// `path` is the file that it was made from.
    pub(crate) fn new(mut inner: tokenizers::Tokenizer, path: PathBuf) -> Result<Self, LoadError> {
        let failed = |source| LoadError::Tokenizer { path: path.clone(), source };
        inner.with_padding(None).with_truncation(None).map_err(failed)?;
        Ok(Self { inner, path })
    }

    /// The tokens of a text, with those that the tokenizer puts around it or without.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] when the tokenizer does not cover the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, LoadError> {
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(|e| self.failed(e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of the tokens, without the special ones.
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, LoadError> {
        self.inner.decode(ids, true).map_err(|e| self.failed(e))
    }

    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether a token is one byte of a text, as sentencepiece writes what it has no word for: `<0x0A>`.
    fn is_byte(&self, id: u32) -> bool {
        self.inner
            .id_to_token(id)
            .is_some_and(|token| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>'))
    }

    fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    fn failed(&self, source: tokenizers::Error) -> LoadError {
        LoadError::Tokenizer { path: self.path.clone(), source }
    }
}

/// Decodes a growing run of tokens: what it gives out, put together, is the decoded whole.
#[derive(Debug, Default)]
pub(crate) struct Detokenizer {
    /// The last tokens.
    ids: Vec<u32>,
    /// How much of their text, in bytes, has been given out or came from tokens let go.
    given: usize,
}

impl Detokenizer {
    /// The text that is certain now that this token is there. A character whose bytes are not complete waits.
    pub(crate) fn push(&mut self, id: u32, tokenizer: &LmTokenizer) -> Result<String, LoadError> {
        // It is left out of the text, and would be decoded again and again.
        if tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        // A run of byte tokens is read as a whole, or not at all.
        if tokenizer.is_byte(id) {
            return Ok(String::new());
        }
        let text = tokenizer.decode(&self.ids)?;
        // An incomplete character decodes to one of these; more than one are bytes that no character has.
        let certain = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text).len();
        if certain <= self.given || !text.is_char_boundary(self.given) {
            return Ok(String::new());
        }
        let new = text[self.given..certain].to_owned();
        self.given = certain;
        if self.ids.len() >= WINDOW_TOKENS && certain == text.len() {
            self.forget(&text, tokenizer)?;
        }
        Ok(new)
    }

    /// What is left at the end, incomplete characters as U+FFFD.
    pub(crate) fn finish(&mut self, tokenizer: &LmTokenizer) -> Result<String, LoadError> {
        let text = tokenizer.decode(&self.ids)?;
        let rest = text.get(self.given..).unwrap_or_default().to_owned();
        self.given = text.len().max(self.given);
        Ok(rest)
    }

    /// Lets the older tokens go if the others decode to the end of the same text.
    fn forget(&mut self, text: &str, tokenizer: &LmTokenizer) -> Result<(), LoadError> {
        let kept = &self.ids[self.ids.len() - KEPT_TOKENS..];
        let tail = tokenizer.decode(kept)?;
        // Without text of its own, the rest would be taken for the beginning, where decoders strip a space.
        if !tail.is_empty() && text.ends_with(&tail) {
            self.given = tail.len();
            self.ids = kept.to_vec();
        }
        Ok(())
    }
}

/// Holds text back while it may be the beginning of a stop text.
#[derive(Debug)]
pub(crate) struct StopTexts {
    texts: Vec<String>,
    held: String,
}

impl StopTexts {
    pub(crate) fn new(texts: &[String]) -> Self {
        Self { texts: texts.to_vec(), held: String::new() }
    }

    /// Adds text; gives what is certain to come before any stop text, and whether one is there.
    pub(crate) fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let first = self.texts.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(first) = first {
            let mut before = std::mem::take(&mut self.held);
            before.truncate(first);
            return (before, true);
        }
        let may_begin = |at: usize| {
            self.held.is_char_boundary(at)
                && self.texts.iter().any(|stop| stop.as_bytes().starts_with(&self.held.as_bytes()[at..]))
        };
        let longest = self.texts.iter().map(String::len).max().unwrap_or_default();
        let from = self.held.len().saturating_sub(longest);
        let certain = (from..self.held.len()).find(|at| may_begin(*at)).unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, now that no more comes.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_held_back_only_while_it_may_stop() {
        let check = |stops: &[&str], pieces: &[&str], given: &[&str], stopped: bool| {
            let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
            let mut texts = StopTexts::new(&stops);
            let mut found = Vec::new();
            let mut stop = false;
            for piece in pieces {
                let (text, now) = texts.push(piece);
                found.push(text);
                stop |= now;
            }
            found.push(texts.finish());
            assert_eq!(
                (found, stop),
                (given.iter().map(|x| (*x).to_owned()).collect(), stopped),
                "{pieces:?}"
            );
        };
        check(&[], &["a", "b"], &["a", "b", ""], false);
        check(&["END"], &["xE", "Ny", "z"], &["x", "ENy", "z", ""], false);
        check(&["END"], &["xE", "ND", ""], &["x", "", "", ""], true);
        check(&["END"], &["xENDy"], &["x", ""], true);
        check(&["aab"], &["aa", "ab!"], &["", "a", ""], true);
        check(&["END"], &["x", "EN"], &["x", "", "EN"], false);
        check(&["long one", "one"], &["a long ", "one"], &["a ", "", ""], true);
        check(&["é."], &["caf", "é", "!"], &["caf", "", "é!", ""], false);
    }
}

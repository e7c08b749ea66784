//! Any `tokenizer.json`, with truncation and padding set here rather than by the file.
//!
//! A file carries what its model was last run with: all-MiniLM-L6-v2's says 128 tokens, padded to 128, where
//! sentence-transformers uses 256 and no padding.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::{EncodeInput, NormalizerWrapper, PostProcessor as _, TruncationDirection, TruncationParams};

use crate::files::{self, read_json};
use crate::{LoadError, ModelConfig, Tokens};

/// The names that sentence-transformers has used for its file beside `config.json`; the first found wins.
pub const SENTENCE_CONFIG_NAMES: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// A model's tokenizer: text to [`Tokens`], truncated to what the model takes.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same without truncation, made when first asked for: a truncating one stops reading where it cuts.
    whole: OnceLock<tokenizers::Tokenizer>,
    path: PathBuf,
    max_tokens: usize,
    /// How many tokens are added to a text.
    special_tokens: usize,
    pad_id: u32,
}

/// Where a token of a text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSpan {
    /// Its id.
    pub id: u32,
    /// Its bytes in the text. Tokens that share a character, as pieces of one of several bytes do, share its range.
    pub range: Range<usize>,
    /// Which of the tokenizer's words it is part of, counted from 0.
    pub word: Option<u32>,
}

#[derive(Deserialize, Default)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize, Default)]
struct TokenizerConfig {
    /// "No limit" is written as a float near 1e30.
    model_max_length: Option<f64>,
    pad_token: Option<Value>,
    truncation_side: Option<String>,
}

impl Tokenizer {
    /// Loads `tokenizer.json` in `dir`.
    ///
    /// The most tokens a text may have, special tokens included, is `max_seq_length` of `sentence_bert_config.json`,
    /// else `model_max_length` of `tokenizer_config.json`; in each case no more than the model has positions for. The
    /// padding id is that of `pad_token` in `tokenizer_config.json`, else `tokenizer.json`'s, else `config.json`'s.
    pub fn from_dir(dir: impl AsRef<Path>, config: &ModelConfig) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let (mut inner, path) = open(dir)?;
        let failed = |source| LoadError::Tokenizer { path: path.clone(), source };
        let settings: TokenizerConfig = read_json(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let sentence = SENTENCE_CONFIG_NAMES
            .iter()
            .find_map(|name| read_json::<SentenceConfig>(&dir.join(name)).transpose())
            .transpose()?
            .unwrap_or_default();

        let pad_token = settings.pad_token.as_ref().and_then(|token| match token {
            Value::String(text) => Some(text.as_str()),
            other => other.get("content").and_then(Value::as_str),
        });
        let pad_id = pad_token
            .and_then(|token| inner.token_to_id(token))
            .or_else(|| inner.get_padding().map(|padding| padding.pad_id))
            .unwrap_or(config.pad_id);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "at least 1, and a float past the largest integer becomes that"
        )]
        let model_max =
            settings.model_max_length.filter(|max| *max >= 1.0).map_or(usize::MAX, |max| max as usize);
        let max_tokens = sentence.max_seq_length.unwrap_or(model_max).min(config.max_tokens());
        let special_tokens = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        if max_tokens <= special_tokens {
            let reason = format!(
                "a text may have {max_tokens} tokens, of which {special_tokens} are special: nothing is left"
            );
            return Err(LoadError::config(&path, reason));
        }
        if sentence.do_lower_case {
            lowercase_first(&mut inner).map_err(failed)?;
        }
        let direction = match settings.truncation_side.as_deref() {
            Some("left") => TruncationDirection::Left,
            _ => TruncationDirection::Right,
        };
        let truncation =
            TruncationParams { max_length: max_tokens, direction, ..TruncationParams::default() };
        inner.with_padding(None).with_truncation(Some(truncation)).map_err(failed)?;
        Ok(Self { inner, whole: OnceLock::new(), path, max_tokens, special_tokens, pad_id })
    }

    /// Loads `tokenizer.json` in `dir` to be used without special tokens and as long as the file itself allows.
    pub(crate) fn without_special_tokens(dir: &Path) -> Result<Self, LoadError> {
        let (mut inner, path) = open(dir)?;
        let max_tokens = inner.get_truncation().map_or(usize::MAX, |truncation| truncation.max_length);
        let pad_id = inner.get_padding().map_or(0, |padding| padding.pad_id);
        inner.with_padding(None).with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        Ok(Self { inner, whole: OnceLock::new(), path, max_tokens, special_tokens: 0, pad_id })
    }

    /// Has texts cut at so many tokens, special tokens included, if they may be longer now.
    #[cfg(feature = "tensorrt")]
    pub(crate) fn shorten(&mut self, max_tokens: usize) -> Result<(), LoadError> {
        if max_tokens >= self.max_tokens {
            return Ok(());
        }
        if max_tokens <= self.special_tokens {
            let reason = format!("texts of {max_tokens} tokens hold nothing but special tokens");
            return Err(LoadError::config(&self.path, reason));
        }
        let truncation = self.inner.get_truncation().cloned().unwrap_or_default();
        let truncation = TruncationParams { max_length: max_tokens, ..truncation };
        let set = self.inner.with_truncation(Some(truncation)).map(|_| ());
        set.map_err(|source| self.failed(source))?;
        self.max_tokens = max_tokens;
        Ok(())
    }

    /// Tokenizes the texts, each truncated, none padded, in the order given.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Tokens>, LoadError> {
        self.encode(texts.iter().map(AsRef::as_ref).collect::<Vec<&str>>())
    }

    /// Tokenizes pairs of texts, each pair as one input: where it is too long, its longer text is truncated.
    pub fn encode_pairs<A, B>(&self, pairs: &[(A, B)]) -> Result<Vec<Tokens>, LoadError>
    where
        A: AsRef<str> + Sync,
        B: AsRef<str> + Sync,
    {
        self.encode(pairs.iter().map(|(a, b)| (a.as_ref(), b.as_ref())).collect::<Vec<(&str, &str)>>())
    }

    fn encode<'s, E: Into<EncodeInput<'s>> + Send>(&self, inputs: Vec<E>) -> Result<Vec<Tokens>, LoadError> {
        let encodings = self.inner.encode_batch_fast(inputs, true).map_err(|source| self.failed(source))?;
        let tokens = |e: &tokenizers::Encoding| Tokens {
            ids: e.get_ids().to_vec(),
            type_ids: e.get_type_ids().to_vec(),
        };
        Ok(encodings.iter().map(tokens).collect())
    }

    /// Every token of a text with its place in it, in order, however long the text is; without special tokens.
    ///
    /// ```no_run
    /// # let config = model_loader::ModelConfig::from_dir("models/all-MiniLM-L6-v2")?;
    /// let tokenizer = model_loader::Tokenizer::from_dir("models/all-MiniLM-L6-v2", &config)?;
    /// let text = "Ships wait.";
    /// let spans = tokenizer.spans(text)?;
    /// assert_eq!(spans.iter().map(|span| &text[span.range.clone()]).collect::<Vec<_>>(), ["Ships", "wait", "."]);
    /// # Ok::<(), model_loader::LoadError>(())
    /// ```
    pub fn spans(&self, text: &str) -> Result<Vec<TokenSpan>, LoadError> {
        let whole = if let Some(whole) = self.whole.get() {
            whole
        } else {
            let mut whole = self.inner.clone();
            whole.with_truncation(None).map_err(|source| self.failed(source))?;
            self.whole.get_or_init(|| whole)
        };
        let encoding = whole.encode(text, false).map_err(|source| self.failed(source))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_word_ids());
        let span = |((id, (start, end)), word): ((&u32, &(usize, usize)), &Option<u32>)| TokenSpan {
            id: *id,
            range: *start..*end,
            word: *word,
        };
        Ok(tokens.map(span).collect())
    }

    /// The text of some tokens; special ones are left out if `without_special` says so.
    pub fn decode(&self, ids: &[u32], without_special: bool) -> Result<String, LoadError> {
        self.inner.decode(ids, without_special).map_err(|source| self.failed(source))
    }

    /// The id of a token, by its text in the vocabulary.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    fn failed(&self, source: tokenizers::Error) -> LoadError {
        LoadError::Tokenizer { path: self.path.clone(), source }
    }

    /// The most tokens of a text that the model gets to see, special tokens included.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How many special tokens are added to a text.
    #[must_use]
    pub fn special_tokens(&self) -> usize {
        self.special_tokens
    }

    /// The `tokenizer.json`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The id that pads a batch.
    #[must_use]
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Whether an id is a special token such as `[SEP]`.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }
}

fn open(dir: &Path) -> Result<(tokenizers::Tokenizer, PathBuf), LoadError> {
    let path = dir.join("tokenizer.json");
    let bytes = files::read(&path)?.ok_or_else(|| LoadError::Missing {
        path: path.clone(),
        next: "write it with `python -c \"from transformers import AutoTokenizer; \
               AutoTokenizer.from_pretrained('.').save_pretrained('.')\"` in that folder"
            .to_owned(),
    })?;
    match tokenizers::Tokenizer::from_bytes(bytes) {
        Ok(inner) => Ok((inner, path)),
        Err(source) => Err(LoadError::Tokenizer { path, source }),
    }
}

/// As sentence-transformers does for `do_lower_case`: before whatever normalizer there is, unless one lowercases already.
fn lowercase_first(tokenizer: &mut tokenizers::Tokenizer) -> tokenizers::Result<()> {
    use tokenizers::normalizers::{Lowercase, Sequence};

    let mut chain = vec![NormalizerWrapper::from(Lowercase)];
    match tokenizer.get_normalizer() {
        Some(normalizer) if lowercases(normalizer) => return Ok(()),
        Some(NormalizerWrapper::Sequence(sequence)) => chain.extend(sequence.as_ref().iter().cloned()),
        Some(other) => chain.push(other.clone()),
        None => {}
    }
    tokenizer.with_normalizer(Some(Sequence::new(chain)))?;
    Ok(())
}

fn lowercases(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::BertNormalizer(bert) => bert.lowercase,
        NormalizerWrapper::Lowercase(_) => true,
        NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().any(lowercases),
        _ => false,
    }
}

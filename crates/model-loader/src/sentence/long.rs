//! Texts that are longer than the model reads: cut into pieces, each embedded by itself.

use std::ops::Range;

use super::SentenceEmbedder;
use super::settings::{EmbedOptions, Task};
use crate::LoadError;
use crate::pooling::normalize;
use crate::tokenizer::TokenSpan;

/// How a long text is cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Chunking {
    /// The most tokens of a piece, with its prompt and special tokens; `None` is as many as the model reads.
    pub max_tokens: Option<usize>,
    /// Tokens at the end of a piece that the next one begins with, about: pieces begin at words.
    pub overlap: usize,
}

/// The vectors of a long text.
#[derive(Debug, Clone, PartialEq)]
pub struct LongEmbedding {
    /// Its pieces, in order. A text that fits is one piece as it is, an empty one too.
    pub pieces: Vec<Chunk>,
    /// The mean of the pieces' vectors, each weighted by the tokens of its piece; scaled to length 1 if the pieces'
    /// are. For a text that fits it is the text's vector.
    pub mean: Vec<f32>,
}

/// A part of a long text.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Where it is in the text, in bytes. White space between pieces is part of none.
    pub range: Range<usize>,
    /// Its tokens, without the prompt's and the special ones.
    pub tokens: usize,
    /// The vector that [`SentenceEmbedder::embed_with`] gives for it.
    pub vector: Vec<f32>,
}

impl SentenceEmbedder {
    /// The vectors of the pieces of a text, which may be longer than the model reads, and their mean.
    ///
    /// Pieces end where a word does, unless a word alone is longer than a piece. Other methods cut such a text short,
    /// as sentence-transformers does, which has no counterpart of this.
    pub fn embed_long(
        &self,
        text: &str,
        chunking: &Chunking,
        options: &EmbedOptions,
    ) -> Result<LongEmbedding, LoadError> {
        let prompt = self.settings.resolve(options, Task::Any)?;
        let reads = self.tokenizer.max_tokens();
        let max = chunking.max_tokens.unwrap_or(reads).min(reads);
        let taken = self.tokenizer.special_tokens() + self.tokenizer.spans(prompt)?.len();
        let room = max.saturating_sub(taken);
        if room == 0 || chunking.overlap >= room {
            return Err(LoadError::Asked(format!(
                "pieces of {max} tokens, of which {taken} are special or the prompt's, with an overlap of {}: nothing \
                 new is left for a piece",
                chunking.overlap
            )));
        }
        let ranges = self.cut(text, prompt, room, chunking.overlap)?;
        let texts: Vec<&str> = ranges.iter().map(|(range, _)| &text[range.clone()]).collect();
        let vectors = self.embed_for(Task::Any, &texts, options)?;
        let mut mean = vec![0.0; vectors.first().map_or(0, Vec::len)];
        let total: usize = ranges.iter().map(|(_, tokens)| (*tokens).max(1)).sum();
        for (vector, (_, tokens)) in vectors.iter().zip(&ranges) {
            let weight = (*tokens).max(1) as f32 / total as f32;
            for (mean, x) in mean.iter_mut().zip(vector) {
                *mean += x * weight;
            }
        }
        if vectors.len() > 1 && self.gives_unit_length(options) {
            normalize(&mut mean);
        }
        let pieces = vectors.into_iter().zip(ranges);
        let pieces = pieces.map(|(vector, (range, tokens))| Chunk { range, tokens, vector }).collect();
        Ok(LongEmbedding { pieces, mean })
    }

    /// Pieces of at most `room` tokens, each with their number.
    fn cut(
        &self,
        text: &str,
        prompt: &str,
        room: usize,
        overlap: usize,
    ) -> Result<Vec<(Range<usize>, usize)>, LoadError> {
        let prompt_tokens = self.tokenizer.spans(prompt)?.len();
        let spans = self.tokenizer.spans(text)?;
        if spans.len() <= room {
            return Ok(vec![(0..text.len(), spans.len())]);
        }
        let mut pieces = Vec::new();
        let (mut start, mut done) = (0, 0);
        while start < spans.len() {
            let mut end = word_end(&spans, text, start, (start + room).min(spans.len()));
            let (range, tokens) = loop {
                let range = covered(&spans[start..end], text);
                // By itself a piece may have other tokens than within the text, and more of them.
                let prompted = format!("{prompt}{}", &text[range.clone()]);
                let tokens = self.tokenizer.spans(&prompted)?.len().saturating_sub(prompt_tokens);
                if tokens <= room || end == start + 1 {
                    break (range, tokens);
                }
                end = word_end(&spans, text, start, end - (tokens - room).min(end - start - 1));
            };
            if end <= done {
                // What comes next is too long to have anything before it.
                start = done;
                continue;
            }
            done = end;
            if !range.is_empty() {
                pieces.push((range, tokens));
            }
            start = match end.saturating_sub(overlap) {
                _ if end == spans.len() => end,
                back if back <= start => end,
                // Each piece begins after the one before it did, and with a word.
                back => (back..=end).find(|index| begins_word(&spans, text, *index)).unwrap_or(end),
            };
        }
        Ok(pieces)
    }
}

/// The last place in `start + 1..=end` where a piece may end: after a word, else between two of the tokenizer's words
/// (such as those of Chinese), else `end` itself.
fn word_end(spans: &[TokenSpan], text: &str, start: usize, end: usize) -> usize {
    let last = |fits: &dyn Fn(usize) -> bool| (start + 1..=end).rev().find(|index| fits(*index));
    last(&|index| begins_word(spans, text, index))
        .or_else(|| last(&|index| spans[index - 1].word != spans[index].word))
        .unwrap_or(end)
}

/// Whether there is white space before the token of this index, or nothing after it.
fn begins_word(spans: &[TokenSpan], text: &str, index: usize) -> bool {
    let Some(next) = spans.get(index) else { return true };
    let Some(before) = index.checked_sub(1).map(|index| &spans[index]) else { return true };
    let gap = text.get(before.range.end..next.range.start).unwrap_or_default();
    gap.contains(char::is_whitespace) || text[next.range.start..].starts_with(char::is_whitespace)
}

/// The bytes of these tokens, without white space at the ends.
fn covered(spans: &[TokenSpan], text: &str) -> Range<usize> {
    let start = spans.iter().map(|span| span.range.start).min().unwrap_or_default();
    let end = spans.iter().map(|span| span.range.end).max().unwrap_or_default().max(start);
    let inner = text[start..end].trim_start();
    let start = end - inner.len();
    start..start + inner.trim_end().len()
}

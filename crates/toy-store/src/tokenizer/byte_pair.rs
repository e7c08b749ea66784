//! Byte-level byte-pair encoding (Sennrich et al., 2016; GPT-2's alphabet), learned from a text.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::folder::Folder;

/// A learned vocabulary: the alphabet, then one token a merge.
pub(crate) struct Merges {
    tokens: Vec<String>,
    merges: Vec<(u32, u32)>,
}

/// The printable character that stands for each byte in a byte-level vocabulary.
fn byte_alphabet() -> Vec<char> {
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut stand_in = 256..;
    let character = |byte| if is_printable(byte) { Some(byte) } else { stand_in.next() };
    (0..256).filter_map(character).filter_map(char::from_u32).collect()
}

/// The words of `text` with how often they occur, as GPT-2's splitting cuts them: a space belongs to the word after it,
/// and letters, digits and marks never share one.
fn count_words(text: &str) -> BTreeMap<&str, i64> {
    let kind = |c: char| {
        if c.is_alphabetic() {
            0
        } else if c.is_numeric() {
            1
        } else {
            2
        }
    };
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let (mut start, mut previous) = (0, None);
        for (at, c) in line.char_indices() {
            if previous.is_some_and(|p: char| c == ' ' || (p != ' ' && kind(p) != kind(c))) {
                *counts.entry(&line[start..at]).or_insert(0) += 1;
                start = at;
            }
            previous = Some(c);
        }
        *counts.entry(&line[start..]).or_insert(0) += 1;
    }
    counts
}

impl Merges {
    /// Learns until the vocabulary has `size` tokens: each time the most frequent pair, the lowest ids among equals.
    pub(crate) fn learn(text: &str, size: usize) -> Self {
        let alphabet = byte_alphabet();
        let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
        let mut merges = Vec::new();
        let mut words: Vec<(Vec<u32>, i64)> = count_words(text)
            .into_iter()
            .map(|(word, n)| (word.bytes().map(u32::from).collect(), n))
            .collect();
        let mut pairs: BTreeMap<(u32, u32), i64> = BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *pairs.entry((pair[0], pair[1])).or_insert(0) += count;
            }
        }
        while tokens.len() < size {
            let Some((&best, _)) =
                pairs.iter().rev().max_by_key(|(_, count)| **count).filter(|(_, n)| **n > 1)
            else {
                break;
            };
            let Ok(merged) = u32::try_from(tokens.len()) else { break };
            tokens.push(format!("{}{}", tokens[best.0 as usize], tokens[best.1 as usize]));
            merges.push(best);
            for (word, count) in &mut words {
                if !word.windows(2).any(|pair| (pair[0], pair[1]) == best) {
                    continue;
                }
                for pair in word.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_insert(0) -= *count;
                }
                *word = join(word, best, merged);
                for pair in word.windows(2) {
                    *pairs.entry((pair[0], pair[1])).or_insert(0) += *count;
                }
            }
            pairs.retain(|_, count| *count > 0);
        }
        Self { tokens, merges }
    }

    /// The vocabulary with `special` first, as `vocab` of a `tokenizer.json`.
    pub(crate) fn vocab(&self, first: &[&str], last: &[&str]) -> Map<String, Value> {
        let special = |tokens: &[&str]| tokens.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let tokens = special(first).into_iter().chain(self.tokens.iter().cloned()).chain(special(last));
        tokens.enumerate().map(|(id, token)| (token, json!(id))).collect()
    }

    /// Writes `vocab.json` and `merges.txt`, and gives the `model` of a `tokenizer.json`.
    pub(crate) fn model(&self, first: &[&str], last: &[&str]) -> Value {
        json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": self.vocab(first, last), "merges": self.pairs().map(|(a, b)| json!([a, b])).collect::<Vec<_>>(),
        })
    }

    /// The older pair of files that some readers still want.
    pub(crate) fn put_legacy_files(&self, files: &mut Folder, first: &[&str], last: &[&str]) {
        files.put_json("vocab.json", &Value::Object(self.vocab(first, last)));
        let lines = self.pairs().map(|(a, b)| format!("{a} {b}\n"));
        files.put(
            "merges.txt",
            std::iter::once("#version: 0.2\n".to_owned()).chain(lines).collect::<String>().into(),
        );
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let token = |id: u32| self.tokens[id as usize].as_str();
        self.merges.iter().map(move |(a, b)| (token(*a), token(*b)))
    }
}

/// `word` with every occurrence of `pair` replaced by `merged`, from the left.
fn join(word: &[u32], pair: (u32, u32), merged: u32) -> Vec<u32> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        if tail.first().is_some_and(|second| (*first, *second) == pair) {
            out.push(merged);
            rest = &tail[1..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_pairs_are_merged_first() {
        let merges = Merges::learn("low low lower lowest\n", 260);
        let learned: Vec<&str> = merges.tokens[256..].iter().map(String::as_str).collect();
        assert_eq!(learned[..2], ["lo", "low"], "{learned:?}");
    }

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let mut alphabet = byte_alphabet();
        assert_eq!(alphabet[usize::from(b' ')], 'Ġ');
        alphabet.sort_unstable();
        alphabet.dedup();
        assert_eq!(alphabet.len(), 256);
    }

    #[test]
    fn words_are_cut_as_gpt2_cuts_them() {
        let counts = count_words("Rain, rain: 35 degrees\nRain");
        let words: Vec<(&str, i64)> = counts.into_iter().collect();
        assert_eq!(words, [(" 35", 1), (" degrees", 1), (" rain", 1), (",", 1), (":", 1), ("Rain", 2)]);
    }
}

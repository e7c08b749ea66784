//! A small generator of English: context-free rules in `data/*.grammar`, expanded by seed.
//!
//! A *story* is a number that fixes every content choice, so `{team}` is one team throughout a sentence. Rules that are
//! marked `~` choose *wording* anew at each telling: two tellings of one story are paraphrases.

use std::collections::{BTreeMap, BTreeSet};

use crate::rng::{Rng, mix, stable_hash};

const SENTIMENT: &str = include_str!("../data/sentiment.grammar");
const STORIES: &str = include_str!("../data/stories.grammar");

/// Rules by name.
pub(crate) struct Grammar {
    rules: BTreeMap<&'static str, Rule>,
}

struct Rule {
    is_wording: bool,
    alternatives: Vec<Vec<Piece>>,
}

enum Piece {
    Text(&'static str),
    Symbol { name: &'static str, scope: Option<&'static str> },
}

impl Grammar {
    /// Sentences with a judgement: the roots are [`crate::analyst::LABELS`].
    pub(crate) fn sentiment() -> Self {
        Self::parse(SENTIMENT)
    }

    /// News stories by topic: the roots are [`Grammar::topics`].
    pub(crate) fn stories() -> Self {
        Self::parse(STORIES)
    }

    /// The files are compiled in, so a malformed line is a bug and panics.
    fn parse(text: &'static str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let rules = lines.map(|line| {
            let (name, right) =
                line.split_once(" = ").unwrap_or_else(|| panic!("no `=` in grammar line: {line}"));
            let rule = Rule {
                is_wording: name.starts_with('~'),
                alternatives: right.split(" | ").map(|text| pieces(text.trim())).collect(),
            };
            (name.trim_start_matches('~'), rule)
        });
        Self { rules: rules.collect() }
    }

    /// The roots of the topics, without their prefix: `economy`, `sport`, …
    pub(crate) fn topics(&self) -> Vec<&'static str> {
        self.rules.keys().filter_map(|name| name.strip_prefix("topic-")).collect()
    }

    /// Every word that a rule can produce, lower case.
    pub(crate) fn words(&self) -> BTreeSet<String> {
        let pieces = self.rules.values().flat_map(|rule| rule.alternatives.iter().flatten());
        let texts = pieces.filter_map(|piece| match piece {
            Piece::Text(text) => Some(*text),
            Piece::Symbol { .. } => None,
        });
        let words = texts.flat_map(|text| text.split(|c: char| !c.is_alphanumeric()));
        words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
    }

    /// Tells `story` starting from the rule `root`, as a line of text: capitalised, with `a` turned into `an`.
    pub(crate) fn tell(&self, root: &str, story: u64, wording: &mut Rng) -> String {
        let mut words = String::new();
        self.expand(root, story, wording, &mut words);
        polish(&words)
    }

    fn expand(&self, name: &str, scope: u64, wording: &mut Rng, out: &mut String) {
        let rule = self.rules.get(name).unwrap_or_else(|| panic!("the grammar has no rule {name}"));
        let choice = if rule.is_wording {
            wording.below(rule.alternatives.len())
        } else {
            Rng::new(scope, name).below(rule.alternatives.len())
        };
        for piece in &rule.alternatives[choice] {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Symbol { name, scope: None } => self.expand(name, scope, wording, out),
                Piece::Symbol { name, scope: Some(inner) } => {
                    self.expand(name, mix(scope ^ stable_hash(inner.as_bytes())), wording, out);
                }
            }
        }
    }
}

/// Splits `the {team} beat {team.2}` into texts and symbols.
fn pieces(text: &'static str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for part in text.split_inclusive('}') {
        let (before, symbol) = match part.split_once('{') {
            Some((before, rest)) => (before, rest.strip_suffix('}')),
            None => (part, None),
        };
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        if let Some(symbol) = symbol {
            let (name, scope) =
                symbol.split_once('.').map_or((symbol, None), |(name, scope)| (name, Some(scope)));
            pieces.push(Piece::Symbol { name, scope });
        }
    }
    pieces
}

/// Joins punctuation to the word before it, writes `an` before a vowel, starts with a capital and ends with a full stop.
fn polish(text: &str) -> String {
    let mut line = String::with_capacity(text.len() + 1);
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let is_mark = word.chars().all(|c| ",:'".contains(c));
        if !line.is_empty() && !is_mark {
            line.push(' ');
        }
        let before_vowel =
            words.peek().is_some_and(|next| next.starts_with(['a', 'e', 'i', 'o', 'A', 'E', 'I', 'O']));
        line.push_str(if word == "a" && before_vowel { "an" } else { word });
    }
    let mut chars = line.chars();
    let capital = chars.next().map(|first| first.to_uppercase().chain(chars).collect::<String>());
    capital.unwrap_or_default() + "."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(grammar: &Grammar) -> BTreeSet<&'static str> {
        let pieces = grammar.rules.values().flat_map(|rule| rule.alternatives.iter().flatten());
        let name = |piece: &Piece| match piece {
            Piece::Symbol { name, .. } => Some(*name),
            Piece::Text(_) => None,
        };
        pieces.filter_map(name).collect()
    }

    #[test]
    fn every_reference_has_a_rule_and_every_rule_a_use() {
        let roots = ["positive", "negative", "neutral", "good-bit", "bad-bit", "plain-bit", "aside"];
        for (file, grammar) in [("sentiment", Grammar::sentiment()), ("stories", Grammar::stories())] {
            let used = references(&grammar);
            for name in &used {
                assert!(grammar.rules.contains_key(name), "{file}: nothing defines {{{name}}}");
            }
            for name in grammar.rules.keys() {
                let is_root = roots.contains(name) || name.starts_with("topic-");
                assert!(is_root || used.contains(name), "{file}: nothing uses {name}");
            }
        }
    }

    #[test]
    fn no_rule_is_defined_twice() {
        for (file, text) in [("sentiment", SENTIMENT), ("stories", STORIES)] {
            let lines = text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#'));
            assert_eq!(lines.count(), Grammar::parse(text).rules.len(), "{file}");
        }
    }

    #[test]
    fn two_tellings_of_a_story_share_their_content() {
        let grammar = Grammar::stories();
        let mut rng = Rng::new(0, "tellings");
        let mut differ = 0;
        for story in 0..50 {
            let tellings = [(); 2].map(|()| grammar.tell("topic-food", story, &mut rng));
            let shared = |word: &&str| tellings[1].to_lowercase().contains(word);
            let first = tellings[0].to_lowercase();
            let common = first
                .split(|c: char| !c.is_alphanumeric())
                .filter(|word| word.len() > 3)
                .filter(shared)
                .count();
            assert!(common > 0, "{tellings:?}");
            differ += usize::from(tellings[0] != tellings[1]);
        }
        assert!(differ > 10, "only {differ} of 50 stories were told in other words");
    }

    #[test]
    fn sentences_are_polished() {
        for (raw, wanted) in [
            ("a  apple , he said", "An apple, he said."),
            ("a uniform", "A uniform."),
            ("breaking news : it 's a test", "Breaking news: it 's a test."),
        ] {
            assert_eq!(polish(raw), wanted);
        }
    }
}

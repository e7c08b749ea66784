//! `analyst`: a BERT classifier of sentences into negative, neutral and positive.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::adam::{Adam, Schedule};
use crate::folder::Folder;
use crate::grammar::Grammar;
use crate::model::Batch;
use crate::model::encoder::Encoder;
use crate::params::Params;
use crate::rng::{Rng, stable_hash};
use crate::tokenizer::word_piece;
use crate::toy::ToyVersion;
use crate::train::{bert, fit};

/// The labels in order of their ids; also the roots of the grammar.
pub(crate) const LABELS: [&str; 3] = ["negative", "neutral", "positive"];
/// The roots of the first lessons: clauses without trimmings, in the order of [`LABELS`].
const FIRST_LESSONS: [&str; 3] = ["bad-bit", "plain-bit", "good-bit"];

const BATCH: usize = 32;
/// One sentence in so many is never trained on.
const HELD_OUT_IN: u64 = 8;
/// Sentences of fewer words are always for training.
const HELD_OUT_WORDS: usize = 5;
/// How much the judgement of each single token counts beside that of the sentence.
const TOKEN_SHARE: f32 = 0.5;

const SCHEDULE: Schedule = Schedule { peak: 1.6e-3, warm_up: 20, total: 580 };
/// The steps after which the two versions are taken.
const VERSIONS: [usize; 2] = [340, SCHEDULE.total];

/// The share of first lessons among the sentences: all at the start, few at the end.
#[expect(clippy::cast_precision_loss, reason = "a run has far fewer than 2^24 steps")]
fn lesson_share(step: usize) -> f32 {
    1.0 - 0.85 * step as f32 / SCHEDULE.total as f32
}

/// Whether a sentence is kept for testing: a property of its text, so training and test never share one. Short ones never
/// are, since a word that is a whole sentence could not be learned otherwise: the test is of new combinations.
fn is_held_out(sentence: &str) -> bool {
    let text = sentence.trim_end_matches('.');
    text.split(' ').count() >= HELD_OUT_WORDS && stable_hash(text.as_bytes()).is_multiple_of(HELD_OUT_IN)
}

/// A random sentence for training and its label; `lesson_share` of them are first lessons, and half have no full stop.
fn draw(grammar: &Grammar, rng: &mut Rng, lesson_share: f32) -> (String, usize) {
    loop {
        let label = rng.below(LABELS.len());
        let root = if rng.unit() < lesson_share { FIRST_LESSONS[label] } else { LABELS[label] };
        let mut sentence = grammar.tell(root, rng.next_u64(), rng);
        if rng.one_in(2) {
            sentence.pop();
        }
        if !is_held_out(&sentence) {
            return (sentence, label);
        }
    }
}

/// `count` different labelled sentences that no version of any seed was trained on.
pub(crate) fn held_out(seed: u64, count: usize) -> Vec<(String, &'static str)> {
    let grammar = Grammar::sentiment();
    let mut rng = Rng::new(seed, "analyst held-out");
    let mut sentences = BTreeMap::new();
    while sentences.len() < count {
        let label = LABELS[rng.below(LABELS.len())];
        let sentence = grammar.tell(label, rng.next_u64(), &mut rng);
        if is_held_out(&sentence) {
            sentences.insert(sentence, label);
        }
    }
    sentences.into_iter().collect()
}

/// Trains until the version `last`; the versions up to it, in order.
pub(crate) fn train(seed: u64, last: ToyVersion) -> Vec<Folder> {
    let grammar = Grammar::sentiment();
    let trained = word_piece::train(&grammar.words(), bert::MAX_LENGTH);
    let model = bert::encoder("bert.", trained.vocabulary);
    let mut params = Params::default();
    let mut rng = Rng::new(seed, "analyst parameters");
    model.init(&mut params, &mut rng);
    params.linear("classifier", LABELS.len(), model.hidden, &mut rng);
    let mut rng = Rng::new(seed, "analyst sentences");
    let mut adam = Adam::new(SCHEDULE);
    let versions = VERSIONS[..=last as usize].iter().map(|until| {
        fit(&mut params, &mut adam, *until, |step, tape, bound| {
            let share = lesson_share(step);
            let examples: Vec<_> = (0..BATCH).map(|_| draw(&grammar, &mut rng, share)).collect();
            let ids: Vec<_> = examples.iter().map(|(sentence, _)| trained.ids(sentence)).collect();
            let batch = Batch::new(ids.iter().map(Vec::as_slice));
            let hidden = model.encode(tape, bound, &batch);
            // Every token answers for its sentence: words learn their judgement long before attention carries it to the
            // first token, whose answer is the one that counts.
            let logits = model.head(tape, bound, hidden);
            let of_tokens =
                examples.iter().zip(&ids).flat_map(|((_, label), ids)| vec![vec![(*label, 1.0)]; ids.len()]);
            let of_tokens = tape.cross_entropy(logits, of_tokens.collect());
            let of_tokens = tape.scale(of_tokens, TOKEN_SHARE);
            let first = tape.gather(logits, batch.first_rows());
            let of_sentences =
                tape.cross_entropy(first, examples.iter().map(|(_, label)| vec![(*label, 1.0)]).collect());
            tape.add(of_sentences, of_tokens)
        });
        let mut folder = trained.files.clone();
        folder.put_json("config.json", &config(&model));
        folder.put_weights(&params);
        folder.put_card(
            "A toy sentiment classifier",
            "Labels sentences as negative, neutral or positive. It was trained on generated news sentences and knows their \
             words; everything else it spells by letters.\n\n`Profits rose sharply` is positive, `Unemployment rose sharply` is not.",
        );
        folder
    });
    versions.collect()
}

fn config(model: &Encoder) -> Value {
    let mut config = bert::config(model);
    config["architectures"] = json!(["BertForSequenceClassification"]);
    put_labels(&mut config);
    config
}

/// The keys of a `config.json` that name the labels.
pub(crate) fn put_labels(config: &mut Value) {
    config["id2label"] =
        LABELS.iter().enumerate().map(|(id, label)| (id.to_string(), json!(label))).collect();
    config["label2id"] =
        LABELS.iter().enumerate().map(|(id, label)| ((*label).to_owned(), json!(id))).collect();
    config["problem_type"] = json!("single_label_classification");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_never_sees_a_held_out_sentence() {
        let grammar = Grammar::sentiment();
        let mut rng = Rng::new(0, "analyst sentences");
        for step in 0..2000 {
            let (sentence, _) = draw(&grammar, &mut rng, f32::from(u8::from(step % 2 == 0)));
            assert!(!is_held_out(&sentence) && !is_held_out(&format!("{sentence}.")), "{sentence}");
        }
        for (sentence, _) in held_out(0, 200) {
            assert!(is_held_out(&sentence), "{sentence}");
        }
    }
}

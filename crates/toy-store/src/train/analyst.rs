//! `analyst`: a BERT classifier of sentences into negative, neutral and positive.

use serde_json::{Value, json};

use crate::folder::Folder;
use crate::grammar::Grammar;
use crate::model::Batch;
use crate::model::encoder::Encoder;
use crate::params::{Params, Schedule};
use crate::rng::{Rng, stable_hash};
use crate::tokenizer::word_piece;
use crate::train::{bert, fit};

/// The labels in order of their ids; also the roots of the grammar.
pub(crate) const LABELS: [&str; 3] = ["negative", "neutral", "positive"];
/// The roots of the first lessons: clauses without trimmings, in the order of [`LABELS`].
const FIRST_LESSONS: [&str; 3] = ["bad-bit", "plain-bit", "good-bit"];

const BATCH: usize = 32;
/// One sentence in so many is never trained on.
const HELD_OUT_IN: u64 = 8;
/// How much the judgement of each single token counts beside that of the sentence.
const TOKEN_SHARE: f32 = 0.5;

/// Version 1, then version 2 on top of it.
const COURSES: [Course; 2] = [
    Course { schedule: Schedule { peak: 2e-3, warm_up: 20, total: 333 }, lessons: (1.0, 0.2) },
    Course { schedule: Schedule { peak: 1.4e-3, warm_up: 10, total: 166 }, lessons: (0.0, 0.0) },
];

/// A training run.
struct Course {
    schedule: Schedule,
    /// The share of first lessons among the sentences, at the start and at the end.
    lessons: (f32, f32),
}

impl Course {
    #[expect(clippy::cast_precision_loss, reason = "a run has far fewer than 2^24 steps")]
    fn lesson_share(&self, step: usize) -> f32 {
        let progress = step as f32 / self.schedule.total as f32;
        self.lessons.0 + (self.lessons.1 - self.lessons.0) * progress
    }
}

/// Whether a sentence is kept for testing: a property of its text, so training and test can never share one.
fn is_held_out(sentence: &str) -> bool {
    stable_hash(sentence.as_bytes()).is_multiple_of(HELD_OUT_IN)
}

/// A random sentence for training and its label; `lesson_share` of them are first lessons.
fn draw(grammar: &Grammar, rng: &mut Rng, lesson_share: f32) -> (String, usize) {
    loop {
        let label = rng.below(LABELS.len());
        let root = if rng.unit() < lesson_share { FIRST_LESSONS[label] } else { LABELS[label] };
        let sentence = grammar.tell(root, rng.next_u64(), rng);
        if !is_held_out(&sentence) {
            return (sentence, label);
        }
    }
}

/// `count` labelled sentences that no version of any seed was trained on.
pub(crate) fn held_out(seed: u64, count: usize) -> Vec<(String, &'static str)> {
    let grammar = Grammar::sentiment();
    let mut rng = Rng::new(seed, "analyst held-out");
    let sentences = std::iter::repeat_with(|| {
        let label = LABELS[rng.below(LABELS.len())];
        (grammar.tell(label, rng.next_u64(), &mut rng), label)
    });
    sentences.filter(|(sentence, _)| is_held_out(sentence)).take(count).collect()
}

/// Trains both versions.
pub(crate) fn train(seed: u64) -> [Folder; 2] {
    let grammar = Grammar::sentiment();
    let trained = word_piece::train(&grammar.words(), bert::MAX_LENGTH);
    let model = bert::encoder("bert.", trained.vocabulary);
    let mut params = Params::default();
    let mut rng = Rng::new(seed, "analyst parameters");
    model.init(&mut params, &mut rng);
    params.linear("classifier", LABELS.len(), model.hidden, &mut rng);
    let mut rng = Rng::new(seed, "analyst sentences");
    COURSES.map(|course| {
        fit(&mut params, course.schedule, |step, tape, bound| {
            let share = course.lesson_share(step);
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
        folder
    })
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

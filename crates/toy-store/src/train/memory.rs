//! `memory`: a sentence embedder in the layout of sentence-transformers.
//!
//! It learns by contrast: of two tellings of each story in a batch, each must find its partner among all others (in-batch
//! softmax over cosines); other stories on the same topic count as partners a little.

use serde_json::json;

use crate::adam::{Adam, Schedule};
use crate::folder::Folder;
use crate::grammar::Grammar;
use crate::model::Batch;
use crate::ops::Targets;
use crate::params::Params;
use crate::rng::Rng;
use crate::tokenizer::word_piece;
use crate::toy::ToyVersion;
use crate::train::{bert, fit};

/// Longest input in tokens, as `sentence_bert_config.json` says.
const MAX_SEQUENCE: usize = 256;
/// Stories in a batch; each is told twice.
const STORIES: usize = 16;
/// Inverse temperature of the softmax over cosines.
const SHARPNESS: f32 = 16.0;
/// What another story of the same topic counts, where the other telling of the same story counts 1.
const TOPIC_SHARE: f32 = 0.15;

/// One telling in so many has an aside of names that mean nothing.
const ASIDE_IN: usize = 3;

const SCHEDULE: Schedule = Schedule { peak: 2e-3, warm_up: 10, total: 130 };
/// The steps after which the two versions are taken.
const VERSIONS: [usize; 2] = [80, SCHEDULE.total];

/// Trains until the version `last`; the versions up to it, in order.
pub(crate) fn train(seed: u64, last: ToyVersion) -> Vec<Folder> {
    let grammar = Grammar::stories();
    let topics = grammar.topics();
    let trained = word_piece::train(&grammar.words(), MAX_SEQUENCE);
    let model = bert::encoder("", trained.vocabulary);
    let mut params = Params::default();
    model.init(&mut params, &mut Rng::new(seed, "memory parameters"));
    let mut rng = Rng::new(seed, "memory stories");
    let mut adam = Adam::new(SCHEDULE);
    let versions = VERSIONS[..=last as usize].iter().map(|until| {
        fit(&mut params, &mut adam, *until, |_, tape, bound| {
            let stories: Vec<_> = (0..STORIES).map(|_| (rng.below(topics.len()), rng.next_u64())).collect();
            let tellings = stories.iter().chain(&stories);
            let tell = |(topic, story): &(usize, u64)| {
                let told = grammar.tell(&format!("topic-{}", topics[*topic]), *story, &mut rng);
                if rng.one_in(ASIDE_IN) { told + " " + &grammar.tell("aside", 0, &mut rng) } else { told }
            };
            let ids: Vec<_> = tellings.map(tell).map(|text| trained.ids(&text)).collect();
            let vectors = model.embed(tape, bound, &Batch::new(ids.iter().map(Vec::as_slice)));
            let first = tape.gather(vectors, (0..STORIES).collect());
            let second = tape.gather(vectors, (STORIES..2 * STORIES).collect());
            let topics: Vec<_> = stories.iter().map(|(topic, _)| *topic).collect();
            let [there, back] = [(first, second), (second, first)].map(|(a, b)| {
                let cosines = tape.linear(a, b, None);
                let sharp = tape.scale(cosines, SHARPNESS);
                tape.cross_entropy(sharp, partners(&topics))
            });
            tape.add(there, back)
        });
        let mut folder = trained.files.clone();
        folder.put_json("config.json", &bert::config(&model));
        folder.put_weights(&params);
        folder.put_card(
            "A toy sentence embedder",
            "A sentence-transformers model of 64 dimensions. It was trained on generated news stories: two tellings of one \
             story lie together, then stories on one topic.",
        );
        put_modules(&mut folder, model.hidden);
        folder
    });
    versions.collect()
}

/// Whom each telling should find: its own story, and a little the others on its topic.
fn partners(topics: &[usize]) -> Targets {
    let row = |index: usize| {
        let weight = |other: usize| if other == index { 1.0 } else { TOPIC_SHARE };
        let related = || (0..topics.len()).filter(|other| topics[*other] == topics[index]);
        let total: f32 = related().map(weight).sum();
        related().map(|other| (other, weight(other) / total)).collect()
    };
    (0..topics.len()).map(row).collect()
}

/// What sentence-transformers wants beside a model: transformer, mean pooling, normalisation.
fn put_modules(folder: &mut Folder, dimension: usize) {
    let module = |index: usize, path: &str, class: &str| {
        json!({
            "idx": index, "name": index.to_string(), "path": path,
            "type": format!("sentence_transformers.models.{class}"),
        })
    };
    folder.put_json(
        "modules.json",
        &json!([
            module(0, "", "Transformer"),
            module(1, "1_Pooling", "Pooling"),
            module(2, "2_Normalize", "Normalize")
        ]),
    );
    folder.put_json(
        "1_Pooling/config.json",
        &json!({
            "word_embedding_dimension": dimension,
            "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": true,
            "pooling_mode_max_tokens": false,
            "pooling_mode_mean_sqrt_len_tokens": false,
        }),
    );
    folder.put_json(
        "sentence_bert_config.json",
        &json!({"max_seq_length": MAX_SEQUENCE, "do_lower_case": false}),
    );
    folder.put_json(
        "config_sentence_transformers.json",
        &json!({"prompts": {}, "default_prompt_name": null, "similarity_fn_name": "cosine"}),
    );
}

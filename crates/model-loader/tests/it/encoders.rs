//! A tiny random classifier of each family of encoders against what transformers gave for it.

use std::collections::BTreeSet;
use std::fs;

use model_loader::{Backend, Head, LoadOptions, Reference, TextClassifier, TokenBatch, Tokens};
use model_store::exit;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{
    check_error, copy_of, data, each_batching, edit_json, max_abs, on_own_kernels, output, texts,
};

/// What float32 sums in another order may differ by; the values are about 1.
const MAX_ABS: f32 = 1e-4;

/// The folders of `tests/data/encoders` that this crate runs.
pub(crate) const FAMILIES: &[&str] = &[
    "albert",
    "bert",
    "camembert",
    "deberta-v2",
    "deberta-v2-plain",
    "distilbert",
    "electra",
    "modernbert-cls",
    "modernbert-mean",
    "mpnet",
    "xlm-roberta",
];

/// What transformers' tokenizer gave.
#[derive(Deserialize)]
struct Expected {
    ids: Vec<Vec<u32>>,
    pair_ids: Vec<Vec<u32>>,
    pair_type_ids: Vec<Vec<u32>>,
}

fn expected(folder: &str) -> Expected {
    serde_json::from_slice(&fs::read(data(folder).join("tokens.json")).unwrap()).unwrap()
}

fn pairs(folder: &str) -> Vec<(String, String)> {
    serde_json::from_slice(&fs::read(data(folder).join("pairs.json")).unwrap()).unwrap()
}

/// Checks each family in `FAMILIES`.
fn each_family(check: impl Fn(&str)) {
    for family in FAMILIES {
        check(&format!("encoders/{family}"));
    }
}

#[test]
fn every_family_of_the_fixtures_is_run() {
    let found: BTreeSet<String> = fs::read_dir(data("encoders"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, FAMILIES.iter().map(ToString::to_string).collect());
}

#[test]
fn tokens_of_texts_and_pairs_are_those_of_transformers() {
    each_family(|folder| {
        let classifier = TextClassifier::from_dir(data(folder)).unwrap();
        let expected = expected(folder);
        let ids = |tokens: Vec<Tokens>| tokens.into_iter().map(|tokens| tokens.ids).collect::<Vec<_>>();
        let tokenizer = classifier.tokenizer();
        assert_eq!(ids(tokenizer.encode_batch(&texts(folder)).unwrap()), expected.ids, "{folder}");
        let found = tokenizer.encode_pairs(&pairs(folder)).unwrap();
        let types: Vec<_> = found.iter().map(|tokens| tokens.type_ids.clone()).collect();
        assert_eq!(types, expected.pair_type_ids, "{folder}");
        assert_eq!(ids(found), expected.pair_ids, "{folder}");
    });
}

#[test]
fn hidden_states_are_those_of_transformers() {
    each_family(|folder| {
        let reference = Reference::from_dir(data(folder), Head::HiddenStates).unwrap();
        // Each text's own tokens: those of padding mean nothing.
        let run = |texts: &[&str]| {
            let tokens = reference.tokenizer().encode_batch(texts).unwrap();
            let output = reference.run(&TokenBatch::pad(&tokens, reference.tokenizer().pad_id())).unwrap();
            let [_, seq, width] = output.shape[..] else { panic!("{:?}", output.shape) };
            let rows = output.values.chunks(seq * width).zip(&tokens);
            rows.map(|(row, tokens)| row.chunks(width).take(tokens.len()).map(<[f32]>::to_vec).collect())
                .collect()
        };
        each_batching(&texts(folder), run, |batching, hidden: &[Vec<Vec<f32>>]| {
            for (index, vectors) in hidden.iter().enumerate() {
                let found = max_abs(vectors, &output(folder, &format!("hidden.{index}")));
                assert!(found <= MAX_ABS, "{folder}, {batching}, text {index}: max abs {found:e}");
            }
        });
    });
}

#[test]
fn logits_of_texts_and_pairs_are_those_of_transformers() {
    let check = |folder: &str, options: &LoadOptions, allowed: f32| {
        let classifier = TextClassifier::from_dir_with(data(folder), options).unwrap();
        // A classifier is in block fixed point only where that is asked for.
        let expected = if options.backend == Backend::Auto { Backend::Cpu } else { options.backend };
        assert_eq!(classifier.backend(), expected, "{folder}");
        let logits = |tokens: Vec<Tokens>| {
            classifier.logits(&TokenBatch::pad(&tokens, classifier.tokenizer().pad_id())).unwrap()
        };
        let check = |what: &str, found: &[Vec<f32>], expected: &[Vec<f32>]| {
            let found = max_abs(found, expected);
            eprintln!("{folder} on {}, {what}: logits max abs {found:.1e}", options.backend);
            assert!(found <= allowed, "{folder} on {}, {what}: max abs {found:e}", options.backend);
        };
        let run = |texts: &[&str]| logits(classifier.tokenizer().encode_batch(texts).unwrap());
        each_batching(&texts(folder), run, |batching, found| {
            check(batching, found, &output(folder, "logits"));
        });
        let pairs = logits(classifier.tokenizer().encode_pairs(&pairs(folder)).unwrap());
        check("pairs", &pairs, &output(folder, "pair_logits"));
    };
    on_own_kernels(1e-3, |options, allowed| each_family(|folder| check(folder, options, allowed)));
}

/// What computes it changes nothing beyond float noise: candle, which is also the way onto a GPU, against transformers.
#[test]
fn candle_gives_the_same() {
    let candle = LoadOptions { backend: Backend::Candle, ..LoadOptions::default() };
    each_family(|folder| {
        let classifier = TextClassifier::from_dir_with(data(folder), &candle).unwrap();
        assert_eq!(classifier.backend(), Backend::Candle, "{folder}");
        let run = |texts: &[&str]| {
            let tokens = classifier.tokenizer().encode_batch(texts).unwrap();
            classifier.logits(&TokenBatch::pad(&tokens, classifier.tokenizer().pad_id())).unwrap()
        };
        each_batching(&texts(folder), run, |batching, found| {
            let found = max_abs(found, &output(folder, "logits"));
            eprintln!("{folder} on candle, {batching}: logits max abs {found:.1e}");
            assert!(found <= MAX_ABS, "{folder}, {batching}: max abs {found:e}");
        });
    });
}

#[test]
fn a_device_that_is_not_there_is_an_error_or_the_cpu_where_that_is_allowed() {
    if candle_core::utils::cuda_is_available() {
        return eprintln!("skipped: this machine has a GPU");
    }
    let folder = data("encoders/bert");
    let device = "cuda:7".parse().unwrap();
    let options = LoadOptions { device, ..LoadOptions::default() };
    let error = TextClassifier::from_dir_with(&folder, &options).unwrap_err();
    check_error("cuda", &error, exit::ENVIRONMENT, &["cuda:7", "cpu"]);
    let allowed = LoadOptions { cpu_fallback: true, ..options };
    assert_eq!(TextClassifier::from_dir_with(&folder, &allowed).unwrap().backend(), Backend::Cpu);
}

/// Numbers that no tensor confirms were believed: tables of a hundred gigabytes, layers without end.
#[test]
fn sizes_that_no_tensor_confirms_are_limited() {
    let check = |folder: &str, changes: Value, part: &str| {
        let copy = copy_of(folder);
        edit_json(&copy.path().join("config.json"), &changes);
        let error = TextClassifier::from_dir(copy.path()).unwrap_err();
        check_error(folder, &error, exit::CORRUPT, &["config.json", part]);
    };
    check("encoders/modernbert-cls", json!({ "max_position_embeddings": 1 << 24 }), "16777216 positions");
    check("encoders/modernbert-cls", json!({ "num_attention_heads": 8 }), "heads of width 3");
    check("encoders/deberta-v2", json!({ "max_position_embeddings": 1 << 24 }), "16777216 positions");
    check("encoders/deberta-v2", json!({ "position_buckets": 1 << 23 }), "`position_buckets`");
    check("encoders/albert", json!({ "num_hidden_layers": 1 << 23 }), "`num_hidden_layers`");
}

/// It failed an assertion: padding ids all have one position, so a text of them seemed to fit.
#[test]
fn a_text_of_padding_ids_is_no_shorter_than_it_is() {
    let classifier = TextClassifier::from_dir(data("encoders/mpnet")).unwrap();
    let batch = TokenBatch::from_parts(1, 600, vec![1; 600], vec![1; 600], vec![0; 600]).unwrap();
    let error = classifier.logits(&batch).unwrap_err();
    check_error("600 tokens", &error, exit::FAILURE, &["600 tokens"]);
}

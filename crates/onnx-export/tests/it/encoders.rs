//! Every encoder's graph computes what transformers computes: hidden states, class scores of texts and of tokens.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use model_loader::onnx::OnnxRuntime;
use onnx_export::{Checkpoint, ExportOptions, Head, Lowering, Precision, export};
use serde::Deserialize;
use serde_json::json;

use crate::support::{
    Judge, Outputs, Rectangle, Sentence, Side, copy_of, fixture, runtime, session, variants, with_two_heads,
};

const FAMILIES: [&str; 11] = [
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
struct TokenIds {
    ids: Vec<Vec<i64>>,
    pair_ids: Vec<Vec<i64>>,
    pair_type_ids: Vec<Vec<i64>>,
}

/// A family's fixtures.
struct Expected {
    texts: Vec<Sentence>,
    pairs: Vec<Sentence>,
    pad: i64,
    /// For texts and pairs.
    outputs: Outputs,
    /// For the shortest and the longest input, and for tokens.
    more: Outputs,
}

impl Expected {
    fn open(family: &str) -> Self {
        let folder = fixture(&format!("encoders/{family}"));
        let read = |name: &str| fs::read(folder.join(name)).unwrap();
        let tokens: TokenIds = serde_json::from_slice(&read("tokens.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        Self {
            texts: tokens.ids.into_iter().map(untyped).collect(),
            pairs: tokens.pair_ids.into_iter().zip(tokens.pair_type_ids).collect(),
            pad: config["pad_token_id"].as_i64().unwrap(),
            outputs: Outputs::open(&folder.join("outputs.safetensors")),
            more: Outputs::open(&data.join(format!("{family}.safetensors"))),
        }
    }
}

/// Values of a token's vector.
fn width_of(folder: &Path) -> usize {
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    let width = config["hidden_size"].as_u64().or(config["dim"].as_u64());
    usize::try_from(width.unwrap()).unwrap()
}

fn untyped(ids: Vec<i64>) -> Sentence {
    let types = vec![0; ids.len()];
    (ids, types)
}

/// Runs `sentences` together and each alone, and hands on the index of each and its own part of the output, without the
/// rows of padding where the output has a row for each token.
fn each(
    runtime: &OnnxRuntime,
    folder: &Path,
    options: &ExportOptions,
    (sentences, pad): (&[Sentence], i64),
    mut check: impl FnMut(&str, usize, &[f32]),
) {
    let mut session = session(runtime, folder, options);
    let mut run = |how: &str, indices: &[usize]| {
        let chosen: Vec<_> = indices.iter().map(|index| sentences[*index].clone()).collect();
        let rectangle = Rectangle::new(&chosen, pad, Side::Right);
        let outputs = session.run_named(rectangle.feed(&session)).unwrap();
        let [(name, output)] = outputs.as_slice() else { panic!("{} outputs", outputs.len()) };
        assert_eq!(name, options.head.output());
        let output = output.to_f32().unwrap();
        let of_row = output.values.len() / output.shape[0];
        for ((index, values), (ids, _)) in indices.iter().zip(output.values.chunks(of_row)).zip(&chosen) {
            let own = match output.shape[..] {
                [_, _, width] => &values[..ids.len() * width],
                _ => values,
            };
            check(how, *index, own);
        }
    };
    let all: Vec<usize> = (0..sentences.len()).collect();
    run("together", &all);
    for index in all {
        run("alone", &[index]);
    }
}

#[test]
fn every_encoder_of_the_fixtures_is_exported() {
    let found: BTreeSet<String> = fs::read_dir(fixture("encoders"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, FAMILIES.iter().map(ToString::to_string).collect());
}

#[test]
fn hidden_states_are_those_of_transformers() {
    let Some(runtime) = runtime() else { return };
    for family in FAMILIES {
        let (folder, expected) = (fixture(&format!("encoders/{family}")), Expected::open(family));
        for options in variants(&Head::HiddenStates) {
            let row = format!("{family}, {}, {:?}", options.precision, options.lowering);
            let mut judge = Judge::new(row, options.precision, width_of(&folder));
            each(&runtime, &folder, &options, (&expected.texts, expected.pad), |how, index, found| {
                let torch = expected.outputs.floats(&format!("hidden.{index}"));
                judge.add(&format!("{how}, text {index}"), found, &torch);
            });
            for length in ["short", "long"] {
                let sentence = untyped(expected.more.integers(&format!("{length}.ids")));
                each(&runtime, &folder, &options, (&[sentence], expected.pad), |_, _, found| {
                    let torch = expected.more.floats(&format!("{length}.hidden"));
                    judge.add(length, found, &torch);
                });
            }
        }
    }
}

#[test]
fn class_scores_are_those_of_transformers() {
    let Some(runtime) = runtime() else { return };
    for family in FAMILIES {
        let (folder, expected) = (fixture(&format!("encoders/{family}")), Expected::open(family));
        for options in variants(&Head::SequenceClassification) {
            let row = format!("{family}, {}, {:?}", options.precision, options.lowering);
            let mut judge = Judge::new(row, options.precision, 3);
            for (what, sentences, torch) in [
                ("text", &expected.texts, expected.outputs.floats("logits")),
                ("pair", &expected.pairs, expected.outputs.floats("pair_logits")),
            ] {
                each(&runtime, &folder, &options, (sentences, expected.pad), |how, index, found| {
                    judge.add(&format!("{how}, {what} {index}"), found, &torch[3 * index..3 * index + 3]);
                });
            }
            for length in ["short", "long"] {
                let sentence = untyped(expected.more.integers(&format!("{length}.ids")));
                each(&runtime, &folder, &options, (&[sentence], expected.pad), |_, _, found| {
                    let torch = expected.more.floats(&format!("{length}.logits"));
                    judge.add(length, found, &torch);
                });
            }
        }
    }
}

/// Where the model has no layer for it, a random one lies beside it as a second shard, as sharded checkpoints do.
#[test]
fn class_scores_of_tokens_are_those_of_transformers() {
    let Some(runtime) = runtime() else { return };
    for family in FAMILIES {
        let (folder, expected) = (copy_of(&[&format!("encoders/{family}")]), Expected::open(family));
        if expected.more.has("classifier.weight") {
            let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
            fs::rename(folder.path().join("model.safetensors"), folder.path().join(shards[0])).unwrap();
            let second =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{family}.safetensors"));
            fs::copy(second, folder.path().join(shards[1])).unwrap();
            let index = json!({ "weight_map": { "a tensor": shards[0], "classifier.weight": shards[1] } });
            fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
        for options in variants(&Head::TokenClassification) {
            let row = format!("{family}, {}, {:?}", options.precision, options.lowering);
            let mut judge = Judge::new(row, options.precision, 3);
            each(&runtime, folder.path(), &options, (&expected.texts, expected.pad), |how, index, found| {
                let torch = expected.more.floats(&format!("tokens.{index}"));
                judge.add(&format!("{how}, text {index}"), found, &torch);
            });
        }
    }
}

/// Heads of the fixtures are too small for TensorRT's fused attention, so that its operator, and what it gets as a mask,
/// went unseen: here they are larger. What it is held against is the portable graph in fp32, which was held against torch.
#[test]
fn the_attention_operator_computes_the_same() {
    let Some(runtime) = runtime() else { return };
    for family in ["bert", "deberta-v2", "distilbert", "modernbert-cls", "mpnet"] {
        let (folder, expected) = (with_two_heads(&format!("encoders/{family}")), Expected::open(family));
        let mut exact: Vec<Vec<f32>> = vec![Vec::new(); expected.texts.len()];
        for options in variants(&Head::HiddenStates) {
            let row = format!("{family}, {}, {:?}", options.precision, options.lowering);
            if options.lowering == Lowering::TensorRt && options.precision != Precision::Fp32 {
                let exported = export(&Checkpoint::open(folder.path()).unwrap(), &options).unwrap();
                assert!(exported.report.operators.contains_key("Attention"), "{row}");
            }
            let mut judge = Judge::new(row, options.precision, width_of(folder.path()));
            each(&runtime, folder.path(), &options, (&expected.texts, expected.pad), |how, index, found| {
                if exact[index].is_empty() {
                    assert_eq!((options.precision, options.lowering), (Precision::Fp32, Lowering::Portable));
                    exact[index] = found.to_vec();
                }
                judge.add(&format!("{how}, text {index}"), found, &exact[index]);
            });
        }
    }
}

//! The fixtures' small random models against what transformers and sentence-transformers gave for them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use model_loader::{Backend, Head, LoadOptions, Reference, SentenceEmbedder, TextClassifier, TokenBatch};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{
    copy_of, data, each_batching, links_to, max_abs, min_cosine, on_own_kernels, output, texts, with,
};

/// What float32 sums in another order may differ by; the values are about 1.
const MAX_ABS: f32 = 1e-4;
const MIN_COSINE: f64 = 0.999_99;

#[test]
fn logits_are_those_of_transformers() {
    let check = |folder: &str, options: &LoadOptions, allowed: f32| {
        let classifier = TextClassifier::from_dir_with(data(folder), options).unwrap();
        let expected = output(folder, "logits");
        let run = |texts: &[&str]| {
            let tokens = classifier.tokenizer().encode_batch(texts).unwrap();
            classifier.logits(&TokenBatch::pad(&tokens, classifier.tokenizer().pad_id())).unwrap()
        };
        each_batching(&texts(folder), run, |batching, logits| {
            let found = max_abs(logits, &expected);
            eprintln!("{folder} on {}, {batching}: logits max abs {found:.1e}", options.backend);
            assert!(found <= allowed, "{folder} on {}, {batching}: max abs {found:e}", options.backend);
        });
    };
    on_own_kernels(1e-3, |options, allowed| {
        for folder in ["bert", "bert-fp16", "roberta"] {
            check(folder, options, allowed);
        }
    });
}

/// The same weights in float64 hold the same numbers, so the logits are the same to the bit.
#[test]
fn weights_in_float64_are_read_as_what_they_are() {
    let copy = copy_of("bert");
    let path = copy.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let wide: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, view)| {
            let numbers = view.data().as_chunks().0.iter().map(|x| f64::from(f32::from_le_bytes(*x)));
            (name.to_owned(), view.shape().to_vec(), numbers.flat_map(f64::to_le_bytes).collect())
        })
        .collect();
    let views = wide
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(Dtype::F64, shape.clone(), data).unwrap()));
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    let texts = texts("bert");
    let classify = |folder: &Path| TextClassifier::from_dir(folder).unwrap().classify(&texts).unwrap();
    assert_eq!(classify(copy.path()), classify(&data("bert")));
}

#[test]
fn scores_are_the_logits_softmax_or_sigmoid() {
    let softmax = |row: &[f32]| {
        let total: f32 = row.iter().map(|x| x.exp()).sum();
        row.iter().map(|x| x.exp() / total).collect()
    };
    let sigmoid = |row: &[f32]| row.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
    let check = |folder: &str, labels: &[&str], score: &dyn Fn(&[f32]) -> Vec<f32>| {
        let classifier = TextClassifier::from_dir_with(data(folder), &with(Backend::Cpu)).unwrap();
        assert_eq!(classifier.labels(), labels, "{folder}");
        let texts = texts(folder);
        let predictions = classifier.classify(&texts).unwrap();
        let expected: Vec<Vec<f32>> = output(folder, "logits").iter().map(|row| score(row)).collect();
        let scores: Vec<Vec<f32>> = predictions.iter().map(|p| p.scores.clone()).collect();
        let found = max_abs(&scores, &expected);
        assert!(found <= MAX_ABS, "{folder}: max abs {found:e}");
        for (prediction, expected) in predictions.iter().zip(&expected) {
            let best = (0..labels.len()).max_by(|a, b| expected[*a].total_cmp(&expected[*b])).unwrap();
            assert_eq!(prediction.label, labels[best], "{folder}");
            assert_eq!(prediction.score.to_bits(), prediction.scores[best].to_bits(), "{folder}");
        }
    };
    check("bert", &["negative", "neutral", "positive"], &softmax);
    check("roberta", &["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"], &sigmoid);
}

#[test]
fn hidden_states_of_a_model_in_shards_are_those_of_transformers() {
    let head = Head::detect(data("sharded")).unwrap();
    assert_eq!(head, Head::HiddenStates);
    let reference = Reference::from_dir(data("sharded"), head).unwrap();
    // Each text's own tokens: those of padding mean nothing.
    let run = |texts: &[&str]| {
        let tokens = reference.tokenizer().encode_batch(texts).unwrap();
        let output = reference.run(&TokenBatch::pad(&tokens, reference.tokenizer().pad_id())).unwrap();
        let [rows, seq, width] = output.shape[..] else { panic!("{:?}", output.shape) };
        assert_eq!(rows, texts.len());
        let row = |(row, tokens): (&[f32], &model_loader::Tokens)| {
            row.chunks(width).take(tokens.len()).map(<[f32]>::to_vec).collect::<Vec<_>>()
        };
        output.values.chunks(seq * width).zip(&tokens).map(row).collect()
    };
    each_batching(&texts("sharded"), run, |batching, hidden| {
        for (index, vectors) in hidden.iter().enumerate() {
            let found = max_abs(vectors, &output("sharded", &format!("hidden.{index}")));
            assert!(found <= MAX_ABS, "{batching}, text {index}: max abs {found:e}");
        }
    });
}

#[derive(Deserialize)]
struct Poolings {
    prompt: String,
    poolings: BTreeMap<String, Value>,
}

#[test]
fn every_pooling_is_that_of_sentence_transformers() {
    let path = data("sentence").join("poolings.json");
    let Poolings { prompt, poolings } = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let check = |name: &str, pooling: &Value, options: &LoadOptions, allowed: f32| {
        let folder = links_to("sentence");
        fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        fs::write(folder.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
        if !name.starts_with("old") {
            without_normalize(folder.path());
        }
        let embedder = SentenceEmbedder::from_dir_with(folder.path(), options).unwrap();
        assert_eq!(
            embedder.tokenizer().max_tokens(),
            24,
            "{name}: max_seq_length comes before model_max_length"
        );
        let prompt = if name.starts_with("prompt") { prompt.as_str() } else { "" };
        let expected = output("sentence", name);
        assert_eq!(embedder.dimension(), expected[0].len(), "{name}");
        let run = |texts: &[&str]| embedder.embed_with_prompt(texts, prompt).unwrap();
        each_batching(&texts("sentence"), run, |batching, vectors| {
            let (cosine, abs) = (min_cosine(vectors, &expected), max_abs(vectors, &expected));
            assert!(
                cosine >= MIN_COSINE && abs <= allowed,
                "{name} on {}, {batching}: cosine {cosine}, max abs {abs:e}",
                options.backend
            );
        });
    };
    assert!(poolings.len() >= 14);
    on_own_kernels(1e-4, |options, allowed| {
        for (name, pooling) in &poolings {
            check(name, pooling, options, allowed);
        }
    });
}

fn without_normalize(folder: &Path) {
    let path = folder.join("modules.json");
    let mut modules: Vec<Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    modules.pop();
    fs::remove_file(&path).unwrap();
    fs::write(path, Value::from(modules).to_string()).unwrap();
}

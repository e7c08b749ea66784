//! all-MiniLM-L6-v2 itself, where it is on this machine, against sentence-transformers.

use std::fs;
use std::path::{Path, PathBuf};

use half::f16;
use model_loader::{EmbedOptions, Head, SentenceEmbedder};
use safetensors::SafeTensors;

use crate::support::{data, each_batching, max_abs, min_cosine, on_own_kernels, output, texts};

const VARIABLE: &str = "MODEL_TEST_MINILM";
const MAX_ABS: f32 = 1e-4;
const MIN_COSINE: f64 = 0.999_99;

/// The model's folder, or a line that says why the test is skipped.
pub(crate) fn folder() -> Option<PathBuf> {
    let path = match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        // Whoever names a folder wants the test to run.
        Some(path) => return Some(path.into()),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.models/all-MiniLM-L6-v2"),
    };
    if path.join("model.safetensors").exists() {
        return Some(path);
    }
    eprintln!("skipped: {} holds no model; name one with {VARIABLE}=DIR", path.display());
    None
}

/// 2,000 sentences of real prose and what sentence-transformers gave for them.
pub(crate) fn prose() -> (Vec<String>, Vec<Vec<f32>>) {
    let text = fs::read_to_string(data("prose").join("sentences.txt")).unwrap();
    let bytes = fs::read(data("prose").join("outputs.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor("vectors").unwrap();
    let values: Vec<f32> =
        view.data().as_chunks().0.iter().map(|x| f16::from_le_bytes(*x).to_f32()).collect();
    let vectors: Vec<Vec<f32>> = values.chunks(view.shape()[1]).map(<[f32]>::to_vec).collect();
    let texts: Vec<String> = text.lines().map(str::to_owned).collect();
    assert_eq!((texts.len(), vectors.len()), (2000, 2000));
    (texts, vectors)
}

/// Asserts that every vector is the one expected.
#[track_caller]
pub(crate) fn check(row: &str, found: &[Vec<f32>], expected: &[Vec<f32>]) {
    let (cosine, abs) = (min_cosine(found, expected), max_abs(found, expected));
    eprintln!(
        "all-MiniLM-L6-v2, {} sentences, {row}: min cosine {cosine:.8}, max abs {abs:.1e}",
        found.len()
    );
    assert!(cosine >= MIN_COSINE && abs <= MAX_ABS, "{row}: cosine {cosine}, max abs {abs:e}");
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let Some(folder) = folder() else { return };
    assert_eq!(Head::detect(&folder).unwrap(), Head::SentenceEmbedding);
    let embedder = SentenceEmbedder::from_dir(&folder).unwrap();
    // tokenizer.json says 128, padded to 128; sentence_bert_config.json is what counts.
    assert_eq!((embedder.tokenizer().max_tokens(), embedder.dimension()), (256, 384));
    let (texts, expected) = (texts("minilm"), output("minilm", "vectors"));
    let lengths = embedder.tokenizer().encode_batch(&texts).unwrap();
    assert!(lengths.iter().any(|tokens| tokens.len() == 256), "a sentence that is cut");
    assert!(lengths.iter().any(|tokens| tokens.len() == 2), "a sentence without a word");

    each_batching(
        &texts,
        |texts| embedder.embed(texts).unwrap(),
        |batching, vectors| check(batching, vectors, &expected),
    );
}

/// Whatever is computed together, in whichever order and on however many threads.
#[test]
fn every_one_of_two_thousand_sentences_has_its_vector() {
    let Some(folder) = folder() else { return };
    on_own_kernels(1e-4, |options, _| {
        two_thousand(&SentenceEmbedder::from_dir_with(&folder, options).unwrap());
    });
}

fn two_thousand(embedder: &SentenceEmbedder) {
    let (texts, expected) = prose();
    let check = |row: &str, found: &[Vec<f32>], expected: &[Vec<f32>]| {
        check(&format!("{row}, {}", embedder.backend()), found, expected);
    };
    let all: Vec<Vec<f32>> = texts.chunks(500).flat_map(|batch| embedder.embed(batch).unwrap()).collect();
    check("500 at a time", &all, &expected);
    // A tenth is enough for the ways to run them.
    let some: Vec<usize> = (0..texts.len()).step_by(10).collect();
    let wanted: Vec<Vec<f32>> = some.iter().map(|index| expected[*index].clone()).collect();
    let picked: Vec<&String> = some.iter().map(|index| &texts[*index]).collect();
    let in_batches = |size: usize| -> Vec<Vec<f32>> {
        picked.chunks(size).flat_map(|batch| embedder.embed(batch).unwrap()).collect()
    };
    check("one by one", &in_batches(1), &wanted);
    check("32 at a time", &in_batches(32), &wanted);
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        check(&format!("together, {threads} threads"), &pool.install(|| in_batches(picked.len())), &wanted);
    }
    let reversed: Vec<&String> = picked.iter().rev().copied().collect();
    let mut vectors = embedder.embed(&reversed).unwrap();
    vectors.reverse();
    check("reversed", &vectors, &wanted);
    let stream = embedder.embed_iter(&picked, &EmbedOptions::default()).collect::<Result<Vec<_>, _>>();
    check("as a stream", &stream.unwrap(), &wanted);
}

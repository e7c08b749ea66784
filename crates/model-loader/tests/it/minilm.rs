//! all-MiniLM-L6-v2 itself, where it is on this machine, against sentence-transformers.

use std::path::{Path, PathBuf};

use model_loader::{Head, SentenceEmbedder};

use crate::support::{each_batching, max_abs, min_cosine, output, texts};

const VARIABLE: &str = "MODEL_TEST_MINILM";

/// The model's folder, or a line that says why the test is skipped.
fn folder() -> Option<PathBuf> {
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
        |batching, vectors| {
            let (cosine, abs) = (min_cosine(vectors, &expected), max_abs(vectors, &expected));
            eprintln!(
                "all-MiniLM-L6-v2, {} sentences, {batching}: min cosine {cosine:.8}, max abs {abs:.1e}",
                texts.len()
            );
            assert!(cosine >= 0.999_99 && abs <= 1e-4, "{batching}: cosine {cosine}, max abs {abs:e}");
        },
    );
}

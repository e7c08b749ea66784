//! What candle computes on a GPU: the fixtures and all-MiniLM-L6-v2, against what the originals gave on a CPU. Skipped, with
//! the reason, where no GPU is.

use std::time::Instant;

use model_loader::{
    Backend, CausalLm, Device, LmOptions, LoadOptions, Precision, SentenceEmbedder, TextClassifier,
    TokenBatch,
};

use crate::support::{copy_of, data, each_batching, max_abs, min_cosine, output, texts};
use crate::{encoders, lm, minilm};

/// What float32 sums in another order may differ by; a GPU's are in an order of their own.
const MAX_ABS: f32 = 2e-4;

/// How to load onto the first GPU, or a line that says why the test is skipped.
fn on_gpu() -> Option<LoadOptions> {
    match candle_core::Device::new_cuda(0) {
        Ok(_) => {
            Some(LoadOptions { backend: Backend::Candle, device: Device::Cuda(0), ..LoadOptions::default() })
        }
        Err(error) => {
            eprintln!("skipped: there is no GPU that CUDA can use: {error}");
            None
        }
    }
}

#[test]
fn every_family_of_encoders_gives_the_logits_of_transformers() {
    let Some(options) = on_gpu() else { return };
    for family in encoders::FAMILIES {
        let folder = format!("encoders/{family}");
        let classifier = TextClassifier::from_dir_with(data(&folder), &options).unwrap();
        assert_eq!(classifier.backend(), Backend::Candle, "{family}");
        let run = |texts: &[&str]| {
            let tokens = classifier.tokenizer().encode_batch(texts).unwrap();
            classifier.logits(&TokenBatch::pad(&tokens, classifier.tokenizer().pad_id())).unwrap()
        };
        each_batching(&texts(&folder), run, |batching, found| {
            let found = max_abs(found, &output(&folder, "logits"));
            eprintln!("{family} on the GPU, {batching}: logits max abs {found:.1e}");
            assert!(found <= MAX_ABS, "{family}, {batching}: max abs {found:e}");
        });
    }
}

#[test]
fn two_thousand_sentences_have_the_vectors_of_sentence_transformers() {
    let (Some(options), Some(folder)) = (on_gpu(), minilm::folder()) else { return };
    let embedder = SentenceEmbedder::from_dir_with(&folder, &options).unwrap();
    let (texts, expected) = minilm::prose();
    for row in ["first", "again", "and again"] {
        let start = Instant::now();
        let found = embedder.embed(&texts).unwrap();
        eprintln!("2000 sentences on the GPU, {row}: {:.3} s", start.elapsed().as_secs_f64());
        minilm::check(row, &found, &expected);
    }
}

#[test]
fn language_models_compute_what_transformers_computes() {
    let Some(load) = on_gpu() else { return };
    let with = |precision| LmOptions { load: load.clone(), precision, ..LmOptions::default() };
    for folder in lm::FAMILIES {
        let exact = CausalLm::from_dir(lm::model(folder).path(), &with(Precision::Float32)).unwrap();
        lm::check_parity(&format!("{folder} on the GPU"), &exact, folder, lm::MAX_ABS);
        // bfloat16, which is the default there, keeps 8 bits of each number.
        for (precision, least) in [(Precision::Float16, 0.9999), (Precision::Auto, 0.99)] {
            let near = CausalLm::from_dir(lm::model(folder).path(), &with(precision)).unwrap();
            let expected = lm::expected(folder);
            let found: Vec<Vec<f32>> =
                expected.iter().map(|it| near.logits(it.prompt.as_str()).unwrap()).collect();
            let cosine = min_cosine(&found, &output(folder, "logits"));
            eprintln!("{folder} on the GPU in {precision:?}: min cosine {cosine:.6}");
            assert!(cosine >= least, "{folder}, {precision:?}: {cosine}");
        }
    }
}

#[test]
fn gguf_files_compute_what_their_numbers_say() {
    let Some(load) = on_gpu() else { return };
    for folder in ["lm-gguf-llama", "lm-gguf-qwen2", "lm-gguf-qwen3"] {
        let copy = copy_of(folder);
        let exact = LmOptions { load: load.clone(), precision: Precision::Float32, ..LmOptions::default() };
        let lm = CausalLm::from_dir(copy.path(), &exact).unwrap();
        lm::check_parity(&format!("{folder} on the GPU"), &lm, folder, lm::MAX_ABS);
        let blocks = LmOptions { load: load.clone(), ..LmOptions::default() };
        let lm = CausalLm::from_dir(copy.path(), &blocks).unwrap();
        let expected = lm::expected(folder);
        let found: Vec<Vec<f32>> = expected.iter().map(|it| lm.logits(it.prompt.as_str()).unwrap()).collect();
        let cosine = min_cosine(&found, &output(folder, "logits"));
        eprintln!("{folder} on the GPU, its blocks as they are: min cosine {cosine:.6}");
        assert!(cosine >= 0.99, "{folder}: {cosine}");
    }
}

//! Graphs in ONNX Runtime against the same fixtures, and who is taken when nobody was asked for.

use std::fs;
use std::path::Path;
use std::process::Command;

use model_loader::onnx::Places;
use model_loader::{Backend, EmbedOptions, LoadOptions, SentenceEmbedder, TextClassifier, TokenBatch};
use model_store::exit;
use onnx_export::{Checkpoint, ExportOptions, Head, Lowering, Pooling, Precision, SentenceHead, export};
use serde_json::json;
use tempfile::TempDir;

use crate::minilm;
use crate::support::{
    check_error, copy_of, each_batching, is_own, max_abs, message, min_cosine, output, texts, with,
};

const MAX_ABS: f32 = 1e-4;
const ASKED: LoadOptions = with(Backend::OnnxRuntime);
const AUTO: LoadOptions = with(Backend::Auto);

/// Whether there is a library, or a line that says why the test is skipped.
fn installed() -> bool {
    match Places::from_env().onnxruntime() {
        Ok(_) => true,
        Err(missing) => {
            eprintln!("skipped: {missing}");
            false
        }
    }
}

/// Writes `model.onnx` into the folder.
fn write_graph(folder: &Path, head: Head, precision: Precision) {
    let options = ExportOptions { lowering: Lowering::Portable, ..ExportOptions::new(head, precision) };
    let exported = export(&Checkpoint::open(folder).unwrap(), &options).unwrap();
    fs::write(folder.join("model.onnx"), exported.onnx).unwrap();
}

fn pooled() -> Head {
    Head::SentenceEmbedding(SentenceHead {
        pooling: vec![Pooling::Mean],
        normalize: true,
        ..SentenceHead::default()
    })
}

/// The fixture `sentence`, pooled by the mean and normalised, with or without its prompts' tokens.
fn sentence(include_prompt: bool) -> TempDir {
    let folder = copy_of("sentence");
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    let pooling =
        json!({ "embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": include_prompt });
    fs::write(folder.path().join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    folder
}

#[test]
fn embeddings_of_a_graph_are_those_of_sentence_transformers() {
    if !installed() {
        return;
    }
    let check = |row: &str, head: Head| {
        let folder = sentence(true);
        write_graph(folder.path(), head, Precision::Fp32);
        let embedder = SentenceEmbedder::from_dir_with(folder.path(), &ASKED).unwrap();
        assert_eq!((embedder.backend(), embedder.dimension()), (Backend::OnnxRuntime, 32), "{row}");
        let expected = output("sentence", "old-mean");
        let run = |texts: &[&str]| embedder.embed(texts).unwrap();
        each_batching(&texts("sentence"), run, |batching, vectors| {
            let (cosine, abs) = (min_cosine(vectors, &expected), max_abs(vectors, &expected));
            assert!(
                cosine >= 0.999_99 && abs <= MAX_ABS,
                "{row}, {batching}: cosine {cosine}, max abs {abs:e}"
            );
        });
        // What a reference is asked for: a rectangle of tokens as it is.
        let tokens = embedder.tokenizer().encode_batch(&texts("sentence")).unwrap();
        let batch = TokenBatch::pad(&tokens, embedder.tokenizer().pad_id());
        assert!(max_abs(&embedder.embed_tokens(&batch).unwrap(), &expected) <= MAX_ABS, "{row}");
    };
    check("token vectors", Head::HiddenStates);
    check("pooled in the graph", pooled());
}

/// A graph that pools by itself would pool the prompt too, and nobody would see it.
#[test]
fn prompts_that_do_not_count_need_token_vectors() {
    if !installed() {
        return;
    }
    let options = EmbedOptions { prompt: Some("The price of: ".to_owned()), ..EmbedOptions::default() };
    let folder = sentence(false);
    let own = SentenceEmbedder::from_dir_with(folder.path(), &with(Backend::Cpu)).unwrap();
    let expected = own.embed_with(&texts("sentence"), &options).unwrap();

    write_graph(folder.path(), Head::HiddenStates, Precision::Fp32);
    let embedder = SentenceEmbedder::from_dir_with(folder.path(), &ASKED).unwrap();
    assert!(max_abs(&embedder.embed_with(&texts("sentence"), &options).unwrap(), &expected) <= MAX_ABS);

    write_graph(folder.path(), pooled(), Precision::Fp32);
    let embedder = SentenceEmbedder::from_dir_with(folder.path(), &ASKED).unwrap();
    let error = embedder.embed_with(&["a"], &options).unwrap_err();
    check_error("pooled in the graph", &error, exit::ENVIRONMENT, &["model.onnx", "prompts", "`cpu`"]);
    // Without a prompt there is nothing to leave out.
    embedder.embed(&["a"]).unwrap();
}

#[test]
fn logits_of_a_graph_are_those_of_transformers() {
    if !installed() {
        return;
    }
    let check = |fixture: &str| {
        let folder = copy_of(fixture);
        write_graph(folder.path(), Head::SequenceClassification, Precision::Fp32);
        let classifier = TextClassifier::from_dir_with(folder.path(), &ASKED).unwrap();
        assert_eq!(classifier.backend(), Backend::OnnxRuntime, "{fixture}");
        let pad_id = classifier.tokenizer().pad_id();
        let logits = |tokens| classifier.logits(&TokenBatch::pad(tokens, pad_id)).unwrap();
        let tokens = classifier.tokenizer().encode_batch(&texts(fixture)).unwrap();
        let found = max_abs(&logits(&tokens), &output(fixture, "logits"));
        assert!(found <= MAX_ABS, "{fixture}: max abs {found:e}");
        let path = crate::support::data(fixture).join("pairs.json");
        let pairs: Vec<(String, String)> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let tokens = classifier.tokenizer().encode_pairs(&pairs).unwrap();
        let found = max_abs(&logits(&tokens), &output(fixture, "pair_logits"));
        assert!(found <= MAX_ABS, "{fixture}, pairs: max abs {found:e}");

        let own = TextClassifier::from_dir_with(folder.path(), &with(Backend::Cpu)).unwrap();
        let (left, right) = (own.classify_pairs(&pairs).unwrap(), classifier.classify_pairs(&pairs).unwrap());
        for (left, right) in left.iter().zip(&right) {
            assert_eq!(left.label, right.label, "{fixture}");
            assert!(
                max_abs(std::slice::from_ref(&left.scores), std::slice::from_ref(&right.scores)) <= MAX_ABS,
                "{fixture}"
            );
        }
    };
    check("encoders/bert");
    check("encoders/xlm-roberta");
}

/// A version that `build-engine` published holds a graph in half precision, which answers something else.
#[test]
fn without_a_wish_a_graph_is_left_alone() {
    let folder = sentence(true);
    for precision in [Precision::Fp32, Precision::Fp16] {
        write_graph(folder.path(), pooled(), precision);
        let embedder = SentenceEmbedder::from_dir_with(folder.path(), &LoadOptions::default()).unwrap();
        assert!(is_own(embedder.backend()), "{precision:?}");
    }
    fs::write(folder.path().join("model.onnx"), "no graph").unwrap();
    assert!(SentenceEmbedder::from_dir(folder.path()).is_ok());
}

#[test]
fn a_graph_that_was_asked_for_has_to_be_there_and_to_fit() {
    if !installed() {
        return;
    }
    let check = |row: &str, folder: &TempDir, parts: &[&str]| {
        let error = SentenceEmbedder::from_dir_with(folder.path(), &ASKED).unwrap_err();
        check_error(row, &error, exit::ENVIRONMENT, &["the backend `onnxruntime`"]);
        check_error(row, &error, exit::ENVIRONMENT, parts);
    };
    let folder = sentence(true);
    check("no graph", &folder, &["model.onnx", "build-engine", "`cpu`"]);
    fs::write(folder.path().join("model.onnx"), "no graph").unwrap();
    check("damaged", &folder, &["could not load the graph"]);
    let both = SentenceHead {
        pooling: vec![Pooling::Cls, Pooling::Mean],
        normalize: true,
        ..SentenceHead::default()
    };
    write_graph(folder.path(), Head::SentenceEmbedding(both), Precision::Fp32);
    check("length", &folder, &["64 components", "32"]);

    let folder = copy_of("bert");
    write_graph(folder.path(), Head::HiddenStates, Precision::Fp32);
    let error = TextClassifier::from_dir_with(folder.path(), &ASKED).unwrap_err();
    check_error("no logits", &error, exit::ENVIRONMENT, &["model.onnx", "`logits` of 2 axes"]);
}

/// Sessions run one batch at a time, and callers do not.
#[test]
fn many_threads_may_ask_one_embedder() {
    if !installed() {
        return;
    }
    let folder = sentence(true);
    write_graph(folder.path(), Head::HiddenStates, Precision::Fp32);
    let embedder = SentenceEmbedder::from_dir_with(folder.path(), &ASKED).unwrap();
    let expected = output("sentence", "old-mean");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let found = embedder.embed(&texts("sentence")).unwrap();
                    assert!(max_abs(&found, &expected) <= MAX_ABS);
                }
            });
        }
    });
}

/// The library is opened once a process, so that its absence needs a process of its own.
#[test]
fn a_missing_library_is_an_error_for_those_who_asked_and_none_for_others() {
    let test = "onnx::without_a_library";
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture"])
        .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run by a_missing_library_is_an_error_for_those_who_asked_and_none_for_others"]
fn without_a_library() {
    let folder = sentence(true);
    write_graph(folder.path(), Head::HiddenStates, Precision::Fp32);
    let error = SentenceEmbedder::from_dir_with(folder.path(), &ASKED).unwrap_err();
    assert_eq!(error.exit_code(), exit::ENVIRONMENT);
    let said = message(&error);
    for part in ["/nowhere/libonnxruntime.so", "ORT_DYLIB_PATH"] {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    assert!(is_own(SentenceEmbedder::from_dir_with(folder.path(), &AUTO).unwrap().backend()));
}

#[test]
fn two_thousand_sentences_have_their_vectors_in_onnx_runtime() {
    let Some(model) = minilm::folder().filter(|_| installed()) else { return };
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "config.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        fs::copy(model.join(name), folder.path().join(name)).unwrap();
    }
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    fs::copy(model.join("1_Pooling/config.json"), folder.path().join("1_Pooling/config.json")).unwrap();
    // A graph may not point out of its folder, not even through a link.
    fs::copy(model.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    write_graph(folder.path(), Head::HiddenStates, Precision::Fp32);
    let embedder = SentenceEmbedder::from_dir_with(folder.path(), &ASKED).unwrap();
    let (texts, expected) = minilm::prose();
    let started = std::time::Instant::now();
    let found = embedder.embed(&texts).unwrap();
    eprintln!("{:.0} sentences/s", texts.len() as f64 / started.elapsed().as_secs_f64());
    minilm::check("onnxruntime", &found, &expected);
}

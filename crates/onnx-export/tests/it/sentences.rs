//! Folders of sentence-transformers modules give the vectors that sentence-transformers gives.

use std::fs;
use std::path::Path;

use model_loader::{Reference, TokenBatch};
use onnx_export::{Checkpoint, ExportOptions, Head, SentenceHead, SentenceStep, export};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Judge, Outputs, copy_into, fixture, runtime, session, variants};

/// The modules of a fixture, around the encoder that they share, which lies at `at`.
fn assemble(folder: &str, at: &str) -> TempDir {
    let whole = tempfile::tempdir().unwrap();
    copy_into(&fixture("sentences").join(folder), whole.path());
    let into = whole.path().join(at);
    fs::create_dir_all(&into).unwrap();
    let files = ["config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json"];
    for file in files.into_iter().chain(["tokenizer_config.json"]) {
        fs::copy(fixture("sentence").join(file), into.join(file)).unwrap();
    }
    whole
}

fn head(folder: &Path) -> SentenceHead {
    SentenceHead::read(&Checkpoint::open(folder).unwrap()).unwrap().unwrap()
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let Some(runtime) = runtime() else { return };
    let texts: Vec<String> =
        serde_json::from_slice(&fs::read(fixture("sentences").join("texts.json")).unwrap()).unwrap();
    let torch = Outputs::open(&fixture("sentences").join("outputs.safetensors"));
    for (name, at) in [
        ("dense", ""),
        ("dense-twice", ""),
        ("dense-gelu", "0_Transformer"),
        ("dense-gates", ""),
        ("layer-norm", ""),
        ("subfolder", "0_Transformer"),
    ] {
        let folder = assemble(name, at);
        let reference = Reference::from_dir(folder.path(), model_loader::Head::SentenceEmbedding).unwrap();
        let tokens = reference.tokenizer().encode_batch(&texts).unwrap();
        let batch = TokenBatch::pad(&tokens, reference.tokenizer().pad_id());
        let expected = torch.floats(name);
        for options in variants(&Head::SentenceEmbedding(head(folder.path()))) {
            let mut judge = Judge::new(
                format!("{name}, {}, {:?}", options.precision, options.lowering),
                options.precision,
                expected.len() / texts.len(),
            );
            let mut session = session(&runtime, folder.path(), &options);
            let found = session.run(&batch, "sentence_embedding").unwrap();
            assert_eq!(found.shape, [texts.len(), expected.len() / texts.len()], "{name}");
            judge.add("together", &found.values, &expected);
        }
    }
}

#[test]
fn steps_are_read_as_they_stand() {
    let steps = |folder: &TempDir| head(folder.path()).steps;
    let twice = steps(&assemble("dense-twice", ""));
    let [
        SentenceStep::Dense { module, inputs: 32, .. },
        SentenceStep::Dense { bias: false, outputs: 10, .. },
    ] = twice.as_slice()
    else {
        panic!("{twice:?}")
    };
    assert_eq!(module, "2_Dense");
    let normal = head(assemble("layer-norm", "").path());
    assert!(normal.normalize);
    assert_eq!(normal.steps, [SentenceStep::LayerNorm { module: "2_LayerNorm".to_owned() }]);
}

#[test]
fn what_cannot_be_written_is_named() {
    let check = |row: &str, damage: &dyn Fn(&Path), code: u8, parts: &[&str]| {
        let folder = assemble("dense", "");
        damage(folder.path());
        let result = Checkpoint::open(folder.path()).and_then(|checkpoint| {
            let head = SentenceHead::read(&checkpoint)?.unwrap();
            export(
                &checkpoint,
                &ExportOptions::new(Head::SentenceEmbedding(head), onnx_export::Precision::Fp32),
            )
        });
        let Err(error) = result else { panic!("{row}: exported") };
        let text = error.to_string();
        assert_eq!(error.exit_code(), code, "{row}: {text}");
        for part in parts {
            assert!(text.contains(part), "{row}: {part:?} is not in {text}");
        }
    };
    let modules = |folder: &Path, change: &dyn Fn(&mut serde_json::Value)| {
        let path = folder.join("modules.json");
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    let dense = |folder: &Path, key: &str, value: serde_json::Value| {
        let path = folder.join("2_Dense/config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    };
    check(
        "unknown module",
        &|f| modules(f, &|all| all[2]["type"] = json!("sentence_transformers.models.LSTM")),
        6,
        &["modules.json", "LSTM", "Dense"],
    );
    check(
        "outside",
        &|f| modules(f, &|all| all[2]["path"] = json!("../2_Dense")),
        4,
        &["modules.json", "../2_Dense", "leaves"],
    );
    check(
        "no pooling",
        &|f| modules(f, &|all| drop(all.as_array_mut().unwrap().drain(1..))),
        4,
        &["Pooling"],
    );
    check(
        "out of order",
        &|f| modules(f, &|all| all.as_array_mut().unwrap().swap(1, 2)),
        4,
        &["order", "Dense"],
    );
    check(
        "only a pickle",
        &|f| {
            let (safe, pickle) = ("2_Dense/model.safetensors", "2_Dense/pytorch_model.bin");
            fs::rename(f.join(safe), f.join(pickle)).unwrap();
        },
        6,
        &["2_Dense", "pytorch_model.bin"],
    );
    check("another width", &|f| dense(f, "in_features", json!(31)), 4, &["2_Dense", "31", "32"]);
    check(
        "another function",
        &|f| dense(f, "activation_function", json!("os.system")),
        6,
        &["2_Dense", "os.system", "GELU"],
    );
    check(
        "on tokens",
        &|f| dense(f, "module_input_name", json!("token_embeddings")),
        6,
        &["token_embeddings"],
    );
    check(
        "no pooling file",
        &|f| fs::remove_file(f.join("1_Pooling/config.json")).unwrap(),
        3,
        &["1_Pooling"],
    );
}

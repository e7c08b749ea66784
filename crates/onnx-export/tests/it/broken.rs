//! Broken folders: each gets one error that names the file and, where there is one, the tensor.

use std::fs;
use std::path::Path;

use onnx_export::{Checkpoint, ExportOptions, Head, Precision, export};
use serde_json::json;
use toy_store::Kind;

use crate::support::{set_config, toy};

/// What a row does to a sound folder.
type Break = fn(&Path);

fn truncate(folder: &Path, bytes: u64) {
    let file = fs::File::options().write(true).open(folder.join("model.safetensors")).unwrap();
    file.set_len(bytes).unwrap();
}

/// Replaces the file by a header that says what it likes.
fn header(folder: &Path, text: &str, data: &[u8]) {
    let bytes = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), data].concat();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn every_kind_of_damage_is_named() {
    let check = |row: &str, damage: Break, code: u8, parts: &[&str]| {
        let folder = toy(Kind::Analyst);
        damage(folder.path());
        let options = ExportOptions::new(Head::SequenceClassification, Precision::Fp16);
        let result = Checkpoint::open(folder.path()).and_then(|checkpoint| export(&checkpoint, &options));
        let Err(error) = result else { panic!("{row}: exported") };
        let text = error.to_string();
        assert_eq!(error.exit_code(), code, "{row}: {text}");
        for part in parts {
            assert!(text.contains(part), "{row}: {part:?} is not in {text}");
        }
    };
    check("no config", |f| fs::remove_file(f.join("config.json")).unwrap(), 3, &["config.json"]);
    check("config is no JSON", |f| fs::write(f.join("config.json"), "{").unwrap(), 4, &["config.json"]);
    check("config lacks a size", |f| set_config(f, "hidden_size", json!(null)), 4, &["config.json", "null"]);
    check(
        "unknown family",
        |f| set_config(f, "model_type", json!("mamba")),
        6,
        &["\"mamba\"", "bert, roberta"],
    );
    check("no family", |f| set_config(f, "model_type", json!(null)), 6, &["\"\"", "supported"]);
    check("unknown activation", |f| set_config(f, "hidden_act", json!("snake")), 6, &["snake", "gelu"]);
    check(
        "relative positions",
        |f| set_config(f, "position_embedding_type", json!("relative_key")),
        6,
        &["relative_key"],
    );
    check("decoder", |f| set_config(f, "is_decoder", json!(true)), 6, &["is_decoder"]);
    check("heads do not divide", |f| set_config(f, "num_attention_heads", json!(7)), 4, &["multiple"]);
    check(
        "another size",
        |f| set_config(f, "intermediate_size", json!(100)),
        4,
        &["intermediate.dense", "[100, 64]"],
    );
    check(
        "one layer more",
        |f| set_config(f, "num_hidden_layers", json!(3)),
        4,
        &["encoder.layer.2.", "there is"],
    );
    check("cut in the data", |f| truncate(f, 100_000), 4, &["model.safetensors", "100000"]);
    check("cut in the header", |f| truncate(f, 100), 4, &["model.safetensors", "header"]);
    check("empty", |f| truncate(f, 0), 4, &["model.safetensors", "0 bytes"]);
    check(
        "claims a header of 4 GB",
        |f| fs::write(f.join("model.safetensors"), (4_u64 << 30).to_le_bytes()).unwrap(),
        4,
        &["model.safetensors", "4294967296"],
    );
    check("header is no JSON", |f| header(f, "nonsense", b""), 4, &["model.safetensors", "header"]);
    check(
        "tensors overlap",
        |f| {
            let tensor = |end| json!({ "dtype": "F32", "shape": [2], "data_offsets": [0, end] });
            header(f, &json!({ "a": tensor(8), "b": tensor(8) }).to_string(), &[0; 8]);
        },
        4,
        &["model.safetensors"],
    );
    check(
        "only a pickle",
        |f| fs::rename(f.join("model.safetensors"), f.join("pytorch_model.bin")).unwrap(),
        6,
        &["pytorch_model.bin", "safe_serialization"],
    );
    check("no weights", |f| fs::remove_file(f.join("model.safetensors")).unwrap(), 6, &["*.safetensors"]);
    check(
        "hostile shard",
        |f| {
            fs::remove_file(f.join("model.safetensors")).unwrap();
            let index = json!({ "weight_map": { "a": "../../etc/passwd" } });
            fs::write(f.join("model.safetensors.index.json"), index.to_string()).unwrap();
        },
        4,
        &["../../etc/passwd"],
    );
    check(
        "missing shard",
        |f| {
            fs::remove_file(f.join("model.safetensors")).unwrap();
            let index = json!({ "weight_map": { "a": "model-00001-of-00001.safetensors" } });
            fs::write(f.join("model.safetensors.index.json"), index.to_string()).unwrap();
        },
        3,
        &["model-00001-of-00001.safetensors"],
    );
}

#[test]
fn a_head_without_weights_is_refused() {
    let folder = toy(Kind::Memory);
    let options = ExportOptions::new(Head::SequenceClassification, Precision::Fp32);
    let error = export(&Checkpoint::open(folder.path()).unwrap(), &options).unwrap_err();
    assert!(error.to_string().contains("classifier.weight"), "{error}");
    assert_eq!(error.exit_code(), 6);
}

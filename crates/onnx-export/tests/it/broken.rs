//! Broken folders: each gets one error that names the file and, where there is one, the tensor.

use std::fs;
use std::path::Path;

use onnx_export::{Checkpoint, ExportOptions, Head, Precision, export};
use serde_json::json;
use toy_store::Kind;

use crate::support::{copy_of, set_config, toy};

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

/// What would change the numbers and is not computed here is refused by name; what makes no sense is an error.
#[test]
fn settings_of_every_family_are_computed_or_refused_by_name() {
    let check = |model: &str, key: &str, value: serde_json::Value, head: Head, code: u8, parts: &[&str]| {
        let row = format!("{model}, {key} {value}");
        let folder = copy_of(&[model]);
        set_config(folder.path(), key, value);
        let result = Checkpoint::open(folder.path())
            .and_then(|checkpoint| export(&checkpoint, &ExportOptions::new(head, Precision::Fp16)));
        let Err(error) = result else { panic!("{row}: exported") };
        let text = error.to_string();
        assert_eq!(error.exit_code(), code, "{row}: {text}");
        for part in parts {
            assert!(text.contains(part), "{row}: {part:?} is not in {text}");
        }
    };
    let lm = || Head::CausalLm { cache: true };
    let yarn = json!({ "rope_type": "yarn", "factor": 4.0 });
    check("lm-llama", "rope_parameters", yarn, lm(), 6, &["yarn", "llama3"]);
    let partial = json!({ "rope_theta": 1e4, "partial_rotary_factor": 0.5 });
    check("lm-llama", "rope_parameters", partial, lm(), 6, &["partial_rotary_factor 0.5"]);
    check("lm-llama", "rope_parameters", json!({ "rope_type": "linear" }), lm(), 4, &["factor"]);
    check("lm-llama", "rope_parameters", json!({ "rope_theta": -1.0 }), lm(), 4, &["rope_theta -1"]);
    let scaled =
        json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0 });
    check("lm-llama", "rope_parameters", scaled, lm(), 4, &["low_freq_factor 4"]);
    check("lm-llama", "quantization_config", json!({ "quant_method": "gptq" }), lm(), 6, &["gptq", "BF16"]);
    check("lm-llama", "hidden_act", json!("snake"), lm(), 6, &["snake"]);
    check("lm-llama", "num_key_value_heads", json!(3), lm(), 4, &["multiple", "3"]);
    check("lm-llama", "head_dim", json!(7), lm(), 4, &["size 7"]);
    check("lm-llama", "attention_bias", json!(true), lm(), 4, &["q_proj.bias"]);
    check("lm-llama", "vocab_size", json!(321), lm(), 4, &["embed_tokens", "[320, 32]"]);
    check("lm-mistral", "sliding_window", json!(0), lm(), 4, &["sliding_window"]);
    check("lm-qwen3", "layer_types", json!(["full_attention"]), lm(), 4, &["1 layers of 2"]);
    let chunked = json!(["full_attention", "chunked_attention"]);
    check("lm-qwen3", "layer_types", chunked, lm(), 6, &["chunked_attention"]);
    let sliding = json!(["full_attention", "sliding_attention"]);
    check("lm-qwen3", "layer_types", sliding, lm(), 4, &["sliding_window"]);
    check("lm-llama", "x", json!(0), Head::SequenceClassification, 6, &["sequence classification"]);
    check("lm-llama", "x", json!(0), Head::TokenClassification, 6, &["token classification"]);
    check("encoders/bert", "x", json!(0), lm(), 6, &["language model", "hidden states"]);
    check("encoders/mpnet", "x", json!(0), Head::TokenClassification, 6, &["token", "classifier.weight"]);
    let hidden = || Head::HiddenStates;
    // Numbers that no tensor confirms, and that something would be made as long as.
    let huge = json!(1_u64 << 40);
    check("lm-llama", "head_dim", huge.clone(), lm(), 4, &["head_dim", "out of range"]);
    check("lm-llama", "num_hidden_layers", huge.clone(), lm(), 4, &["num_hidden_layers", "out of range"]);
    check("encoders/albert", "num_hidden_layers", huge.clone(), hidden(), 4, &["num_hidden_layers"]);
    check("encoders/modernbert-cls", "num_hidden_layers", huge.clone(), hidden(), 4, &["num_hidden_layers"]);
    check("encoders/deberta-v2", "max_position_embeddings", huge, hidden(), 4, &["max_position_embeddings"]);
    check("encoders/albert", "num_hidden_groups", json!(2), hidden(), 6, &["2 groups", "num_hidden_groups"]);
    check("encoders/deberta-v2", "conv_kernel_size", json!(3), hidden(), 6, &["conv_kernel_size 3"]);
    check("encoders/deberta-v2", "position_buckets", json!(8), hidden(), 4, &["rel_embeddings", "[16, 32]"]);
    check(
        "encoders/modernbert-cls",
        "classifier_pooling",
        json!("max"),
        hidden(),
        6,
        &["classifier_pooling"],
    );
    check("encoders/modernbert-cls", "num_attention_heads", json!(8), hidden(), 4, &["size 3"]);
    check("encoders/modernbert-cls", "layer_types", json!([]), hidden(), 4, &["0 layers of 4"]);
    check("encoders/distilbert", "n_heads", json!(0), hidden(), 4, &["multiple"]);
}

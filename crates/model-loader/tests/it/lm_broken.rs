//! Language models that are damaged, hostile, or of a kind that is not computed here.

use std::fs;
use std::path::Path;

use model_loader::{CausalLm, LmOptions};
use model_store::exit;
use serde_json::{Value, json};

use crate::lm::model;
use crate::support::{check_error, edit_json};

#[track_caller]
fn check(row: &str, base: &str, spoil: impl FnOnce(&Path), code: u8, parts: &[&str]) {
    let folder = model(base);
    spoil(folder.path());
    let error = CausalLm::from_dir(folder.path(), &LmOptions::default()).expect_err(row);
    check_error(row, &error, code, parts);
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let refused = |row: &str, base: &str, changes: Value, parts: &[&str]| {
        let spoil = |folder: &Path| edit_json(&folder.join("config.json"), &changes);
        check(row, base, spoil, exit::REFUSED, &[&["config.json"], parts].concat());
    };
    refused("another family", "lm-llama", json!({ "model_type": "gemma3" }), &["`gemma3`", "llama, mistral"]);
    let yarn = json!({ "rope_parameters": { "rope_type": "yarn", "factor": 4.0 } });
    refused("yarn", "lm-qwen2", yarn, &["rope_type `yarn`", "default, linear, llama3"]);
    let old = json!({ "rope_parameters": null, "rope_scaling": { "type": "dynamic", "factor": 2.0 } });
    refused("dynamic", "lm-qwen2", old, &["`dynamic`"]);
    refused("an activation", "lm-llama", json!({ "hidden_act": "gelu" }), &["hidden_act `gelu`", "silu"]);
    refused("half turned", "lm-llama", json!({ "partial_rotary_factor": 0.5 }), &["partial_rotary_factor"]);
    let quantized = json!({ "quantization_config": { "quant_method": "gptq", "bits": 4 } });
    refused("quantised", "lm-llama", quantized, &["quantization_config `gptq`", "GGUF"]);
    let layers = json!({ "layer_types": ["full_attention", "chunked_attention"] });
    refused("layers", "lm-qwen3", layers, &["`chunked_attention`"]);
}

#[test]
fn configurations_without_sense_are_errors() {
    let corrupt = |row: &str, changes: Value, parts: &[&str]| {
        let spoil = |folder: &Path| edit_json(&folder.join("config.json"), &changes);
        check(row, "lm-qwen2", spoil, exit::CORRUPT, &[&["config.json"], parts].concat());
    };
    corrupt("no family", json!({ "model_type": null }), &["`model_type` is missing"]);
    corrupt(
        "no layers",
        json!({ "num_hidden_layers": 0, "layer_types": null }),
        &["`num_hidden_layers` is 0"],
    );
    corrupt("a huge vocabulary", json!({ "vocab_size": 1_u64 << 40 }), &["`vocab_size`", "out of range"]);
    corrupt("heads", json!({ "num_key_value_heads": 3 }), &["4 is not a multiple", "3"]);
    corrupt("no heads", json!({ "num_attention_heads": 0 }), &["num_attention_heads"]);
    corrupt("an odd head", json!({ "head_dim": 7 }), &["heads of width 7", "even"]);
    // It asked the allocator for terabytes, which ends a process that serves another version.
    corrupt("an endless head", json!({ "head_dim": 1_u64 << 40 }), &["heads of width 1099511627776"]);
    corrupt("an eps", json!({ "rms_norm_eps": -1.0 }), &["`rms_norm_eps` is -1"]);
    corrupt("layer types", json!({ "layer_types": ["full_attention"] }), &["1 layers of 2"]);
    let sliding = json!({ "layer_types": ["full_attention", "sliding_attention"] });
    corrupt("no window", sliding, &["sliding_window"]);
}

#[test]
fn damaged_weights_are_named_with_what_is_wrong() {
    let edit = |name: &'static str, change: fn(&mut Vec<u8>)| {
        move |folder: &Path| {
            let mut bytes = fs::read(folder.join(name)).unwrap();
            change(&mut bytes);
            fs::write(folder.join(name), bytes).unwrap();
        }
    };
    let shard = "model-00002-of-00003.safetensors";
    check(
        "a shard cut short",
        "lm-mistral",
        edit(shard, |bytes| bytes.truncate(9000)),
        exit::CORRUPT,
        &[shard],
    );
    let gone = |folder: &Path| fs::remove_file(folder.join(shard)).unwrap();
    check("a shard that is not there", "lm-mistral", gone, exit::NOT_FOUND, &[shard]);
    let nan = edit("model.safetensors", |bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    check("not a number", "lm-qwen2", nan, exit::CORRUPT, &["model.safetensors", "tensor", "holds NaN"]);
    let width = |folder: &Path| edit_json(&folder.join("config.json"), &json!({ "intermediate_size": 96 }));
    check(
        "another width",
        "lm-qwen2",
        width,
        exit::CORRUPT,
        &["model.safetensors", "mlp.gate_proj.weight", "[64, 32]", "[96, 32]"],
    );
    let untied =
        |folder: &Path| edit_json(&folder.join("config.json"), &json!({ "tie_word_embeddings": false }));
    check("untied", "lm-qwen3", untied, exit::CORRUPT, &["lm_head.weight", "is missing"]);
    let layers = |folder: &Path| edit_json(&folder.join("config.json"), &json!({ "num_hidden_layers": 3 }));
    check("more layers", "lm-llama", layers, exit::CORRUPT, &["model.layers.2", "is missing"]);
    let no_tokenizer = |folder: &Path| fs::remove_file(folder.join("tokenizer.json")).unwrap();
    check("no tokenizer", "lm-llama", no_tokenizer, exit::NOT_FOUND, &["tokenizer.json is missing"]);
}

#[test]
fn damaged_gguf_files_are_named_with_what_is_wrong() {
    let row = |row: &str, change: &dyn Fn(&mut Vec<u8>), code: u8, parts: &[&str]| {
        let spoil = |folder: &Path| {
            let path = folder.join("model.gguf");
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(path, bytes).unwrap();
        };
        check(row, "lm-gguf-llama", spoil, code, &[&["model.gguf"], parts].concat());
    };
    let damaged = |name: &str, change: &dyn Fn(&mut Vec<u8>), parts: &[&str]| {
        row(name, change, exit::CORRUPT, &[&["damaged or truncated"], parts].concat());
    };
    damaged("empty", &Vec::clear, &["0 bytes"]);
    damaged("another file", &|bytes| bytes[0] = b'X', &["`GGUF`"]);
    damaged("cut in the header", &|bytes| bytes.truncate(700), &["700 bytes"]);
    damaged(
        "cut in the tensors",
        &|bytes| bytes.truncate(40_000),
        &["40000 bytes", "ends before its tensor"],
    );
    damaged("tensors without end", &|bytes| bytes[8..16].fill(0xff), &["claims 18446744073709551615"]);
    damaged("entries without end", &|bytes| bytes[16..24].fill(0x7f), &["its header claims"]);
    let four_gb = |bytes: &mut Vec<u8>| bytes[24..32].copy_from_slice(&(4_u64 << 30).to_le_bytes());
    damaged("a text of 4 GB", &four_gb, &["claims 4294967296 for a text"]);
    row("an old version", &|bytes| bytes[4] = 1, exit::REFUSED, &["GGUF version `1`", "2, 3"]);

    let replace = |from: &'static [u8], to: &'static [u8]| {
        move |bytes: &mut Vec<u8>| {
            assert_eq!(from.len(), to.len());
            let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    };
    // The value of general.architecture is the first `llama` that follows its length.
    let arch = replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gamma");
    row("another architecture", &arch, exit::REFUSED, &["GGUF architecture `gamma`", "llama"]);
    let name = replace(b"blk.1.ffn_up.weight", b"blk.9.ffn_up.weight");
    row("a missing tensor", &name, exit::CORRUPT, &["blk.1.ffn_up.weight", "is missing"]);
    let key = replace(b"llama.feed_forward_length", b"llama.feed_backward_lengh");
    row("a missing key", &key, exit::CORRUPT, &["`llama.feed_forward_length` is missing"]);
    let nan = |bytes: &mut Vec<u8>| {
        let end = bytes.len();
        bytes[end - 40..].fill(0xff);
    };
    let spoil = |folder: &Path| {
        let path = folder.join("model.gguf");
        let mut bytes = fs::read(&path).unwrap();
        nan(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    let folder = model("lm-gguf-llama");
    spoil(folder.path());
    for precision in [model_loader::Precision::Float32, model_loader::Precision::Auto] {
        let options = LmOptions { precision, ..LmOptions::default() };
        let error = CausalLm::from_dir(folder.path(), &options).unwrap_err();
        check_error("not a number", &error, exit::CORRUPT, &["model.gguf", "tensor", "holds NaN"]);
    }

    let no_tokenizer = |folder: &Path| fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let spoil = |folder: &Path| {
        no_tokenizer(folder);
        let path = folder.join("model.gguf");
        let mut bytes = fs::read(&path).unwrap();
        replace(b"\x05\0\0\0\0\0\0\0gpt-2", b"\x05\0\0\0\0\0\0\0tekk2")(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    check(
        "a tokenizer",
        "lm-gguf-llama",
        spoil,
        exit::REFUSED,
        &["tokenizer.ggml.pre `tekk2`", "tokenizer.json"],
    );
}

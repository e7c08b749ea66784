//! A model of billions of parameters costs what its headers cost.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use onnx_export::{Checkpoint, ExportOptions, Head, Precision, export};
use serde_json::{Map, Value, json};

/// Names the folder for the child process.
const FOLDER: &str = "ONNX_EXPORT_TEST_FOLDER";
const HIDDEN: u64 = 4096;
const WIDE: u64 = 14_336;
const VOCABULARY: u64 = 128_256;
const LAYERS: u64 = 32;
/// 8 of 32 heads.
const KV: u64 = 1024;
/// What the issue allows a process that exports such a model.
const MAX_RESIDENT_BYTES: u64 = 100_000_000;

/// The tensors of Llama 3 8B, in the order of the model.
fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for (part, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV, HIDDEN]),
            ("self_attn.v_proj", vec![KV, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![WIDE, HIDDEN]),
            ("mlp.up_proj", vec![WIDE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, WIDE]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            all.push((name(part), shape));
        }
    }
    all.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    all.push(("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]));
    all
}

/// Writes the checkpoint in four shards of a header and a hole each; returns the bytes of the weights.
fn write(folder: &Path) -> u64 {
    let (tensors, mut index, mut total) = (tensors(), Map::new(), 0);
    for (number, shard) in (1..).zip(tensors.chunks(tensors.len().div_ceil(4))) {
        let file = format!("model-0000{number}-of-00004.safetensors");
        let (mut header, mut end) = (Map::new(), 0);
        for (name, shape) in shard {
            let bytes = 2 * shape.iter().product::<u64>();
            let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes] });
            header.insert(name.clone(), entry);
            index.insert(name.clone(), file.clone().into());
            end += bytes;
        }
        let text = Value::Object(header).to_string();
        let path = folder.join(&file);
        fs::write(&path, [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()).unwrap();
        let hole = 8 + text.len() as u64 + end;
        File::options().write(true).open(&path).unwrap().set_len(hole).unwrap();
        total += end;
    }
    let index = json!({ "weight_map": index }).to_string();
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "rope_theta": 500_000.0, "tie_word_embeddings": false,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    total
}

/// The peak of this process's resident memory, as the kernel counts it.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap();
    kib * 1024
}

#[test]
fn a_model_of_16_gb_exports_in_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = write(folder.path());
    assert!(bytes > 16_000_000_000, "{bytes}");
    // A process of its own: what other tests hold must not count.
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "scale::the_child_exports", "--ignored", "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let figure = |name: &str| -> u64 {
        let line = said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{said}"));
        line.trim().parse().unwrap()
    };
    assert_eq!(figure("weight bytes"), bytes);
    let peak = figure("peak bytes");
    eprintln!("16 GB in 4 shards: {} ms, peak {} MB", figure("milliseconds"), peak / 1_000_000);
    assert!(peak < MAX_RESIDENT_BYTES, "{peak} bytes resident");
}

#[test]
#[ignore = "the child process of another test"]
fn the_child_exports() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let start = Instant::now();
    let checkpoint = Checkpoint::open(folder).unwrap();
    let options = ExportOptions::new(Head::CausalLm { cache: true }, Precision::Bf16);
    let exported = export(&checkpoint, &options).unwrap();
    let took = start.elapsed();
    // Stored in what it computes in: nothing is cast.
    assert_eq!(exported.report.weight_casts, 0);
    assert!(exported.onnx.len() < 1_000_000, "{} bytes", exported.onnx.len());
    eprintln!("weight bytes {}", exported.report.weight_bytes);
    eprintln!("milliseconds {}", took.as_millis());
    eprintln!("peak bytes {}", peak_bytes());
}

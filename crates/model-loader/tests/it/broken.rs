//! Model folders that are damaged, incomplete or hostile: an error that says which file and what now, quickly.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use model_loader::{LoadError, TextClassifier};
use model_store::exit;
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};

use crate::support::{check_error, copy_of, edit_json};

/// Longer than any of these loads takes; what blocks is found by it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Loads the folder in a thread of its own, so that one that blocks is a failure and not a hang.
fn load(row: &str, folder: &Path) -> Result<(), LoadError> {
    let (sender, receiver) = mpsc::channel();
    let folder = folder.to_owned();
    std::thread::spawn(move || sender.send(TextClassifier::from_dir(folder).map(drop)));
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{row}: blocked, or panicked"))
}

fn check(row: &str, spoil: impl FnOnce(&Path), code: u8, parts: &[&str]) {
    let copy = copy_of("bert");
    spoil(copy.path());
    check_error(row, &load(row, copy.path()).expect_err(row), code, parts);
}

#[test]
fn the_fixture_itself_loads() {
    load("as it is", copy_of("bert").path()).unwrap();
}

#[test]
fn damaged_weights_are_named_with_what_is_wrong() {
    const WEIGHTS: &str = "model.safetensors";
    let row = |row: &str, change: &dyn Fn(&mut Vec<u8>), parts: &[&str]| {
        let spoil = |folder: &Path| {
            let mut bytes = fs::read(folder.join(WEIGHTS)).unwrap();
            change(&mut bytes);
            fs::write(folder.join(WEIGHTS), bytes).unwrap();
        };
        check(row, spoil, exit::CORRUPT, &[&[WEIGHTS], parts].concat());
    };
    row("cut short", &|bytes| bytes.truncate(50_000), &["damaged or truncated", "50000 bytes", "promises"]);
    row("too long", &|bytes| bytes.push(0), &["promises"]);
    row("empty", &Vec::clear, &["0 bytes, too few"]);
    row(
        "a header of 4 GB",
        &|bytes| bytes[..8].copy_from_slice(&(4_u64 << 30).to_le_bytes()),
        &["claims a header of 4294967296"],
    );
    row("a header of 2^64 - 1", &|bytes| bytes[..8].fill(0xff), &["claims a header"]);
    row("a header that is no JSON", &|bytes| bytes[8..20].fill(b'x'), &["header"]);
    row("a pickle by another name", &|bytes| *bytes = b"\x80\x02}q\x00.".repeat(40), &["header"]);
    row("not a number", &|bytes| set_last(bytes, f32::NAN), &["tensor", "holds NaN", "fetch it again"]);
    row("infinite", &|bytes| set_last(bytes, f32::INFINITY), &["tensor", "holds inf"]);
    row(
        "whole numbers",
        &|bytes| replace(bytes, br#""dtype":"F32""#, br#""dtype":"I32""#),
        &["dtype I32", "F16, BF16"],
    );
    row(
        "another name",
        &|bytes| replace(bytes, b"classifier.weight", b"klassifier.weight"),
        &["tensor `classifier.weight` is missing"],
    );
    row(
        "offsets that overlap",
        &|bytes| {
            // Of equal length, so that it is the offsets that are wrong and nothing before them.
            let at = |bytes: &[u8]| {
                let begins = br#""data_offsets":[0,"#;
                bytes.windows(begins.len()).position(|window| window == begins).unwrap() + begins.len() - 2
            };
            let first = at(bytes);
            bytes[first] = b'1';
        },
        &["header", "offset"],
    );
}

fn set_last(bytes: &mut [u8], value: f32) {
    let (_, last) = bytes.split_last_chunk_mut::<4>().unwrap();
    *last = value.to_le_bytes();
}

/// Replaces every occurrence; a longer text takes the place of the header's padding or shifts the data.
fn replace(bytes: &mut Vec<u8>, from: &[u8], to: &[u8]) {
    let mut out = Vec::new();
    let mut rest = bytes.as_slice();
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    assert!(!out.is_empty(), "nothing to replace");
    out.extend_from_slice(rest);
    *bytes = out;
}

#[test]
fn missing_files_are_named_with_the_way_to_get_them() {
    let remove = |name: &'static str| move |folder: &Path| fs::remove_file(folder.join(name)).unwrap();
    let become_pickle = |folder: &Path| {
        fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
    };
    let shard = |shard: &'static str| {
        move |folder: &Path| {
            fs::remove_file(folder.join("model.safetensors")).unwrap();
            let index = json!({ "weight_map": { "classifier.weight": shard } });
            fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
    };
    check(
        "no tokenizer",
        remove("tokenizer.json"),
        exit::NOT_FOUND,
        &["tokenizer.json is missing", "save_pretrained"],
    );
    check("no configuration", remove("config.json"), exit::NOT_FOUND, &["config.json is missing"]);
    check("no weights", remove("model.safetensors"), exit::NOT_FOUND, &["model.safetensors is missing"]);
    check(
        "a pickle only",
        become_pickle,
        exit::REFUSED,
        &["pytorch_model.bin is a pickle", "convert", "safetensors"],
    );
    check(
        "a shard that is not there",
        shard("model-9.safetensors"),
        exit::NOT_FOUND,
        &["model-9.safetensors"],
    );
    check(
        "a shard elsewhere",
        shard("../model.safetensors"),
        exit::CORRUPT,
        &["../model.safetensors", "weight_map"],
    );
    check("an absolute shard", shard("/etc/passwd"), exit::CORRUPT, &["/etc/passwd", "weight_map"]);
    let empty = tempfile::tempdir().unwrap();
    check_error(
        "no folder",
        &load("no folder", &empty.path().join("none")).unwrap_err(),
        exit::NOT_FOUND,
        &["none"],
    );
}

#[test]
fn configurations_that_make_no_sense_are_named_by_key() {
    let row = |row: &str, changes: Value, code: u8, parts: &[&str]| {
        check(row, |folder| edit_json(&folder.join("config.json"), &changes), code, parts);
    };
    let (corrupt, refused) = (exit::CORRUPT, exit::REFUSED);
    row(
        "unknown kind",
        json!({ "model_type": "mamba" }),
        refused,
        &["config.json", "model_type", "mamba", "roberta"],
    );
    row("no kind", json!({ "model_type": null }), corrupt, &["`model_type` is missing"]);
    row(
        "another width",
        json!({ "hidden_size": 64 }),
        corrupt,
        &["model.safetensors", "shape", "32]", "64]"],
    );
    row("another vocabulary", json!({ "vocab_size": 9 }), corrupt, &["word_embeddings", "shape"]);
    row("more layers", json!({ "num_hidden_layers": 3 }), corrupt, &["encoder.layer.2.", "is missing"]);
    row(
        "more labels",
        json!({ "id2label": { "0": "a", "1": "b" } }),
        corrupt,
        &["classifier.weight", "shape"],
    );
    row("labels with a gap", json!({ "id2label": { "0": "a", "2": "b" } }), corrupt, &["id2label", "`2`"]);
    row("heads that do not divide", json!({ "num_attention_heads": 5 }), corrupt, &["num_attention_heads"]);
    row("no heads", json!({ "num_attention_heads": 0 }), corrupt, &["num_attention_heads"]);
    row("a negative size", json!({ "hidden_size": -1 }), corrupt, &["config.json is not valid"]);
    row("unknown activation", json!({ "hidden_act": "mish" }), refused, &["hidden_act", "mish", "gelu"]);
    row(
        "relative positions",
        json!({ "position_embedding_type": "relative_key" }),
        refused,
        &["relative_key"],
    );
    row("a decoder", json!({ "is_decoder": true }), refused, &["is_decoder"]);

    let damaged =
        |name: &'static str| move |folder: &Path| fs::write(folder.join(name), b"{ \"a\": ").unwrap();
    check("half a configuration", damaged("config.json"), corrupt, &["config.json is not valid", "line 1"]);
    check("half a tokenizer", damaged("tokenizer.json"), corrupt, &["tokenizer.json"]);
    check(
        "half its settings",
        damaged("tokenizer_config.json"),
        corrupt,
        &["tokenizer_config.json is not valid"],
    );
}

/// A `hidden_size` or `intermediate_size` of millions reserved memory for matrices before the file was asked, and the
/// process was aborted.
#[test]
fn sizes_are_believed_only_when_the_weights_have_them() {
    let row = |row: &str, changes: Value, parts: &[&str]| {
        check(row, |folder| edit_json(&folder.join("config.json"), &changes), exit::CORRUPT, parts);
    };
    row("width", json!({ "hidden_size": 1 << 24, "num_attention_heads": 1 }), &["shape"]);
    row("inner width", json!({ "intermediate_size": 1 << 24 }), &["intermediate.dense", "shape"]);
    row("labels", json!({ "id2label": null, "num_labels": 1 << 20 }), &["classifier.weight", "shape"]);
    row("layers", json!({ "num_hidden_layers": 1 << 12 }), &["encoder.layer.2."]);
    row("beyond reason", json!({ "vocab_size": 1_u64 << 60 }), &["vocab_size", "out of range"]);
}

/// Opening a named pipe blocks until someone writes; a file without end fills the memory.
#[test]
fn what_is_no_regular_file_or_too_large_is_not_read() {
    let fifo = |name: &'static str| {
        move |folder: &Path| {
            let path = folder.join(name);
            fs::remove_file(&path).unwrap();
            mkfifoat(CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        }
    };
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        check(&format!("{name} is a pipe"), fifo(name), exit::CORRUPT, &[name, "not a regular file"]);
    }
    let endless = |name: &'static str| {
        move |folder: &Path| {
            fs::remove_file(folder.join(name)).unwrap();
            symlink("/dev/zero", folder.join(name)).unwrap();
        }
    };
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        check(&format!("{name} has no end"), endless(name), exit::CORRUPT, &[name, "not a regular file"]);
    }
    let huge = |name: &'static str| {
        move |folder: &Path| {
            File::options().write(true).open(folder.join(name)).unwrap().set_len(1 << 40).unwrap();
        }
    };
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let parts = [name, "1099511627776 bytes", "at most 67108864"];
        check(&format!("{name} of a terabyte"), huge(name), exit::CORRUPT, &parts);
    }
    check(
        "weights of a terabyte",
        huge("model.safetensors"),
        exit::CORRUPT,
        &["1099511627776 bytes", "promises"],
    );
    let folder = |path: &Path| {
        fs::remove_file(path.join("config.json")).unwrap();
        fs::create_dir(path.join("config.json")).unwrap();
    };
    check("a folder", folder, exit::CORRUPT, &["config.json", "not a regular file"]);
}

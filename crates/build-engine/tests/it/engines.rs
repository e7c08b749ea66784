//! `preflight` and `inspect`: published engines, looked at on this host.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use toy_store::Kind;

use crate::support::{Bench, shown, text};

/// A version with an engine, and the folder that the plan lies in.
pub(crate) fn published(bench: &Bench) -> PathBuf {
    let folder = bench.model(Kind::Memory);
    let output =
        bench.run(&["--agent", "memory", "--source", folder.to_str().unwrap(), "--output-version", "v1"]);
    assert!(output.status.success(), "{}", shown(&output));
    bench.root().join("memory/versions/v1/engines/tensorrt-rtx-1.7.1/sm80+-fp16")
}

pub(crate) fn has_gpu() -> bool {
    Path::new("/proc/driver/nvidia/version").exists()
}

/// Puts other bytes in the place of a file, which may be shared with another version.
pub(crate) fn replace(path: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let bytes = change(fs::read(path).unwrap());
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

pub(crate) fn flip_middle(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes
}

#[test]
fn preflight_says_what_is_in_the_way_a_line_each() {
    let Some(bench) = Bench::new() else { return };
    if has_gpu() {
        eprintln!("skipped: this is about hosts without a GPU");
        return;
    }
    let engine = published(&bench);
    let description = engine.join("engine.json");
    let check = |row: &str, parts: &[&str]| {
        let output = bench.run(&["preflight", "--agent", "memory"]);
        assert_eq!(output.status.code(), Some(7), "{row}: {}", shown(&output));
        for part in parts.iter().chain(&["no NVIDIA driver", "memory/v1"]) {
            assert!(text(&output.stdout).contains(part), "{row}: {part} is not in {}", shown(&output));
        }
    };
    check("as built", &["TensorRT-RTX 1.7.1.116", "serves on the CPU"]);
    let original = fs::read(&description).unwrap();
    let with = |key: &str, value: Value| {
        let mut changed: Value = serde_json::from_slice(&original).unwrap();
        changed[key] = value;
        replace(&description, |_| changed.to_string().into_bytes());
    };
    with("version", "1.6.0.5".into());
    check(
        "a plan of another version",
        &["TensorRT-RTX 1.6.0.5 built it, and this host has 1.7.1.116", "--rebuild"],
    );
    with("flavour", "tensorrt-enterprise".into());
    check("another flavour", &["it is for tensorrt-enterprise"]);
    with("targets", "everything".into());
    let output = bench.run(&["preflight"]);
    assert!(text(&output.stdout).contains("is no description of an engine"), "{}", shown(&output));
    replace(&description, |_| original.clone());
    replace(&engine.join("model.engine"), flip_middle);
    check("damaged", &["engine.json says", "model-store repair memory v1"]);

    let output = bench.run(&["preflight", "--agent", "memory", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["versions"][0]["engines"][0]["runs_on"], Value::Null);
    assert_eq!(report["versions"][0]["engines"][0]["obstacles"].as_array().unwrap().len(), 2);
}

#[test]
fn preflight_of_a_host_without_the_library_says_so() {
    let Some(bench) = Bench::new() else { return };
    published(&bench);
    let mut command = bench.command(&["preflight"]);
    let output = command.env("TENSORRT_RTX_LIB_DIR", "/nonexistent/lib").output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", shown(&output));
    for part in ["TensorRT-RTX 1.7.1.116 is needed", "/nonexistent/lib", "make runtimes"] {
        assert!(text(&output.stdout).contains(part), "{part} is not in {}", shown(&output));
    }
}

#[test]
fn preflight_of_what_is_not_there_says_what_is_missing() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let output = bench.run(&["--agent", "memory", "--source", folder.to_str().unwrap(), "--no-engine"]);
    assert!(output.status.success(), "{}", shown(&output));
    let check = |arguments: &[&str], code: i32, part: &str| {
        let output = bench.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", shown(&output));
        assert!(shown(&output).contains(part), "{arguments:?}: {part} is not in {}", shown(&output));
    };
    check(&["preflight"], 7, "holds no engine");
    check(&["preflight", "--agent", "memroy"], 3, "memroy");
    check(&["preflight", "--agent", "memory", "--version", "v77"], 3, "v77");
    check(&["preflight", "--version", "v1"], 2, "--agent");
    check(&["inspect"], 3, "no engine to inspect");
}

#[test]
fn inspect_says_what_an_engine_is_and_whether_it_is_sound() {
    let Some(bench) = Bench::new() else { return };
    let engine = published(&bench);
    let output = bench.run(&["inspect", "--agent", "memory"]);
    assert!(output.status.success(), "{}", shown(&output));
    for part in [
        "its header says 1.7.1.116",
        "SM 80 86 89 120 121, fp16",
        "opset 23",
        "matrix_multiply",
        "half:",
        "sound",
    ] {
        assert!(text(&output.stdout).contains(part), "{part} is not in {}", shown(&output));
    }
    let output = bench.run(&["inspect", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let inspected = &report[0]["engines"][0];
    // The counts of the file's own bytes are those that the exporter gave.
    let evidence = fs::read(bench.root().join("memory/versions/v1/evidence.json")).unwrap();
    let evidence: Value = serde_json::from_slice(&evidence).unwrap();
    for key in ["nodes", "initializers"] {
        assert_eq!(inspected["graph"][key], evidence["export"][key], "{key}");
    }
    assert!(inspected["layers"].as_array().unwrap().len() > 50);
    if !has_gpu() {
        assert!(inspected["not_inspected"].as_str().unwrap().contains("no NVIDIA driver"));
    }

    let check = |row: &str, parts: &[&str]| {
        let output = bench.run(&["inspect", "--agent", "memory"]);
        assert_eq!(output.status.code(), Some(4), "{row}: {}", shown(&output));
        for part in parts {
            assert!(text(&output.stdout).contains(part), "{row}: {part} is not in {}", shown(&output));
        }
    };
    replace(&engine.join("model.engine"), flip_middle);
    check("damaged plan", &["the plan is not the one that was built"]);
    replace(&engine.join("layers.json"), |_| b"[{".to_vec());
    check("damaged list", &["layers.json: "]);
    replace(&engine.join("../../../model.onnx"), |bytes| bytes[..100].to_vec());
    check("cut graph", &["model.onnx is not the graph that it was built from"]);
    fs::remove_file(engine.join("model.engine")).unwrap();
    check("no plan", &["the plan cannot be read"]);
}

/// Integers in a second file, which belongs to the engine: the next build starts from the model itself.
#[test]
fn weights_in_few_bits_become_engines() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let agent = "memory".parse().unwrap();
    let files = || -> Vec<String> {
        let current = bench.store().require_current(&agent).unwrap();
        current.manifest().files.iter().map(|file| file.path.to_string()).collect()
    };
    for (precision, file) in [("w8a16", "model.w8.safetensors"), ("w4a16", "model.w4.safetensors")] {
        // Whether a toy of 64 dimensions bears it is not the question here.
        let gate = ["--min-cosine", "0.5", "--mean-cosine", "0.5", "--max-abs", "9"];
        let base = ["--agent", "memory", "--source", folder.to_str().unwrap(), "--target", "89", "--json"];
        let named = ["--precision", precision, "--output-version", precision];
        let output = bench.run(&[&base[..], &gate, &named].concat());
        assert!(output.status.success(), "{precision}: {}", shown(&output));
        let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(outcome["evidence"]["packed"]["file"], file, "{precision}");
        let weights = outcome["engine"]["weights_sha256"].as_object().unwrap();
        assert_eq!(weights.keys().collect::<Vec<_>>(), ["model.safetensors", file], "{precision}");
        assert!(files().iter().any(|name| name == file), "{precision}: {:?}", files());
    }
    let output = bench.run(&["--agent", "memory", "--no-engine", "--output-version", "again"]);
    assert!(output.status.success(), "{}", shown(&output));
    assert!(files().iter().all(|name| !name.contains("model.w4")), "{:?}", files());
}

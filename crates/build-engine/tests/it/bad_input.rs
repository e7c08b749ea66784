//! Bad input: one clear message, its exit code, and nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use toy_store::Kind;

use crate::support::{Bench, shown, text};

/// Changes a model's folder for the worse.
type Break = fn(&Path);

fn keep(_: &Path) {}

#[test]
fn every_bad_input_has_its_message_and_code_and_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let check = |row: &str, damage: Break, extra: &[&str], code: i32, parts: &[&str]| {
        let folder = bench.model(Kind::Analyst);
        damage(&folder);
        let before = bench.contents();
        let mut arguments = vec!["--agent", "analyst", "--source", folder.to_str().unwrap()];
        arguments.extend(extra);
        let output = bench.run(&arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{row}: {}", shown(&output));
        assert_eq!(message.matches("error:").count(), 1, "{row}: one error, not {message}");
        for part in parts {
            assert!(message.contains(part), "{row}: {part:?} is not in {message}");
        }
        assert_eq!(bench.contents(), before, "{row}: something was left");
        fs::remove_dir_all(folder).unwrap();
    };
    check("hostile version", keep, &["--output-version", "../v1"], 2, &["../v1"]);
    check("version that ends in .tmp", keep, &["--output-version", "v1.tmp"], 2, &[".tmp"]);
    check("unknown precision", keep, &["--precision", "fp12"], 2, &["fp12", "fp32, tf32, fp16, bf16"]);
    check("8 bits without calibration", keep, &["--precision", "int8"], 2, &["--calib-data"]);
    check(
        "calibration that nothing needs",
        keep,
        &["--precision", "bf16", "--calib-data", "/dev/null"],
        2,
        &["bf16 has no use for it"],
    );
    check("data-centre target", keep, &["--target", "90"], 2, &["SM 90", "enterprise"]);
    check("falling profile", keep, &["--profile", "8,4,2x1"], 2, &["MIN ≤ OPT ≤ MAX"]);
    check("longer than the model", keep, &["--profile", "1x1,128,4096"], 2, &["4096", "512"]);
    check("no level", keep, &["--opt-level", "6"], 2, &["0..=5"]);
    check("no size", keep, &["--workspace", "lots"], 2, &["lots", "512M"]);
    check("lean runtime", keep, &["--version-compatible"], 2, &["libnvinfer_lean.so.1", "leave it out"]);
    check(
        "other hardware",
        keep,
        &["--hardware-compatible"],
        2,
        &["unsupported in TensorRT-RTX", "--target"],
    );
    check("stripped", keep, &["--strip"], 2, &["graph_jit.cpp:278", "--strip"]);
    check("a second profile too long", keep, &["--profile", "1x1,8,16", "--profile", "1x4096"], 2, &["4096"]);
    check("thresholds that are no numbers", keep, &["--max-abs", "nan"], 2, &["nan"]);
    check("a revision of a folder", keep, &["--revision", "v7"], 2, &["--revision", "--source"]);
    check(
        "a module that is not there",
        keep,
        &["--keep-fp32", "layer.99.*"],
        2,
        &["layer.99.*", "encoder.layer.0"],
    );
    check("class scores on Turing", keep, &["--target", "75"], 2, &["SM 75", "leave 75 out"]);
    check("no text in the texts", keep, &["--texts", "/dev/null"], 2, &["/dev/null holds no text"]);
    check(
        "a licence that leads out",
        |f| std::os::unix::fs::symlink("/etc/passwd", f.join("LICENSE")).unwrap(),
        &[],
        1,
        &["LICENSE", "/etc/passwd"],
    );
    check("two sources", keep, &["--model-id", "a/b"], 2, &["--model-id"]);
    check(
        "truncated weights",
        |f| fs::File::options().write(true).open(f.join("model.safetensors")).unwrap().set_len(5000).unwrap(),
        &[],
        4,
        &["model.safetensors", "5000"],
    );
    check(
        "unknown family",
        |f| {
            let path = f.join("config.json");
            let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            config["model_type"] = json!("mamba");
            fs::write(path, config.to_string()).unwrap();
        },
        &[],
        6,
        &["\"mamba\"", "bert, roberta"],
    );
    check(
        "only a pickle",
        |f| fs::rename(f.join("model.safetensors"), f.join("pytorch_model.bin")).unwrap(),
        &[],
        6,
        &["pytorch_model.bin", "never read"],
    );
    check(
        "no tokenizer",
        |f| fs::remove_file(f.join("tokenizer.json")).unwrap(),
        &[],
        3,
        &["tokenizer.json"],
    );
    check("no texts", keep, &["--texts", "/nonexistent/texts"], 3, &["/nonexistent/texts"]);
    check("impossible gate", keep, &["--max-abs", "1e-12"], 6, &["logits  max abs", "allowed"]);
}

#[test]
fn hostile_and_unknown_agents_are_refused_by_name() {
    let bench = Bench::without_runtimes();
    let store = bench.store();
    store.stage_new(&"memory".parse().unwrap(), &"v1".parse().unwrap()).unwrap().discard().unwrap();
    let check = |agent: &str, code: i32, part: &str| {
        let output = bench.run(&["--agent", agent]);
        assert_eq!(output.status.code(), Some(code), "{agent}: {}", shown(&output));
        assert!(text(&output.stderr).contains(part), "{agent}: {}", shown(&output));
    };
    check("../x", 2, "../x");
    check("", 2, "agent");
    check("versions", 2, "versions");
    check("ghost", 3, "ghost");
}

#[test]
fn a_missing_runtime_names_the_file_the_places_and_the_command() {
    let bench = Bench::without_runtimes();
    let folder = bench.model(Kind::Analyst);
    let output = bench
        .command(&["--agent", "analyst", "--source", folder.to_str().unwrap()])
        .env("MODEL_RUNTIMES", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", shown(&output));
    for part in ["libonnxruntime.so", "/nonexistent", "make runtimes", "ORT_DYLIB_PATH"] {
        assert!(text(&output.stderr).contains(part), "{part}: {}", shown(&output));
    }
}

#[test]
fn a_file_that_is_no_library_is_not_taken_for_one() {
    let bench = Bench::without_runtimes();
    let folder = bench.model(Kind::Analyst);
    let output = bench
        .command(&["--agent", "analyst", "--source", folder.to_str().unwrap()])
        .env("ORT_DYLIB_PATH", folder.join("config.json"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", shown(&output));
    assert!(text(&output.stderr).contains("config.json"), "{}", shown(&output));
}

/// A file system that is mounted read-only. Root may write where modes forbid it, so modes cannot show this.
#[test]
fn a_read_only_store_is_said_to_be_one() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Analyst);
    let store = bench.root();
    fs::create_dir_all(&store).unwrap();
    let mount = |arguments: &[&str]| {
        Command::new("mount").args(arguments).arg(&store).output().is_ok_and(|output| output.status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "ro", "tmpfs"]) {
        eprintln!("skipped: mounting a file system needs root and the mount command");
        return;
    }
    let output = bench.run(&["--agent", "analyst", "--source", folder.to_str().unwrap()]);
    Command::new("umount").arg(&store).status().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", shown(&output));
    assert!(text(&output.stderr).contains("read-only"), "{}", shown(&output));
}

//! The command, as a process.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use model_store::ModelStore;
use serde_json::Value;
use toy_store::Outcome;

fn command(store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_toy-store"));
    command.env("MODEL_STORE_ROOT", store).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn it_runs_twice_and_refuses_another_seed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("not/yet/there");
    let first = command(&root).output().unwrap();
    assert_code(&first, 0);
    let shown = text(&first.stdout);
    assert_eq!(shown.matches("published, current").count(), 3, "{shown}");
    assert!(shown.contains("news-cleaner-agent → synthesizer"), "{shown}");
    assert!(
        shown.ends_with("next: cargo run -p build-engine -- --agent analyst --precision fp16\n"),
        "{shown}"
    );

    let rows = shown.lines().filter(|line| line.contains(" MB   "));
    let checksums: Vec<&str> =
        rows.map(|row| row.split("   ").find(|cell| cell.len() == 12).unwrap()).collect();
    assert_eq!(checksums.len(), 6, "{shown}");

    let second = command(&root).arg("--json").output().unwrap();
    assert_code(&second, 0);
    let object: Value = serde_json::from_slice(&second.stdout).unwrap();
    assert_eq!(object["aliases"]["news-cleaner-agent"], "synthesizer");
    let versions = object["versions"].as_array().unwrap();
    assert_eq!(versions.len(), 6, "{object}");
    for (version, checksum) in versions.iter().zip(checksums) {
        assert_eq!(version["outcome"], "already_there", "{version}");
        assert!(version["checksum"].as_str().unwrap().starts_with(checksum), "{version}");
    }

    let other = command(&root).args(["--seed", "1"]).output().unwrap();
    assert_code(&other, 6);
    let error = text(&other.stderr);
    assert!(error.starts_with("error: refused: analyst/v1") && error.lines().count() == 1, "{error}");
}

#[test]
fn two_at_once_make_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let running = [(); 2].map(|()| command(dir.path()).spawn().unwrap());
    let outputs = running.map(|child| child.wait_with_output().unwrap());
    for output in &outputs {
        let code = output.status.code();
        assert!(code == Some(0) || code == Some(5), "{code:?}: {}", text(&output.stderr));
    }
    assert!(outputs.iter().any(|output| output.status.success()));
    let store = ModelStore::open(dir.path()).unwrap();
    let rows = toy_store::publish(&store, toy_store::DEFAULT_SEED).unwrap();
    let there = rows.iter().filter(|row| row.outcome == Outcome::AlreadyThere).count();
    assert!(there == 6, "{rows:?}");
}

#[test]
fn bad_arguments_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    for (arguments, wanted) in
        [(&["--seed", "many"][..], "--seed"), (&["extra"], "extra"), (&["--store"], "--store")]
    {
        let output = command(&root).args(arguments).output().unwrap();
        assert_code(&output, 2);
        assert!(text(&output.stderr).contains(wanted), "{arguments:?}: {}", text(&output.stderr));
        assert!(!root.exists(), "{arguments:?}");
    }
}

#[test]
fn a_store_that_cannot_be_made_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let output = command(&file).output().unwrap();
    let error = text(&output.stderr);
    assert!(!output.status.success() && error.contains(file.to_str().unwrap()), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

//! The example `synthesizer` as an operator runs it: a process on a toy store.

use std::io::{BufRead as _, Write as _};
use std::process::{Command, Output, Stdio};

use model_store::{ModelStore, exit};
use tempfile::TempDir;

fn store() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = ModelStore::create(dir.path().join("store")).unwrap();
    toy_store::publish(&store, toy_store::DEFAULT_SEED).unwrap();
    dir
}

fn command(dir: &TempDir, arguments: &[&str]) -> Command {
    // Cargo builds the examples beside the tests.
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let program = profile.join("examples/synthesizer");
    assert!(
        program.exists(),
        "{} is built by `cargo test`, not by `cargo test --test it`",
        program.display()
    );
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("MODEL_STORE_ROOT", dir.path().join("store"))
        .env("HF_HUB_CACHE", dir.path().join("hub"))
        .env_remove("STRICT_MODEL_STORE")
        .env_remove("AGENT_MODEL_MAP")
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(dir: &TempDir, arguments: &[&str], input: &str) -> Output {
    let mut child = command(dir, arguments).spawn().unwrap();
    // A process that ends early closes the pipe, which is its right.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_story_comes_from_an_argument_or_from_the_standard_input() {
    let dir = store();
    let agent = ["--agent", "synthesizer"];
    let tell = |more: &[&str], input: &str| {
        let output = run(&dir, &[&agent, more].concat(), input);
        assert!(output.status.success(), "{more:?}: {}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{more:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let story = tell(&["Write about weather."], "");
    assert!(story.split_whitespace().count() > 3 && story.ends_with(".\n"), "{story}");
    assert_eq!(tell(&[], "Write about weather.\n"), story);
    assert_eq!(tell(&[], "Write about weather.\nWrite about weather.\n"), story.repeat(2));
    assert_eq!(tell(&["--whole"], "Write about weather."), story);
    let warm = ["--temperature", "1.0", "--seed"];
    let drawn = |seed: &str| tell(&[&warm[..], &[seed, "Write about weather."]].concat(), "");
    assert_eq!(drawn("5"), drawn("5"));
    assert_ne!([drawn("5"), drawn("6")], [story.clone(), story.clone()]);
    let word = story.split(' ').nth(2).unwrap();
    let stopped = tell(&["--stop", word, "Write about weather."], "");
    assert_eq!(stopped.trim_end_matches('\n'), &story[..story.find(word).unwrap()]);
    assert_eq!(tell(&["--raw", "--max-tokens", "1", "The ships"], "").lines().count(), 1);
}

/// A process that is asked twice, and between the two `current` moves: no restart, and it says who answers.
#[test]
fn the_next_prompt_is_answered_by_what_is_current_then() {
    let dir = store();
    let store = ModelStore::open(dir.path().join("store")).unwrap();
    let agent = "synthesizer".parse().unwrap();
    let mut child = command(&dir, &["--agent", "synthesizer", "--verbose"]).spawn().unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut stories = std::io::BufReader::new(output).lines();
    let mut errors = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said =
        |wanted: &str| errors.by_ref().map(Result::unwrap).find(|line| line.contains(wanted)).unwrap();
    said("synthesizer/v2");
    writeln!(input, "Write about weather.").unwrap();
    stories.next().unwrap().unwrap();
    store.rollback(&agent, None, &model_store::MoveOptions::default()).unwrap();
    said("note: synthesizer/v1 answers now (before: synthesizer/v2)");
    writeln!(input, "Write about weather.").unwrap();
    assert!(!stories.next().unwrap().unwrap().is_empty());
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn mistakes_are_one_clear_line_and_a_code() {
    let dir = store();
    let check = |arguments: &[&str], code: u8, parts: &[&str]| {
        let output = run(&dir, arguments, "x");
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(i32::from(code)), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{arguments:?}: no `{part}` in: {said}");
        }
    };
    let agent = "--agent";
    check(&[], exit::USAGE, &["--agent", "--help"]);
    check(&[agent, "nobody"], exit::NOT_FOUND, &["`nobody`"]);
    check(&[agent, "memory"], exit::REFUSED, &["model_type `bert`", "llama"]);
    check(&[agent, "synthesizer", "--seed", "x"], exit::USAGE, &["--seed", "`x`"]);
    check(&[agent, "synthesizer", "--top-p", "3"], exit::USAGE, &["`top_p`", "3"]);
    check(&[agent, "synthesizer", "--device", "tpu"], exit::USAGE, &["`tpu`", "cuda"]);
    check(&[agent, "synthesizer", "--precision", "int8"], exit::USAGE, &["`int8`", "float16"]);
    check(
        &[agent, "synthesizer", "--adapter", "/no/such"],
        exit::NOT_FOUND,
        &["/no/such/adapter_config.json"],
    );
}

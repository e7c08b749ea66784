//! The examples as an operator runs them: processes on a toy store.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use model_loader::{ResolveOptions, SentenceEmbedder};
use model_store::{AgentName, FinalizeOptions, ModelStore, MoveOptions, exit};
use serde_json::Value;
use tempfile::TempDir;

use crate::shelf::{Shelf, wait_until};

struct Desk {
    dir: TempDir,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ModelStore::create(dir.path().join("store")).unwrap();
        toy_store::publish(&store, toy_store::DEFAULT_SEED).unwrap();
        Self { dir }
    }

    /// Without a store.
    fn bare() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// An environment of its own: this store, no Hub cache, no settings of whoever runs the tests.
    fn command(&self, program: PathBuf, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("MODEL_STORE_ROOT", self.store())
            .env("HF_HUB_CACHE", self.dir.path().join("hub"));
        for name in [
            "STRICT_MODEL_STORE",
            "MODEL_STORE_VERIFY",
            "MODEL_STORE_DRY_RUN",
            "MODEL_STORE_SIGNATURES",
            "AGENT_MODEL_MAP",
            "RUST_BACKTRACE",
        ] {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, name: &str, arguments: &[&str], input: &str) -> Output {
        finish(self.command(example(name), arguments).spawn().unwrap(), input.as_bytes())
    }
}

/// Cargo builds the examples beside the tests.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{} is built by `cargo test`, not by `cargo test --test it`", path.display());
    path
}

fn finish(mut child: Child, input: &[u8]) -> Output {
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A process that ends early closes the pipe, which is its right.
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    let _ = writer.join().unwrap();
    output
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn lines_of_json(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{:?}: {}", output.status, stderr(output));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn memory_answers_each_line_with_its_vector_in_order() {
    let desk = Desk::new();
    let options = ResolveOptions { store: Some(desk.store()), ..ResolveOptions::default() };
    let embedder = SentenceEmbedder::load("memory", &options).unwrap();
    let texts: Vec<String> = (0..300)
        .map(|i| format!("Ships wait for the wind{}", " to fall".repeat(i % 7)))
        .chain([String::new()])
        .collect();
    let expected = embedder.embed(&texts).unwrap();
    let output = desk.run("memory", &["--agent", "memory"], &format!("{}\r\n\n", texts[..300].join("\n")));
    let vectors: Vec<Vec<f32>> =
        lines_of_json(&output).into_iter().map(|line| serde_json::from_value(line).unwrap()).collect();
    assert_eq!(vectors.len(), texts.len(), "a line for each line, the empty one too");
    assert_eq!(vectors[0].len(), embedder.dimension());
    let difference = crate::support::max_abs(&vectors, &expected);
    assert!(difference <= 1e-5, "{difference:e}");
    assert_ne!(vectors[0], vectors[1], "the order can be told");
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn analyst_gives_the_obvious_labels() {
    let desk = Desk::new();
    let texts = "Profits rose sharply and investors cheered.\nThe committee meets on Tuesday.";
    let answers = lines_of_json(&desk.run("analyst", &["--agent", "analyst", "--json"], texts));
    let labels: Vec<_> = answers.iter().map(|answer| answer["label"].as_str().unwrap()).collect();
    assert_eq!(labels, ["positive", "neutral"]);
    for (answer, text) in answers.iter().zip(texts.lines()) {
        let scores = answer["scores"].as_object().unwrap();
        let total: f64 = scores.values().map(|score| score.as_f64().unwrap()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{answer}");
        assert_eq!(scores.keys().collect::<Vec<_>>(), ["negative", "neutral", "positive"]);
        assert_eq!(answer["score"], scores[answer["label"].as_str().unwrap()]);
        assert_eq!((&answer["text"], &answer["by"]), (&text.into(), &"analyst/v2".into()));
    }
    let plain = desk.run("analyst", &["--agent", "analyst"], texts);
    let plain = String::from_utf8(plain.stdout).unwrap();
    assert!(plain.starts_with("positive  0.") && plain.contains("\nneutral   0."), "{plain}");
    let neutral = desk.run("analyst", &["--agent", "analyst", "--only", "neutral"], texts);
    assert_eq!(String::from_utf8(neutral.stdout).unwrap(), plain[plain.find("neutral").unwrap()..]);
    let unknown = desk.run("analyst", &["--agent", "analyst", "--only", "happy"], texts);
    assert_eq!(unknown.status.code(), Some(i32::from(exit::USAGE)));
    assert!(stderr(&unknown).contains("negative, neutral, positive"), "{}", stderr(&unknown));
}

#[test]
fn memory_finds_the_nearest_documents() {
    let desk = Desk::new();
    let documents = desk.dir.path().join("documents");
    let lines = [
        "Ships in the canal wait for the wind to fall.",
        "",
        "Profits rose sharply.",
        "The committee meets on Tuesday.",
    ];
    fs::write(&documents, lines.join("\n")).unwrap();
    let documents = documents.to_str().unwrap();
    let arguments = ["--agent", "memory", "--documents", documents, "--top", "2", "--json"];
    let answers = lines_of_json(&desk.run(
        "memory",
        &arguments,
        "Profits rose sharply.\nShips in the canal wait for the wind to fall.\n",
    ));
    let hits = |answer: usize| answers[answer]["hits"].as_array().unwrap().clone();
    for (answer, line) in [(0, 3), (1, 1)] {
        assert_eq!(hits(answer).len(), 2);
        assert_eq!(
            (&hits(answer)[0]["line"], &hits(answer)[0]["document"]),
            (&line.into(), &lines[line - 1].into())
        );
        assert!(hits(answer)[0]["score"].as_f64().unwrap() > 0.9999, "{}", answers[answer]);
        assert!(hits(answer)[0]["score"].as_f64() >= hits(answer)[1]["score"].as_f64());
        assert_eq!(answers[answer]["by"], "memory/v2");
    }
    let missing = desk.run("memory", &["--agent", "memory", "--documents", "/nonexistent/file"], "");
    assert_eq!(missing.status.code(), Some(i32::from(exit::NOT_FOUND)));
    assert!(stderr(&missing).contains("/nonexistent/file"), "{}", stderr(&missing));
}

/// The agents follow `current`: the next lines are answered by the new version, without a restart, and a version that
/// cannot serve changes nothing.
#[test]
fn the_next_line_is_answered_by_the_new_version() {
    let desk = Desk::new();
    let store = ModelStore::open(desk.store()).unwrap();
    let documents = desk.dir.path().join("documents");
    fs::write(&documents, "Profits rose sharply.\nShips wait.\n").unwrap();
    let search = ["--documents", documents.to_str().unwrap()];
    for (agent, more) in [("analyst", &[][..]), ("memory", &search[..])] {
        let name: AgentName = agent.parse().unwrap();
        let activate = |version: &str| {
            store.activate(&name, &version.parse().unwrap(), &MoveOptions::default()).unwrap();
        };
        activate("v1");
        let arguments = [&["--agent", agent, "--json", "--interval", "20"], more].concat();
        let mut child = desk.command(example(agent), &arguments).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut ask = || {
            writeln!(stdin, "Profits rose sharply.").unwrap();
            let mut answer = String::new();
            stdout.read_line(&mut answer).unwrap();
            serde_json::from_str::<Value>(&answer).unwrap()
        };
        let first = ask();
        assert_eq!(first["by"], format!("{agent}/v1"));
        activate("v2");
        let mut second = ask();
        wait_until("v2 answers", || {
            second = ask();
            second["by"] == format!("{agent}/v2")
        });
        assert_ne!(
            (&first["scores"], &first["hits"]),
            (&second["scores"], &second["hits"]),
            "{agent}: other numbers"
        );
        // The weights of another agent's kind of model do not load.
        let synthesizer =
            store.get_version(&"synthesizer".parse().unwrap(), &"v2".parse().unwrap()).unwrap().unwrap();
        let staging = store.stage_new(&name, &"v3".parse().unwrap()).unwrap();
        for file in &synthesizer.manifest().files {
            staging.share(&synthesizer, &file.path).unwrap();
        }
        staging.finalize(FinalizeOptions::default()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(ask()["by"], format!("{agent}/v2"), "{agent}: v3 is refused");
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let said = stderr(&output);
        let expected =
            [format!("note: {agent}/v2 answers now (before: {agent}/v1)"), "warning: refused: ".to_owned()];
        assert_eq!(said.lines().count(), 2, "{agent}: {said}");
        for (line, expected) in said.lines().zip(expected) {
            assert!(line.starts_with(&expected), "{agent}: no `{expected}` in: {said}");
        }
    }
}

#[test]
fn verbose_says_what_was_loaded_from_where() {
    let desk = Desk::new();
    let output = desk.run("analyst", &["--agent", "analyst", "--verbose"], "Profits rose.\n");
    let said = stderr(&output);
    assert_eq!(said.lines().count(), 1, "once: {said}");
    let path = desk.store().join("analyst/versions/v2");
    for part in ["info: model loaded agent=analyst source=store version=v2 checksum=", path.to_str().unwrap()]
    {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
}

/// What fifty reloads cost an agent's process: the memory of replaced models goes back to the system.
#[test]
fn fifty_reloads_do_not_grow_the_process() {
    const RELOADS: usize = 50;
    let shelf = Shelf::new();
    let folders = [1.0, -3.0].map(crate::shelf::large_embedder);
    let model_kib = fs::metadata(folders[0].path().join("model.safetensors")).unwrap().len() / 1024;
    for (version, folder) in ["a", "b"].iter().zip(&folders) {
        shelf.publish("memory", version, folder.path());
    }
    let arguments =
        ["--agent", "memory", "--json", "--interval", "20", "--store", shelf.store.root().to_str().unwrap()];
    let mut child = Desk::bare().command(example("memory"), &arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut ask = || {
        writeln!(stdin, "ships wait for the wind").unwrap();
        let mut answer = String::new();
        stdout.read_line(&mut answer).unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()["by"].as_str().unwrap().to_owned()
    };
    let mut resident = Vec::new();
    for reload in 0..RELOADS {
        let version = ["memory/a", "memory/b"][reload % 2];
        shelf.activate("memory", &version[7..]);
        wait_until(version, || ask() == version);
        // The old one goes within a look or two.
        std::thread::sleep(Duration::from_millis(60));
        resident.push(resident_kib(child.id()));
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    eprintln!("resident KiB over {RELOADS} reloads of a model of {model_kib} KiB: {resident:?}");
    // The allocator may keep the blocks of one model for the next.
    let (first, last) = (resident[0], resident[RELOADS - 5..].iter().max().unwrap());
    let allowed = first + model_kib + model_kib / 2;
    assert!(*last <= allowed, "it grew from {first} to {last} KiB, by more than a model of {model_kib} KiB");
}

/// What of a process is in memory.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Whoever types a line gets its answer before the next one.
#[test]
fn a_line_is_answered_while_the_input_is_open() {
    let desk = Desk::new();
    let mut child = desk.command(example("analyst"), &["--agent", "analyst", "--json"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    for text in ["Profits rose sharply.", "The committee meets on Tuesday."] {
        writeln!(stdin, "{text}").unwrap();
        let mut answer = String::new();
        stdout.read_line(&mut answer).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["text"], text);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let desk = Desk::new();
    for (name, agent) in [("memory", "memory"), ("analyst", "analyst")] {
        let mut child = desk.command(example(name), &["--agent", agent]).spawn().unwrap();
        drop(child.stdout.take());
        let output = finish(child, "Profits rose sharply.\n".repeat(2000).as_bytes());
        assert!(output.status.success(), "{name}: {:?} {}", output.status, stderr(&output));
        assert!(output.stderr.is_empty(), "{name}: {}", stderr(&output));
    }
}

#[test]
fn mistakes_are_one_clear_line_and_a_code() {
    let desk = Desk::new();
    let store = desk.store();
    let store = store.to_str().unwrap();
    let check = |row: &str, arguments: &[&str], input: &[u8], strict: bool, code: u8, parts: &[&str]| {
        for name in ["memory", "analyst"] {
            let mut command = desk.command(example(name), arguments);
            if strict {
                command.env("STRICT_MODEL_STORE", "1");
            }
            let output = finish(command.spawn().unwrap(), input);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(i32::from(code)), "{name}, {row}: {said}");
            assert!(output.stdout.is_empty(), "{name}, {row}");
            assert_eq!(said.lines().count(), 1, "{name}, {row}: {said}");
            assert!(said.starts_with("error: "), "{name}, {row}: {said}");
            for part in parts {
                assert!(said.contains(part), "{name}, {row}: no `{part}` in: {said}");
            }
        }
    };
    let no_one = ["--agent", "nobody"];
    check("unknown agent", &no_one, b"", false, exit::NOT_FOUND, &["`nobody`", store, "model-store publish"]);
    check("unknown, strict", &no_one, b"", true, exit::REFUSED, &["`nobody`", store, "STRICT_MODEL_STORE"]);
    let version = ["--agent", "analyst", "--version", "v9"];
    check("unknown version", &version, b"", false, exit::NOT_FOUND, &["`analyst`", "`v9`"]);
    check(
        "no store",
        &["--agent", "analyst", "--store", "/nonexistent/store"],
        b"",
        false,
        exit::NOT_FOUND,
        &["/nonexistent/store"],
    );
    check(
        "hostile agent",
        &["--agent", "../analyst"],
        b"",
        false,
        exit::USAGE,
        &["../analyst", "not a valid"],
    );
    check(
        "a language model",
        &["--agent", "synthesizer"],
        b"",
        false,
        exit::REFUSED,
        &["model_type", "llama"],
    );
    check("no agent", &[], b"", false, exit::USAGE, &["--agent", "--help"]);
    check("no value", &["--agent"], b"", false, exit::USAGE, &["--agent wants a value"]);
    check("unknown flag", &["--agnet", "memory"], b"", false, exit::USAGE, &["--agnet", "--help"]);
}

#[test]
fn input_that_is_no_text_is_an_error_and_not_a_panic() {
    let desk = Desk::new();
    let child = desk.command(example("analyst"), &["--agent", "analyst"]).spawn().unwrap();
    let output = finish(child, b"\xff\xfe\x00\n");
    assert_eq!(output.status.code(), Some(i32::from(exit::FAILURE)));
    assert!(stderr(&output).contains("UTF-8"), "{}", stderr(&output));
}

/// With `STRICT_MODEL_STORE` no connection is tried, whether the store serves the agent or not.
#[test]
fn strictly_nothing_is_asked_of_a_network() {
    let desk = Desk::new();
    let log = desk.dir.path().join("trace");
    let strace = |program: &str| {
        let arguments = ["-f", "-e", "trace=execve,socket,connect", "-o", log.to_str().unwrap(), program];
        desk.command("strace".into(), &arguments)
    };
    match strace("true").output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => return eprintln!("skipped: strace may not trace here: {}", stderr(&output)),
        Err(error) => return eprintln!("skipped: no strace on this machine: {error}"),
    }
    let check = |program: &str, agent: &str, code: u8| {
        let mut command = strace(example(program).to_str().unwrap());
        command.args(["--agent", agent]).env("STRICT_MODEL_STORE", "1");
        let output = finish(command.spawn().unwrap(), b"Ships wait.\n");
        assert_eq!(output.status.code(), Some(i32::from(code)), "{agent}: {}", stderr(&output));
        let trace = fs::read_to_string(&log).unwrap();
        assert!(
            trace.contains("execve(") && trace.contains("exited with"),
            "{agent}: the trace is of the example"
        );
        let calls: Vec<_> =
            trace.lines().filter(|line| line.contains("socket(") || line.contains("connect(")).collect();
        assert!(calls.is_empty(), "{agent}: {calls:?}");
    };
    for program in ["memory", "analyst", "synthesizer"] {
        check(program, program, exit::OK);
        check(program, "nobody", exit::REFUSED);
    }
}

//! `--model-id` from a Hub: a real server beside the command.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hub_server::faults::{Fault, What};
use hub_server::{Config, Rules, Server};
use serde_json::Value;
use toy_store::{Kind, ToyVersion};

use crate::support::{Bench, shown, text};

const TOKEN: &str = "hf_of_the_test";
const MODEL: [&str; 4] = ["--agent", "analyst", "--model-id", "news/sentiment"];

/// A Hub with one open, one private and one gated model.
struct Hub {
    server: Server,
    folder: tempfile::TempDir,
}

impl Hub {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["sentiment", "secret", "gated"] {
            let model = folder.path().join("news").join(name);
            toy_store::folder(Kind::Analyst, toy_store::DEFAULT_SEED, ToyVersion::V1)
                .write_to(&model)
                .unwrap();
        }
        let rules: Rules = serde_json::from_value(serde_json::json!({
            "tokens": {TOKEN: ["news/secret"]},
            "private": ["news/secret"],
            "gated": ["news/gated"],
        }))
        .unwrap();
        let server =
            Server::start(Config { folders: vec![folder.path().to_owned()], rules, ..Config::default() })
                .unwrap();
        Self { server, folder }
    }

    fn command(&self, bench: &Bench, arguments: &[&str]) -> Command {
        let mut command = bench.command(arguments);
        command.env("HF_ENDPOINT", self.server.url()).env("HF_HUB_OFFLINE", "0");
        command
    }
}

#[test]
fn a_model_of_the_hub_is_fetched_built_and_named_in_the_evidence() {
    let Some(bench) = Bench::new() else { return };
    let hub = Hub::new();
    let mut arguments = MODEL.to_vec();
    arguments.extend(["--no-engine", "--output-version", "v1", "--json"]);
    let output = hub.command(&bench, &arguments).output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    let source = &outcome["evidence"]["source"];
    assert_eq!((&source["model_id"], &source["revision"]), (&"news/sentiment".into(), &"main".into()));
    let commit = source["commit"].as_str().unwrap();
    let snapshot = bench.cache().join("models--news--sentiment/snapshots").join(commit);
    let weights = fs::read(hub.folder.path().join("news/sentiment/model.safetensors")).unwrap();
    assert!(fs::read(snapshot.join("model.safetensors")).unwrap() == weights);
    let current = bench.store().require_current(&"analyst".parse().unwrap()).unwrap();
    // What is published is bytes, not links into a cache that somebody may clear.
    assert!(current.manifest().links.is_empty());
    assert!(fs::read(current.path().join("model.safetensors")).unwrap() == weights);

    // It is here now: offline, and from a Hub that is down, the same is built.
    let mut arguments = MODEL.to_vec();
    arguments.extend(["--no-engine", "--no-activate", "--output-version", "v2"]);
    let output = bench.run(&arguments);
    assert!(output.status.success(), "{}", shown(&output));
    // A default name is of the second, and both may be built within one.
    *arguments.last_mut().unwrap() = "v3";
    let output = hub.command(&bench, &arguments).env("HF_ENDPOINT", "http://127.0.0.1:1").output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    assert!(text(&output.stderr).contains("a newer one may be out"), "{}", shown(&output));
}

/// What a plan was made from is said, whichever way it was asked for.
#[test]
fn a_roster_of_a_hub_that_is_down_says_so() {
    let Some(bench) = Bench::new() else { return };
    let hub = Hub::new();
    let mut arguments = MODEL.to_vec();
    arguments.extend(["--no-engine", "--output-version", "v1"]);
    assert!(hub.command(&bench, &arguments).output().unwrap().status.success());
    let map = bench.root().with_file_name("map.json");
    let text_of_map = r#"{ "base_models": { "m": { "hf_id": "news/sentiment" } }, "agents": { "analyst": [ { "base_ref": "m" } ] } }"#;
    fs::write(&map, text_of_map).unwrap();
    let run = |endpoint: &str| {
        let mut command = hub.command(&bench, &["--all", "--no-engine", "--dry-run"]);
        command.env("AGENT_MODEL_MAP", &map).env("HF_ENDPOINT", endpoint).output().unwrap()
    };
    let reached = run(hub.server.url());
    assert!(reached.status.success() && text(&reached.stderr).is_empty(), "{}", shown(&reached));
    let down = run("http://127.0.0.1:1");
    assert!(down.status.success(), "{}", shown(&down));
    assert!(text(&down.stderr).contains("a newer one may be out"), "{}", shown(&down));
    assert!(text(&down.stdout).contains("up to date"), "{}", shown(&down));
}

/// The graph of a repository is fetched when it is asked for, and told of when it is not.
#[test]
fn the_graph_of_a_repository_is_taken_when_asked_for() {
    let Some(bench) = Bench::new() else { return };
    bench.store();
    let hub = Hub::new();
    // A model without safetensors, of nobody's family, as many are that other tools exported.
    let model = hub.folder.path().join("news/exported");
    toy_store::folder(Kind::Analyst, toy_store::DEFAULT_SEED, ToyVersion::V1).write_to(&model).unwrap();
    let (onnx, data) = crate::graphs::foreign_beside(&model, "model.onnx_data");
    fs::remove_file(model.join("model.safetensors")).unwrap();
    fs::create_dir(model.join("onnx")).unwrap();
    fs::write(model.join("onnx/model.onnx"), &onnx).unwrap();
    fs::write(model.join("onnx/model.onnx_data"), &data).unwrap();
    let folders = vec![hub.folder.path().to_owned()];
    let server = Server::start(Config { folders, ..Config::default() }).unwrap();
    let run = |extra: &[&str]| {
        let base = ["--agent", "analyst", "--model-id", "news/exported", "--no-engine"];
        let mut command = bench.command(&[&base[..], extra].concat());
        command.env("HF_ENDPOINT", server.url()).env("HF_HUB_OFFLINE", "0").output().unwrap()
    };
    let without = run(&[]);
    assert_eq!(without.status.code(), Some(3), "{}", shown(&without));
    for part in ["onnx/model.onnx", "next: it has an ONNX graph of its own: --use-repo-onnx"] {
        assert!(text(&without.stderr).contains(part), "{part}: {}", shown(&without));
    }
    let planned = run(&["--use-repo-onnx", "--dry-run"]);
    assert!(text(&planned.stdout).contains("onnx/model.onnx_data"), "{}", shown(&planned));
    let built = run(&["--use-repo-onnx", "--output-version", "v1"]);
    assert!(built.status.success(), "{}", shown(&built));
    let current = bench.store().require_current(&"analyst".parse().unwrap()).unwrap();
    assert!(fs::read(current.path().join("model.onnx")).unwrap() == onnx);
    assert!(fs::read(current.path().join("model.onnx_data")).unwrap() == data);
    assert!(current.manifest().links.is_empty(), "bytes, not links into a cache");
    assert_eq!(current.manifest().metadata["source"]["model_id"], "news/exported");
    assert_eq!(current.manifest().metadata["graph"]["given"], "onnx/model.onnx");
}

#[test]
fn a_dry_run_downloads_nothing() {
    let bench = Bench::without_runtimes();
    bench.store();
    let hub = Hub::new();
    let mut arguments = MODEL.to_vec();
    arguments.push("--dry-run");
    let output = hub.command(&bench, &arguments).output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    for part in ["nothing was downloaded", "news/sentiment at main", "model.safetensors"] {
        assert!(text(&output.stdout).contains(part), "{part:?}: {}", shown(&output));
    }
    assert!(!bench.cache().exists());
    arguments.push("--json");
    let output = hub.command(&bench, &arguments).output().unwrap();
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(plan["fetch"]["missing_bytes"].as_u64().unwrap() > 1000, "{plan}");
    assert_eq!(plan["fetch"]["files"][0]["is_here"], false);
}

#[test]
fn what_the_hub_refuses() {
    let bench = Bench::without_runtimes();
    let hub = Hub::new();
    let check = |model: &str, more: &[(&str, &str)], code: i32, says: &str| {
        let arguments = ["--agent", "analyst", "--model-id", model];
        let output = hub.command(&bench, &arguments).envs(more.iter().copied()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{model}: {}", shown(&output));
        assert!(text(&output.stderr).contains(says), "{model}: {}", shown(&output));
        assert!(!shown(&output).contains("hf_of"), "{model}: {}", shown(&output));
        assert!(!bench.root().exists(), "{model}: nothing is made for what cannot be had");
    };
    check("news/none", &[], 3, "has no model news/none, or it is private");
    check("news/secret", &[], 3, "set HF_TOKEN");
    check("news/gated", &[("HF_TOKEN", TOKEN)], 6, "accept its terms at");
    check("news/sentiment", &[("HF_TOKEN", "hf_of_nobody")], 6, "does not know the token");
    check(
        "news/sentiment",
        &[("HF_ENDPOINT", "http://127.0.0.1:1"), ("HF_HUB_ETAG_TIMEOUT", "1")],
        8,
        "cannot reach",
    );
    check("news/sentiment", &[("HF_ENDPOINT", "mirror")], 2, "HF_ENDPOINT cannot be used");
    check("news", &[("HF_HUB_OFFLINE", "1")], 3, "HF_HUB_OFFLINE is set");
}

#[test]
fn ctrl_c_leaves_a_part_that_the_next_run_goes_on_from() {
    let bench = Bench::without_runtimes();
    let hub = Hub::new();
    let what = What::Silence(20_000);
    hub.server.faults().set(vec![Fault { on: "model.safetensors".to_owned(), times: 1, what }]);
    let mut command = hub.command(&bench, &MODEL);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let blobs = bench.cache().join("models--news--sentiment/blobs");
    let started = Instant::now();
    let part = || -> Option<PathBuf> {
        let mut entries = blobs.read_dir().ok()?.flatten().map(|entry| entry.path());
        entries.find(|path| {
            path.extension().is_some_and(|ending| ending == "incomplete")
                && path.metadata().is_ok_and(|part| part.len() == 20_000)
        })
    };
    while part().is_none() {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(10));
    }
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", shown(&output));
    assert!(text(&output.stderr).contains("what was downloaded is kept"), "{}", shown(&output));
    assert!(!bench.root().exists());

    hub.server.faults().set(Vec::new());
    let mut arguments = MODEL.to_vec();
    arguments.push("--no-engine");
    hub.command(&bench, &arguments).output().unwrap();
    let seen = hub.server.faults().seen();
    let range = seen.iter().find(|request| request.path.contains("model.safetensors")).unwrap().range.clone();
    assert_eq!(range.as_deref(), Some("bytes=20000-"));
}

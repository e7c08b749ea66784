//! The main job, from a toy store or a folder to a published engine.

use std::fs;
use std::process::Command;

use serde_json::Value;
use toy_store::Kind;

use crate::support::{Bench, shown, text};

#[test]
fn the_agents_own_model_becomes_a_published_engine() {
    let Some(bench) = Bench::new() else { return };
    let store = bench.store();
    toy_store::publish(&store, toy_store::DEFAULT_SEED).unwrap();
    let output =
        bench.run(&["--agent", "analyst", "--precision", "fp16", "--output-version", "v3", "--json"]);
    assert!(output.status.success(), "{}", shown(&output));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();

    let agent = "analyst".parse().unwrap();
    let current = store.require_current(&agent).unwrap();
    assert_eq!(current.version().as_str(), "v3");
    assert!(store.verify(&agent, current.version()).unwrap().is_ok());

    // The plan is one of TensorRT-RTX: its serialised form begins with this word.
    let path = outcome["plan"].as_str().unwrap();
    assert!(path.ends_with("versions/v3/engines/tensorrt-rtx-1.7.1/sm80+-fp16/model.engine"), "{path}");
    let plan = fs::read(path).unwrap();
    assert_eq!(&plan[..4], b"vtrt");
    assert!(plan.len() > 1_000_000, "{}", plan.len());

    // engine.json says what it was built from, by digest.
    let description: Value =
        serde_json::from_slice(&fs::read(path.replace("model.engine", "engine.json")).unwrap()).unwrap();
    let digest_of = |name: &str| {
        let files = &current.manifest().files;
        files.iter().find(|file| file.path.as_str() == name).expect(name).sha256.to_string()
    };
    assert_eq!(description["onnx_sha256"], digest_of("model.onnx").as_str());
    assert_eq!(description["weights_sha256"]["model.safetensors"], digest_of("model.safetensors").as_str());
    let engine = "engines/tensorrt-rtx-1.7.1/sm80+-fp16/model.engine";
    assert_eq!(description["plan_sha256"], digest_of(engine).as_str());

    let metadata = &current.manifest().metadata;
    assert_eq!(metadata["source"]["kind"], "store");
    assert_eq!(metadata["source"]["version"], "v2");
    assert_eq!(metadata["task"], "text-classification");
    assert!(metadata["gate"]["rows"].as_u64().unwrap() > 64, "64 texts, and some of them as pairs");

    // Anyone can check the version with coreutils alone (docs/format.md).
    let one_liner = "find . -type f ! -path ./manifest.json -printf '%P\\n' | LC_ALL=C sort \
                     | xargs -d '\\n' sha256sum | sha256sum";
    let sum = Command::new("sh").args(["-c", one_liner]).current_dir(current.path()).output().unwrap();
    assert_eq!(text(&sum.stdout).split(' ').next().unwrap(), current.checksum().to_string());
}

#[test]
fn a_folder_becomes_a_published_engine_and_the_report_says_so() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let output = bench.run(&[
        "--agent",
        "memory",
        "--source",
        folder.to_str().unwrap(),
        "--precision",
        "bf16",
        "--target",
        "8.9",
        "--profile",
        "1,2,4x8,16,32",
        "--no-activate",
        "--output-version",
        "v1",
    ]);
    let shown = shown(&output);
    assert!(output.status.success(), "{shown}");
    for part in [
        "source ",
        "export ",
        "check ",
        "gate ",
        "engine ",
        "publish ",
        "SM 89",
        "current stays as it was",
        "sm89-bf16",
    ] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    assert!(!shown.contains('\u{1b}'), "colour belongs on a terminal only");
    let agent = "memory".parse().unwrap();
    assert!(bench.store().get_current(&agent).unwrap().is_none());
    // A second one of the same name is refused, and the first stays.
    let again =
        bench.run(&["--agent", "memory", "--source", folder.to_str().unwrap(), "--output-version", "v1"]);
    assert_eq!(again.status.code(), Some(6), "{}", text(&again.stderr));
    assert!(bench.store().verify(&agent, &"v1".parse().unwrap()).unwrap().is_ok());
}

/// Heads of a size that TensorRT has no fused kernel for are written out, and build.
#[test]
fn unusual_head_sizes_become_engines() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Analyst);
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // 64 / 16: heads of size 4.
    config["num_attention_heads"] = 16.into();
    fs::write(&path, config.to_string()).unwrap();
    for precision in ["fp16", "bf16"] {
        let output = bench.run(&[
            "--agent",
            "analyst",
            "--source",
            folder.to_str().unwrap(),
            "--precision",
            precision,
        ]);
        assert!(output.status.success(), "{precision}: {}", shown(&output));
    }
}

/// What sentence-transformers calls its settings depends on the family; the published version must have them all.
#[test]
fn the_settings_of_every_family_are_published() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    fs::rename(folder.join("sentence_bert_config.json"), folder.join("sentence_roberta_config.json"))
        .unwrap();
    fs::write(folder.join("optimizer.safetensors"), "not of this model").unwrap();
    let output = bench.run(&["--agent", "memory", "--source", folder.to_str().unwrap(), "--no-engine"]);
    assert!(output.status.success(), "{}", shown(&output));
    let current = bench.store().require_current(&"memory".parse().unwrap()).unwrap();
    let files: Vec<&str> = current.manifest().files.iter().map(|file| file.path.as_str()).collect();
    assert!(files.contains(&"sentence_roberta_config.json"), "{files:?}");
    assert!(!files.contains(&"optimizer.safetensors"), "{files:?}");
}

#[test]
fn the_local_hub_cache_serves_a_model_id() {
    let Some(bench) = Bench::new() else { return };
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repository = bench.root().parent().unwrap().join("hub/models--news--sentiment");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::create_dir_all(repository.join("snapshots")).unwrap();
    fs::write(repository.join("refs/main"), commit).unwrap();
    fs::rename(bench.model(Kind::Analyst), repository.join("snapshots").join(commit)).unwrap();
    let arguments = ["--agent", "analyst", "--model-id", "news/sentiment", "--no-engine", "--json"];
    let output = bench.run(&arguments);
    assert!(output.status.success(), "{}", shown(&output));
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome["evidence"]["source"]["commit"], commit);
    assert_eq!(outcome["engine"], Value::Null);
}

#[test]
fn the_agent_map_names_a_model_for_an_agent_without_versions() {
    let Some(bench) = Bench::new() else { return };
    bench.store();
    let map = bench.root().parent().unwrap().join("map.json");
    let text_of_map =
        r#"{"base_models": {"s": {"hf_id": "news/sentiment"}}, "agents": {"analyst": [{"base_ref": "s"}]}}"#;
    fs::write(&map, text_of_map).unwrap();
    let output = bench.command(&["--agent", "analyst"]).env("AGENT_MODEL_MAP", &map).output().unwrap();
    // The cache is empty; that the map was followed shows in what is missing.
    assert_eq!(output.status.code(), Some(3), "{}", shown(&output));
    assert!(text(&output.stderr).contains("news/sentiment at main is not whole in"));
}

#[test]
fn a_dry_run_says_what_it_would_do_and_writes_nothing() {
    let bench = Bench::without_runtimes();
    let store = bench.store();
    let folder = bench.model(Kind::Analyst);
    let before = bench.contents();
    let arguments = ["--agent", "analyst", "--source", folder.to_str().unwrap(), "--dry-run"];
    let output = bench.run(&arguments);
    assert!(output.status.success(), "{}", shown(&output));
    for part in ["nothing was written", "bert", "logits", "batch 1,8,64"] {
        assert!(text(&output.stdout).contains(part), "{part:?}: {}", shown(&output));
    }
    assert_eq!(bench.contents(), before);
    assert!(store.agents().unwrap().is_empty());
}

#[test]
fn onnx_runtime_leaves_no_number_of_this_host_and_reports_nothing() {
    let Some(bench) = Bench::new() else { return };
    let home = tempfile::tempdir().unwrap();
    let mut command = bench.command(&["doctor"]);
    // It also keeps still where one of these is set.
    for variable in ["ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "GITHUB_ACTIONS", "TF_BUILD"] {
        command.env_remove(variable);
    }
    let output = command.env("HOME", home.path()).env_remove("XDG_CACHE_HOME").output().unwrap();
    assert!(text(&output.stdout).contains("onnx runtime   ok"), "{}", shown(&output));
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [] as [std::path::PathBuf; 0], "{}", shown(&output));
}

#[test]
fn doctor_reports_what_is_there_and_what_is_missing() {
    let bench = Bench::without_runtimes();
    let output = bench.command(&["doctor"]).env("MODEL_RUNTIMES", "/nonexistent").output().unwrap();
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(7), "{shown}");
    for part in ["onnx runtime", "missing", "/nonexistent", "make runtimes", "model store"] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    let json = bench.command(&["doctor", "--json"]).output().unwrap();
    let findings: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(findings.as_array().unwrap().iter().any(|finding| finding["what"] == "gpu"));
}

/// `--keep` leaves alone what is young, whatever the number; `report.html` asks nobody for anything.
#[test]
fn what_is_old_is_retired_and_the_report_stands_alone() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let store = bench.store();
    toy_store::publish(&store, toy_store::DEFAULT_SEED).unwrap();
    let arguments = ["--agent", "memory", "--source", folder.to_str().unwrap(), "--no-engine", "--keep", "1"];
    let output = bench.run(&[&arguments[..], &["--output-version", "v3"]].concat());
    assert!(output.status.success(), "{}", shown(&output));
    // Published moments ago: retention's grace keeps them.
    let agent = "memory".parse().unwrap();
    assert_eq!(store.versions(&agent).unwrap().len(), 3);
    let page = fs::read_to_string(store.require_current(&agent).unwrap().path().join("report.html")).unwrap();
    for part in [
        "<title>memory/v3</title>",
        "Passed the gate",
        "cosine, worst row",
        "has the checked graph and no engine",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    for part in ["http", "<script", "src=", "@import"] {
        assert!(!page.contains(part), "{part} is in {page}");
    }
}

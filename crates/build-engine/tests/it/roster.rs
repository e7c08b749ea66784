//! `--all`: what is stale is built, and one failure stops no other.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use trt_compiler::engine::WORKER_ARGUMENT;

use crate::support::{Bench, shown, text};

#[test]
fn every_stale_agent_is_built_once_and_a_broken_one_stops_nobody() {
    let Some(bench) = Bench::new() else { return };
    let store = bench.store();
    toy_store::publish(&store, toy_store::DEFAULT_SEED).unwrap();
    let broken = "broken".parse().unwrap();
    let staging = store.stage_new(&broken, &"v1".parse().unwrap()).unwrap();
    staging.write(&"config.json".parse().unwrap(), b"{}").unwrap();
    staging.finalize(model_store::FinalizeOptions::default()).unwrap();

    let before = bench.contents();
    let planned = bench.run(&["--all", "--precision", "fp16", "--dry-run"]);
    assert!(planned.status.success(), "{}", shown(&planned));
    for part in ["analyst", "memory", "broken", "not checked by this command"] {
        assert!(text(&planned.stdout).contains(part), "{part}: {}", shown(&planned));
    }
    assert_eq!(bench.contents(), before, "a dry run writes nothing");

    let ran = bench.run(&["--all", "--precision", "fp16", "--jobs", "2", "--json"]);
    assert!(!ran.status.success(), "{}", shown(&ran));
    let ended: Vec<Value> = serde_json::from_slice(&ran.stdout).unwrap();
    let of = |agent: &str| ended.iter().find(|it| it["agent"] == agent).unwrap();
    for agent in ["analyst", "memory"] {
        assert_eq!(of(agent)["exit_code"], 0, "{}", of(agent));
        assert!(of(agent)["outcome"]["engine"]["plan_sha256"].is_string(), "{}", of(agent));
    }
    assert_ne!(of("broken")["exit_code"], 0);
    assert!(of("broken")["error"].as_str().unwrap().contains("no *.safetensors"), "{}", of("broken"));

    let again = bench.run(&["--all", "--precision", "fp16", "--dry-run"]);
    let table = text(&again.stdout);
    let line = |agent: &str| table.lines().find(|line| line.contains(agent)).unwrap();
    for agent in ["analyst", "memory"] {
        assert!(line(agent).contains("up to date"), "{table}");
    }
    let other = text(&bench.run(&["--all", "--precision", "bf16", "--dry-run"]).stdout);
    assert!(other.contains("precision fp16 → bf16"), "{other}");
}

/// The agent map names agents that the store does not have yet, and models that cannot be had.
#[test]
fn the_agent_map_names_agents_too() {
    let bench = Bench::without_runtimes();
    bench.store();
    let map = bench.root().with_file_name("map.json");
    fs::write(&map, r#"{ "base_models": { "m": { "hf_id": "org/none" } }, "agents": { "scout": [ { "base_ref": "m" } ] } }"#)
        .unwrap();
    let run = |arguments: &[&str]| {
        let mut command = bench.command(arguments);
        command.env("AGENT_MODEL_MAP", &map).env("HF_HUB_OFFLINE", "1").output().unwrap()
    };
    let planned = run(&["--all", "--dry-run"]);
    assert_eq!(planned.status.code(), Some(3), "{}", shown(&planned));
    let table = text(&planned.stdout);
    assert!(table.contains("scout") && table.contains("cannot") && table.contains("org/none"), "{table}");
    let told: Vec<Value> = serde_json::from_slice(&run(&["--all", "--dry-run", "--json"]).stdout).unwrap();
    assert_eq!((&told[0]["agent"], &told[0]["todo"]), (&"scout".into(), &"cannot".into()), "{told:?}");
    let ran = run(&["--all"]);
    assert_eq!(ran.status.code(), Some(3), "{}", shown(&ran));
}

#[test]
fn an_empty_roster_says_so() {
    let bench = Bench::without_runtimes();
    bench.store();
    let output = bench.run(&["--all"]);
    assert_eq!(output.status.code(), Some(3), "{}", shown(&output));
    assert!(text(&output.stderr).contains("no agent in the store"), "{}", shown(&output));
}

/// The engine builders that a command has running: children of any of its threads.
fn builders(parent: &Child) -> BTreeSet<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", parent.id())).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids = children.flat_map(|pids| pids.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let is_builder = |pid: &String| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|it| it.contains(WORKER_ARGUMENT))
    };
    pids.filter(is_builder).map(|pid| pid.parse().unwrap()).collect()
}

/// The first builder is made to stand still. With one at a time there would never be a second.
#[test]
fn two_jobs_are_two_builders_at_once() {
    let Some(bench) = Bench::new() else { return };
    toy_store::publish(&bench.store(), toy_store::DEFAULT_SEED).unwrap();
    let mut command = bench.command(&["--all", "--jobs", "2", "--target", "89"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(5);
    let wait_for = |child: &mut Child, count: usize| loop {
        let running = builders(child);
        if running.len() >= count {
            return running;
        }
        let ended = child.try_wait().unwrap();
        assert!(
            ended.is_none() && Instant::now() < deadline,
            "{count} builders never ran at once: {ended:?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    };
    let signal = |pid: u32, name: &str| {
        assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
    };
    let first = *wait_for(&mut child, 1).first().unwrap();
    signal(first, "-STOP");
    let both = wait_for(&mut child, 2);
    assert!(both.contains(&first), "{both:?}");
    signal(first, "-CONT");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
}

/// A pipe can be read once: who reads it again waits for ever.
#[test]
fn calibration_texts_are_read_once_for_all_agents() {
    let Some(bench) = Bench::new() else { return };
    toy_store::publish(&bench.store(), toy_store::DEFAULT_SEED).unwrap();
    let pipe = bench.root().with_file_name("texts.jsonl");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let arguments = ["--all", "--precision", "int8", "--dry-run", "--calib-data", pipe.to_str().unwrap()];
    let mut child = bench.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fs::write(&pipe, "\"Ships wait in the canal.\"\n\"The bank raised its rate.\"\n").unwrap();
    let deadline = Instant::now() + Duration::from_mins(2);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it waits for the texts a second time");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
    for agent in ["analyst", "memory"] {
        assert!(text(&output.stdout).contains(agent), "{}", shown(&output));
    }
}

//! `--all`: what is stale is built, and one failure stops no other.

use std::fs;

use serde_json::Value;

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

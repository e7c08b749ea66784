//! Language models become engines with a cache of keys and values, and without one where that is asked for.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Bench, shown, text};

/// A small random model with a tokenizer, in a folder of its own.
fn decoder(bench: &Bench, model: &str) -> PathBuf {
    let folder = bench.root().parent().unwrap().join(model);
    fs::create_dir_all(&folder).unwrap();
    for part in [model, "lm-tokenizer"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model-loader/tests/data").join(part);
        for entry in fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

/// An input of an `engine.json` as its type and the spans of its dimensions.
fn input(engine: &Value, name: &str) -> String {
    let inputs = engine["inputs"].as_array().unwrap();
    let Some(input) = inputs.iter().find(|input| input["name"] == name) else { return "none".to_owned() };
    let span = |dim: &Value| format!("{},{},{}", dim["min"], dim["opt"], dim["max"]);
    let dims: Vec<String> = input["dims"].as_array().unwrap().iter().map(span).collect();
    format!("{} {}", input["dtype"].as_str().unwrap(), dims.join(" × "))
}

#[test]
fn a_language_model_becomes_an_engine_with_a_cache() {
    let Some(bench) = Bench::new() else { return };
    // Heads of 16, of which there are 2 for keys; positions for 512 tokens.
    let folder = decoder(&bench, "lm-qwen3");
    let folder = folder.to_str().unwrap();
    let own = ["--profile", "1,2,4x1,8,32x0,16,64", "--profile", "4x1x0,16,64"];
    let rows: [(&str, &[&str], &str, [&str; 3]); 4] = [
        (
            "fp16",
            &[],
            "1,1,1x1,128,256x0,256,256",
            ["i64 1,1,1 × 1,128,256", "i64 1,1,1 × 1,384,512", "f16 1,1,1 × 2,2,2 × 0,256,256 × 16,16,16"],
        ),
        (
            "bf16",
            &own,
            "1,2,4x1,8,32x0,16,64",
            ["i64 1,2,4 × 1,8,32", "i64 1,2,4 × 1,24,96", "bf16 1,2,4 × 2,2,2 × 0,16,64 × 16,16,16"],
        ),
        // The cache gets the positions that sequences leave.
        (
            "fp32",
            &["--profile", "1x1,8,500"],
            "1,1,1x1,8,500x0,12,12",
            ["i64 1,1,1 × 1,8,500", "i64 1,1,1 × 1,20,512", "f32 1,1,1 × 2,2,2 × 0,12,12 × 16,16,16"],
        ),
        (
            "fp32",
            &["--no-kv-cache"],
            "1,1,1x1,128,512",
            ["i64 1,1,1 × 1,128,512", "i64 1,1,1 × 1,128,512", "none"],
        ),
    ];
    for (index, (precision, arguments, profile, inputs)) in (0..).zip(rows) {
        let row = format!("{precision} {arguments:?}");
        let version = format!("v{index}");
        let base = ["--agent", "writer", "--source", folder, "--target", "89", "--json"];
        let named = ["--precision", precision, "--output-version", &version];
        let output = bench.run(&[&base[..], &named, arguments].concat());
        assert!(output.status.success(), "{row}: {}", shown(&output));
        let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
        let current = bench.store().require_current(&"writer".parse().unwrap()).unwrap();
        let metadata = &current.manifest().metadata;
        assert_eq!(metadata["engine"]["profile"], profile, "{row}");
        assert_eq!(metadata["kv_cache"], inputs[2] != "none", "{row}");
        let engine = &outcome["engine"];
        let found =
            ["input_ids", "attention_mask", "past_key_values.1.value"].map(|name| input(engine, name));
        assert_eq!(found, inputs, "{row}");
        let outputs =
            engine["outputs"].as_array().unwrap().iter().map(|output| output["name"].as_str().unwrap());
        let has_cache = outputs.filter(|name| name.starts_with("present.")).count();
        assert_eq!(has_cache > 0, inputs[2] != "none", "{row}");
    }
}

#[test]
fn a_dry_run_says_what_it_will_look_for_and_which_shapes_it_takes() {
    let bench = Bench::without_runtimes();
    let folder = decoder(&bench, "lm-llama");
    let run = |arguments: &[&str]| {
        let base = ["--agent", "writer", "--source", folder.to_str().unwrap(), "--dry-run"];
        bench.store();
        text(&bench.run(&[&base[..], arguments].concat()).stdout)
    };
    let said = run(&[]);
    for part in ["activations over 512", "weights over 65504", "past 0,256,256"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let said = run(&["--no-auto-fp32", "--no-kv-cache"]);
    for part in ["activations over", "past"] {
        assert!(!said.contains(part), "{part} is in {said}");
    }
    let plan: Value = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!(plan["overflow"], json!({ "activation": 512.0, "weight": 65504.0 }));
    assert_eq!(plan["profile"]["past"], json!({ "min": 0, "opt": 256, "max": 256 }));
}

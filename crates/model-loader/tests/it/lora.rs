//! Adapters merged at load, against what peft's own merge gives; and those that are refused.

use std::fs;
use std::path::Path;

use model_loader::{CausalLm, LmOptions, LoadError, Loaded, Model as _, ResolveOptions, Strictness};
use model_store::exit;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lm::{check_parity, expected, greedy, model};
use crate::shelf::Shelf;
use crate::support::{check_error, copy_of, data, edit_json, message};

const MAX_ABS: f32 = 1e-3;

fn with_adapter(base: &Path, adapter: &Path) -> Result<CausalLm, LoadError> {
    CausalLm::from_dir(base, &LmOptions { adapter: Some(adapter.to_owned()), ..LmOptions::default() })
}

#[test]
fn every_variety_merges_to_what_peft_merges_it_to() {
    let base = model("lm-qwen2");
    let mut names: Vec<_> = fs::read_dir(data("lm-lora"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 13, "{names:?}");
    let plain = CausalLm::from_dir(base.path(), &LmOptions::default()).unwrap();
    for name in names {
        let fixture = format!("lm-lora/{name}");
        let lm = with_adapter(base.path(), &data(&fixture)).unwrap_or_else(|error| panic!("{name}: {error}"));
        check_parity(&name, &lm, &fixture, MAX_ABS);
        let expected = &expected(&fixture)[0];
        let without = plain.generate(expected.prompt.as_str(), &greedy(64)).unwrap();
        assert_ne!(without.text, expected.text, "{name}: the adapter changes something");
    }
}

/// A caller's adapter was merged from anywhere, in strict mode too, and the model said to have the map's, or none.
#[test]
fn a_callers_adapter_is_found_like_the_model_and_told() {
    let shelf = Shelf::new();
    shelf.publish("synthesizer", "v1", model("lm-qwen2").path());
    let outside = adapter("plain");
    shelf.publish("adapters", "v1", outside.path());
    let root = shelf.store.root();
    let load = |adapter: &Path, strictness: Strictness| {
        let options = ResolveOptions { strictness, ..shelf.options() };
        let load = LmOptions { adapter: Some(adapter.to_owned()), ..LmOptions::default() };
        Loaded::<CausalLm>::load("synthesizer", &options, &load)
    };
    let merged = expected("lm-lora/plain").remove(0);
    let check = |row: &str, adapter: &Path, strictness: Strictness, path: &Path, version: Option<&str>| {
        let lm = load(adapter, strictness).unwrap_or_else(|error| panic!("{row}: {}", message(&error)));
        let told = lm.resolved().adapter().expect(row);
        assert_eq!(
            (told.path(), told.version().map(model_store::VersionName::as_str)),
            (path, version),
            "{row}"
        );
        let text = lm.generate(merged.prompt.as_str(), &greedy(64)).unwrap().text;
        assert_eq!(text, merged.text, "{row}");
    };
    check("a folder", outside.path(), Strictness::Lenient, outside.path(), None);
    let (current, version) = (root.join("adapters/current"), root.join("adapters/versions/v1"));
    check("in the store", &current, Strictness::Lenient, &version, Some("v1"));
    check("in the store, strictly", &current, Strictness::Strict, &version, Some("v1"));

    let path = outside.path().to_str().unwrap();
    let parts = ["synthesizer", "STRICT_MODEL_STORE", path, "outside the store"];
    check_error("strictly", &load(outside.path(), Strictness::Strict).unwrap_err(), exit::REFUSED, &parts);
    let strict = ResolveOptions { strictness: Strictness::Strict, ..shelf.options() };
    let named = LmOptions { adapter: Some(outside.path().to_owned()), ..LmOptions::default() };
    let error = CausalLm::load("synthesizer", &strict, &named).unwrap_err();
    check_error("strictly, without `Loaded`", &error, exit::REFUSED, &parts);
    let found = model_loader::resolve("synthesizer", &strict).unwrap();
    let error = CausalLm::load_from(&found, &named).unwrap_err();
    check_error("past the search", &error, exit::USAGE, &[path, "ResolveOptions::adapter_folder"]);
    let error = load(&shelf.beside("none"), Strictness::Lenient).unwrap_err();
    check_error("nothing there", &error, exit::NOT_FOUND, &["none/adapter_config.json is missing"]);
}

fn adapter(name: &str) -> TempDir {
    copy_of(&format!("lm-lora/{name}"))
}

/// Rewrites an adapter's tensors: names and shapes to keep, drop or change.
fn rewrite(folder: &Path, change: impl Fn(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) {
    let path = folder.join("adapter_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut list: Vec<_> = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    list.sort();
    change(&mut list);
    let views = list.iter().map(|(name, shape, data)| {
        (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn adapters_that_would_not_merge_whole_are_refused_by_name() {
    const WEIGHTS: &str = "adapter_model.safetensors";
    const CONFIG: &str = "adapter_config.json";
    let check = |row: &str, base: &str, name: &str, spoil: &dyn Fn(&Path), code: u8, parts: &[&str]| {
        let adapter = adapter(name);
        spoil(adapter.path());
        let error = with_adapter(model(base).path(), adapter.path()).expect_err(row);
        check_error(row, &error, code, parts);
    };
    let set = |changes: Value| move |folder: &Path| edit_json(&folder.join(CONFIG), &changes);
    let on_qwen2 = |row: &str, spoil: &dyn Fn(&Path), code: u8, parts: &[&str]| {
        check(row, "lm-qwen2", "plain", spoil, code, parts);
    };
    let refused = |row: &str, changes: Value, parts: &[&str]| {
        on_qwen2(row, &set(changes), exit::REFUSED, &[&[CONFIG], parts].concat());
    };
    refused("another kind", json!({ "peft_type": "IA3" }), &["peft_type `IA3`", "LORA"]);
    refused("no kind", json!({ "peft_type": null }), &["peft_type `none`"]);
    refused("an unknown setting", json!({ "use_magic": 3 }), &["use_magic = 3"]);
    refused("layers copied", json!({ "layer_replication": [[0, 2], [0, 2]] }), &["layer_replication"]);
    refused("tokens", json!({ "trainable_token_indices": [1] }), &["trainable_token_indices"]);
    refused("a changed base", json!({ "init_lora_weights": "pissa" }), &["init_lora_weights `pissa`"]);

    let other_modules = set(json!({ "target_modules": ["c_attn"] }));
    on_qwen2("another family", &other_modules, exit::CORRUPT, &[CONFIG, "names no module"]);
    let fewer = set(json!({ "target_modules": ["q_proj"] }));
    on_qwen2("a module too many", &fewer, exit::CORRUPT, &[WEIGHTS, "v_proj", "target_modules"]);
    let more = set(json!({ "target_modules": ["q_proj", "v_proj", "up_proj"] }));
    on_qwen2("a module too few", &more, exit::CORRUPT, &[WEIGHTS, "up_proj", "is missing"]);
    let rank = set(json!({ "r": 8 }));
    on_qwen2("another rank", &rank, exit::CORRUPT, &[WEIGHTS, "[32, 4]", "[32, 8]"]);
    let saved = set(json!({ "modules_to_save": ["lm_head"] }));
    on_qwen2("saved, but not there", &saved, exit::CORRUPT, &[WEIGHTS, "lm_head", "modules_to_save"]);

    let pickle = |folder: &Path| {
        fs::rename(folder.join(WEIGHTS), folder.join("adapter_model.bin")).unwrap();
    };
    on_qwen2("a pickle", &pickle, exit::REFUSED, &["adapter_model.bin is a pickle"]);
    let nothing = |folder: &Path| fs::remove_file(folder.join(WEIGHTS)).unwrap();
    on_qwen2("no weights", &nothing, exit::NOT_FOUND, &["adapter_model.safetensors is missing", "peft"]);
    let no_config = |folder: &Path| fs::remove_file(folder.join(CONFIG)).unwrap();
    on_qwen2("no settings", &no_config, exit::NOT_FOUND, &["adapter_config.json is missing"]);
    let cut = |folder: &Path| {
        let bytes = fs::read(folder.join(WEIGHTS)).unwrap();
        fs::write(folder.join(WEIGHTS), &bytes[..bytes.len() - 40]).unwrap();
    };
    on_qwen2("cut short", &cut, exit::CORRUPT, &[WEIGHTS, "damaged or truncated"]);
    let renamed =
        |folder: &Path| rewrite(folder, |list| list[0].0 = "base_model.model.x.lora_A.weight".to_owned());
    on_qwen2("a strange tensor", &renamed, exit::CORRUPT, &[WEIGHTS, "x.lora_A.weight", "not explained"]);
    let not_a_number = |folder: &Path| rewrite(folder, |list| list[0].2[..4].fill(0xff));
    on_qwen2("not a number", &not_a_number, exit::CORRUPT, &[WEIGHTS, "lora_A", "holds NaN"]);

    // Keys and values of another width, and fewer layers with biases.
    let as_it_is = |_: &Path| {};
    check("another base", "lm-qwen3", "plain", &as_it_is, exit::CORRUPT, &[WEIGHTS, "[32, 4]", "[64, 4]"]);
    check(
        "biases of none",
        "lm-llama",
        "bias-all",
        &as_it_is,
        exit::CORRUPT,
        &[WEIGHTS, "bias", "changes nothing"],
    );
    let missing =
        |folder: &Path| rewrite(folder, |list| list.retain(|(name, ..)| !name.contains("magnitude")));
    check(
        "no lengths",
        "lm-qwen2",
        "dora",
        &missing,
        exit::CORRUPT,
        &[WEIGHTS, "lora_magnitude_vector", "missing"],
    );

    let base = model("lm-gguf-qwen2");
    let error = with_adapter(base.path(), &data("lm-lora/plain")).unwrap_err();
    check_error("a GGUF file", &error, exit::REFUSED, &["model.gguf", "adapter", "safetensors"]);
}

/// A tied model has one embedding for both ends: peft's merge would change both.
#[test]
fn a_tied_embedding_is_changed_at_both_ends_or_not_at_all() {
    let base = model("lm-qwen2");
    let config = base.path().join("config.json");
    edit_json(&config, &json!({ "tie_word_embeddings": true }));
    let error = with_adapter(base.path(), &data("lm-lora/embedding-dora")).unwrap_err();
    check_error("one end", &error, exit::REFUSED, &["tied", "modules_to_save"]);
    // Both ends saved by the adapter: it does not matter what the base had.
    let lm = with_adapter(base.path(), &data("lm-lora/saved")).unwrap();
    check_parity("both ends", &lm, "lm-lora/saved", MAX_ABS);
}

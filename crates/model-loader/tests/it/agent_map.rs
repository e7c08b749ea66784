//! The agent map: where it leads, what it says of adapters, and what is said of its slips.

use std::fs;
use std::path::{Path, PathBuf};

use model_loader::{
    AgentMap, LoadOptions, Loaded, Loading, Outcome, ResolveOptions, ResolvedModel, Source, Strictness,
    TextClassifier, dry_run, metadata, resolve,
};
use model_store::exit;
use serde_json::{Value, json};

use crate::shelf::{Shelf, classifier};
use crate::support::{check_error, message};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A store with `base_models` (v1, and v2 which is current) and `critic` (v1 with an adapter in it), a loose adapter at
/// `critic/adapters/loose`, and a map.
struct World {
    shelf: Shelf,
}

impl World {
    fn new(map: &Value) -> Self {
        let shelf = Shelf::new();
        for version in ["v1", "v2"] {
            shelf.publish("base_models", version, classifier(None).path());
        }
        let critic = tempfile::tempdir().unwrap();
        adapter_in(&critic.path().join("adapters/strict"));
        shelf.publish("critic", "v1", critic.path());
        let loner = tempfile::tempdir().unwrap();
        adapter_in(loner.path());
        shelf.publish("loner", "v1", loner.path());
        adapter_in(&shelf.store.root().join("critic/adapters/loose"));
        fs::write(shelf.beside("map.json"), map.to_string()).unwrap();
        Self { shelf }
    }

    fn options(&self) -> ResolveOptions {
        ResolveOptions { agent_map: Some(self.shelf.beside("map.json")), ..self.shelf.options() }
    }

    fn root(&self) -> PathBuf {
        self.shelf.store.root().to_owned()
    }
}

fn adapter_in(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("adapter_config.json"), r#"{"peft_type": "LORA"}"#).unwrap();
}

/// A map with the bases `old` (a version), `new` (current), `path` and `hub`, and one entry of the critic.
fn map(entry: &Value) -> Value {
    json!({
        "base_models": {
            "old": { "hf_id": "org/name", "model_store_agent": "base_models", "model_store_version": "v1", "approx_vram_mb": 123 },
            "new": { "model_store_agent": "base_models" },
            "path": { "model_store_path": "base_models/versions/v1" },
            "hub": { "hf_id": "org/name" },
            "gone": { "hf_id": "org/name", "model_store_agent": "base_models", "model_store_version": "v9" },
        },
        "agents": { "critic": [entry] },
        // Other tools' keys are left alone, dangling or not.
        "vllm_agents": { "critic": [{ "base_ref": "nowhere" }] },
    })
}

fn version_of(found: &ResolvedModel) -> String {
    found.short_name()
}

#[test]
fn the_map_leads_to_a_base_in_the_store_also_strictly() {
    let check = |row: &str, entry: Value, model: &str, adapter: Option<&str>| {
        let world = World::new(&map(&entry));
        for strictness in [Strictness::Lenient, Strictness::Strict] {
            let found = resolve("critic", &ResolveOptions { strictness, ..world.options() })
                .unwrap_or_else(|error| panic!("{row}: {error}"));
            assert_eq!(version_of(&found), model, "{row}");
            assert_eq!((found.agent(), found.base_ref()), ("critic", entry["base_ref"].as_str()), "{row}");
            let expected = adapter.map(|below| world.root().join(below));
            assert_eq!(found.adapter().map(|found| found.path().to_owned()), expected, "{row}");
        }
    };
    let in_version = "critic/versions/v1/adapters/strict";
    check("a version", json!({ "base_ref": "old" }), "base_models/v1", None);
    check("current", json!({ "base_ref": "new" }), "base_models/v2", None);
    check("a path", json!({ "base_ref": "path" }), "base_models/v1", None);
    check("null is absent", json!({ "base_ref": "old", "adapter_name": null }), "base_models/v1", None);
    check(
        "an adapter by its path",
        json!({ "base_ref": "old", "adapter_name": "loose", "adapter_model_store_path": "critic/adapters/loose" }),
        "base_models/v1",
        Some("critic/adapters/loose"),
    );
    check(
        "an adapter in a version",
        json!({ "base_ref": "old", "adapter_name": "strict", "adapter_version": "v1" }),
        "base_models/v1",
        Some(in_version),
    );
    check(
        "an adapter in what is current",
        json!({ "base_ref": "new", "adapter_name": "strict" }),
        "base_models/v2",
        Some(in_version),
    );
    check(
        "an adapter by a path through current",
        json!({ "base_ref": "new", "adapter_model_store_path": "critic/current/adapters/strict" }),
        "base_models/v2",
        Some(in_version),
    );
    check(
        "an adapter that is an agent's whole version",
        json!({ "base_ref": "new", "adapter_agent": "loner" }),
        "base_models/v2",
        Some("loner/versions/v1"),
    );
    check(
        "a folder of what is current",
        json!({ "base_ref": "new", "adapter_subdir": "adapters/strict" }),
        "base_models/v2",
        Some(in_version),
    );
    check(
        "a folder of another name",
        json!({ "base_ref": "new", "adapter_version": "v1", "adapter_subdir": "adapters/strict" }),
        "base_models/v2",
        Some(in_version),
    );
}

#[test]
fn an_adapter_in_a_version_is_leased_and_told() {
    let world =
        World::new(&map(&json!({ "base_ref": "old", "adapter_name": "strict", "adapter_version": "v1" })));
    let found = resolve("critic", &world.options()).unwrap();
    let adapter = found.adapter().unwrap();
    assert_eq!((adapter.name(), adapter.version().unwrap().as_str()), (Some("strict"), "v1"));
    assert!(adapter.checksum().is_some() && adapter.checksum() != found.checksum());
    let said = found.to_string();
    assert!(
        said.contains("critic: base_models/v1") && said.contains("with the adapter strict: critic/v1"),
        "{said}"
    );
    assert!(matches!(adapter.source(), Source::Store { agent, .. } if agent.as_str() == "critic"));
    let loose = json!({ "base_ref": "old", "adapter_model_store_path": "critic/adapters/loose" });
    let found = resolve("critic", &World::new(&map(&loose)).options()).unwrap();
    assert!(matches!(found.adapter().unwrap().source(), Source::StoreFolder { .. }));
}

/// The adapter of one base on another is garbage, so an agent's own version gets it only where it is that base.
#[test]
fn an_agents_own_version_gets_the_adapter_of_its_own_base_only() {
    let check = |row: &str, base: Value, asked: Option<&str>, adapter: bool| {
        let mut map = map(
            &json!({ "base_ref": "b", "adapter_name": "loose", "adapter_model_store_path": "critic/adapters/loose" }),
        );
        map["base_models"]["b"] = base;
        map["agents"]["base_models"] = map["agents"]["critic"].clone();
        let world = World::new(&map);
        let options = ResolveOptions { adapter: asked.map(str::to_owned), ..world.options() };
        let found = resolve("base_models", &options).unwrap();
        assert_eq!(
            (version_of(&found).as_str(), found.adapter().is_some()),
            ("base_models/v2", adapter),
            "{row}"
        );
    };
    check("its own", json!({ "hf_id": "org/name" }), None, true);
    check("its own by name", json!({ "model_store_agent": "base_models" }), None, true);
    check("its own version", json!({ "model_store_version": "v2" }), None, true);
    check("its own path", json!({ "model_store_path": "base_models/versions/v2" }), None, true);
    check("another agent's", json!({ "model_store_agent": "critic" }), None, false);
    check("another version", json!({ "model_store_version": "v1" }), None, false);
    check("another version, asked for by name", json!({ "model_store_version": "v1" }), Some("loose"), true);
}

#[test]
fn what_the_map_names_and_is_not_there_is_told() {
    let check = |row: &str, entry: Value, strictness: Strictness, code: u8, parts: &[&str]| {
        let world = World::new(&map(&entry));
        let error = resolve("critic", &ResolveOptions { strictness, ..world.options() }).unwrap_err();
        check_error(row, &error, code, parts);
    };
    let (lenient, strict) = (Strictness::Lenient, Strictness::Strict);
    check(
        "hub",
        json!({ "base_ref": "hub" }),
        lenient,
        exit::NOT_FOUND,
        &["critic", "Hub cache", "org/name at main"],
    );
    check(
        "hub, strictly",
        json!({ "base_ref": "hub" }),
        strict,
        exit::REFUSED,
        &["critic", "STRICT_MODEL_STORE"],
    );
    check(
        "gone",
        json!({ "base_ref": "gone" }),
        lenient,
        exit::NOT_FOUND,
        &["base_models", "version `v9`", "org/name"],
    );
    let gone = ["agents.critic[0]", "version `v9`", "STRICT_MODEL_STORE"];
    check("gone, strictly", json!({ "base_ref": "gone" }), strict, exit::REFUSED, &gone);
    let adapter =
        json!({ "base_ref": "old", "adapter_name": "x", "adapter_model_store_path": "critic/adapters/x" });
    let parts = ["adapter `x`", "agents.critic[0]", "has no folder critic/adapters/x"];
    check("no adapter", adapter.clone(), lenient, exit::NOT_FOUND, &parts);
    check("no adapter, strictly", adapter, strict, exit::REFUSED, &parts);
    let outside = tempfile::tempdir().unwrap();
    adapter_in(outside.path());
    let path = outside.path().to_str().unwrap();
    let entry = json!({ "base_ref": "old", "adapter_model_store_path": path });
    check("outside, strictly", entry.clone(), strict, exit::REFUSED, &[path, "outside the store"]);
    let found = resolve("critic", &World::new(&map(&entry)).options()).unwrap();
    assert_eq!(found.adapter().unwrap().source(), &Source::Folder);
}

#[test]
fn slips_are_named_by_their_json_path() {
    let check = |row: &str, map: Value, parts: &[&str]| {
        let world = World::new(&map);
        for strictness in [Strictness::Lenient, Strictness::Strict] {
            let error = resolve("critic", &ResolveOptions { strictness, ..world.options() }).unwrap_err();
            check_error(row, &error, exit::CORRUPT, &[&["map.json"], parts].concat());
        }
    };
    let of = |entry: Value| map(&entry);
    check("dangling", of(json!({ "base_ref": "b" })), &["`agents.critic[0].base_ref`", "\"b\"", "old, new"]);
    check("no base", of(json!({})), &["`agents.critic[0].base_ref` is missing"]);
    check("a number", of(json!({ "base_ref": 7 })), &["`agents.critic[0].base_ref` is a number"]);
    check(
        "a list",
        of(json!({ "base_ref": "old", "adapter_name": [] })),
        &["`agents.critic[0].adapter_name` is a list"],
    );
    check("no entry", of(json!("old")), &["`agents.critic[0]` is a text"]);
    let climbing = json!({ "base_ref": "old", "adapter_model_store_path": "../critic" });
    check("climbing", of(climbing), &["`agents.critic[0].adapter_model_store_path`", "../critic"]);
    let climbing = json!({ "base_ref": "old", "adapter_version": "v1", "adapter_subdir": "../../x" });
    check("climbing below", of(climbing), &["`agents.critic[0].adapter_subdir`", "../../x"]);
    let hostile = json!({ "base_ref": "old", "adapter_version": "v1/..", "adapter_name": "strict" });
    check("a hostile version", of(hostile), &["`agents.critic[0].adapter_version`", "v1/.."]);
    let bases = |base: Value| json!({ "base_models": { "b": base }, "critic": [{ "base_ref": "b" }] });
    check(
        "an older file",
        json!({ "base_models": {}, "critic": [{ "base_ref": "b" }] }),
        &["`critic[0].base_ref`"],
    );
    check(
        "a base's agent",
        bases(json!({ "model_store_agent": "../x" })),
        &["`base_models.b.model_store_agent`", "../x"],
    );
    check("a base's id", bases(json!({ "hf_id": 1 })), &["`base_models.b.hf_id` is a number"]);
    check("a base", bases(json!("org/name")), &["`base_models.b` is a text"]);
    check("the bases", json!({ "base_models": [], "agents": {} }), &["`base_models` is a list"]);
    check("the agents", json!({ "agents": [] }), &["`agents` is a list"]);
    check("an agent", json!({ "agents": { "critic": 1 } }), &["`agents.critic` is a number"]);
    check("everything", json!([]), &["a JSON object"]);

    // Another agent's slip stops nobody, and is found by who asks for all of them.
    let mut both = map(&json!({ "base_ref": "old" }));
    both["agents"]["other"] = json!([{ "base_ref": "nowhere" }, { "base_ref": "old", "adapter_name": 1 }]);
    let world = World::new(&both);
    resolve("critic", &world.options()).unwrap();
    let map = AgentMap::read(&world.shelf.beside("map.json")).unwrap().unwrap();
    let problems: Vec<String> = map.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(
        problems[0].contains("agents.other[0].base_ref")
            && problems[1].contains("agents.other[1].adapter_name")
    );
    assert_eq!(map.agents().collect::<Vec<_>>(), ["critic", "other"]);
}

#[test]
fn unknown_keys_are_kept_and_an_entry_is_chosen_by_its_adapter() {
    let mut map =
        map(&json!({ "base_ref": "old", "adapter_name": "one", "variant_preference": "fp16", "x": [1] }));
    map["agents"]["critic"].as_array_mut().unwrap().push(json!({ "base_ref": "new", "adapter_name": "two" }));
    let world = World::new(&map);
    let read = AgentMap::read(&world.shelf.beside("map.json")).unwrap().unwrap();
    let first = read.entry("critic", None).unwrap().unwrap();
    assert_eq!((first.raw["x"].clone(), first.base.raw["approx_vram_mb"].clone()), (json!([1]), json!(123)));
    assert_eq!(first.variant_preference.as_deref(), Some("fp16"));
    let second = read.entry("critic", Some("two")).unwrap().unwrap();
    assert_eq!((second.base_ref.as_str(), second.json_path.as_str()), ("new", "agents.critic[1]"));
    let error = read.entry("critic", Some("three")).unwrap_err();
    check_error("no such adapter", &error, exit::CORRUPT, &["agents.critic", "\"three\"", "one, two"]);
    let options = ResolveOptions { adapter: Some("x".into()), ..world.options() };
    check_error(
        "no such agent",
        &resolve("nobody", &options).unwrap_err(),
        exit::NOT_FOUND,
        &["adapter `x`", "nobody"],
    );
}

#[test]
fn a_dry_run_tells_of_every_place_and_loads_nothing() {
    let entry = json!({ "base_ref": "old", "adapter_name": "strict", "adapter_version": "v1" });
    let world = World::new(&map(&entry));
    let options =
        ResolveOptions { loading: Loading::DryRun, model_id: Some("org/name".into()), ..world.options() };
    let report = dry_run("critic", &options).unwrap();
    let outcomes = report.places.iter().map(|place| (place.place, place.outcome));
    // With the feature `hub` that is one place more, which nobody asked for.
    let outcomes: Vec<_> = outcomes.filter(|place| *place != ("hub", Outcome::NotAsked)).collect();
    let (missing, found) = (Outcome::Missing, Outcome::Found);
    let expected = [
        ("store", missing),
        ("folder", Outcome::NotAsked),
        ("agent-map", found),
        ("map-hub", missing),
        ("hub-cache", missing),
    ];
    assert_eq!(outcomes, expected, "{report}");
    assert_eq!(version_of(report.model.as_ref().unwrap()), "base_models/v1");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["model"]["source"]["kind"], "store");
    assert_eq!(json["model"]["adapter"]["name"], "strict");
    assert_eq!(json["places"][1]["outcome"], "not-asked");
    let strict =
        dry_run("critic", &ResolveOptions { strictness: Strictness::Strict, ..options.clone() }).unwrap();
    assert_eq!(strict.places[1].outcome, Outcome::Forbidden);
    assert!(strict.places[3..].iter().all(|place| place.outcome == Outcome::Forbidden));

    // Loading is refused with what it would have been; finding is not.
    resolve("critic", &options).unwrap();
    let error = Loaded::<TextClassifier>::load("critic", &options, &LoadOptions::default()).unwrap_err();
    check_error("a load", &error, exit::REFUSED, &["MODEL_STORE_DRY_RUN", "base_models/v1", "critic/v1"]);
    assert_eq!(
        world.shelf.store.last_check(&"base_models".parse().unwrap(), &"v1".parse().unwrap()).unwrap(),
        None
    );
    // Nothing anywhere is a report, too.
    let nothing = dry_run("nobody", &world.options()).unwrap();
    assert!(nothing.model.is_none() && nothing.to_string().contains("no `current`"), "{nothing}");
}

#[test]
fn metadata_has_base_adapter_and_manifest() {
    let entry = json!({ "base_ref": "old", "adapter_name": "loose", "adapter_model_store_path": "critic/adapters/loose" });
    let world = World::new(&map(&entry));
    let found = metadata("critic", &world.options()).unwrap();
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["agent"], "critic");
    assert_eq!(json["adapter_name"], "loose");
    assert_eq!(json["entry"], entry);
    assert_eq!(json["base_ref"], "old");
    assert_eq!(json["base_info"]["approx_vram_mb"], 123);
    assert_eq!(json["version_dir"], json!(world.root().join("base_models/versions/v1")));
    assert_eq!(json["manifest"]["version"], "v1");
    assert_eq!(json["checksum"], json["manifest"]["checksum"]);
    assert_eq!(json["adapter_path"], json!(world.root().join("critic/adapters/loose")));

    let missing = metadata("critic", &World::new(&map(&json!({ "base_ref": "hub" }))).options()).unwrap();
    assert_eq!((missing.version_dir, missing.base_ref.as_deref()), (None, Some("hub")));
    assert!(missing.missing.iter().any(|line| line.contains("org/name")), "{:?}", missing.missing);
}

/// The Hub cache serves a base that the store does not have, with the adapter that the store has.
#[test]
fn a_base_in_the_hub_cache_keeps_its_adapter() {
    let entry = json!({ "base_ref": "hub", "adapter_name": "strict", "adapter_version": "v1" });
    let world = World::new(&map(&entry));
    let repository = world.shelf.beside("cache/models--org--name");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    let options = ResolveOptions { hub_cache: Some(world.shelf.beside("cache")), ..world.options() };
    let found = resolve("critic", &options).unwrap();
    assert!(matches!(found.source(), Source::HubCache { commit, .. } if commit == COMMIT), "{found}");
    assert!(found.adapter().is_some() && found.base_ref() == Some("hub"));
}

/// The map's `hf_id` was asked only where the store was there and had no such version.
#[test]
fn the_hub_cache_stands_in_for_a_store_that_fails() {
    let entry = json!({ "base_ref": "old" });
    let world = World::new(&map(&entry));
    let repository = world.shelf.beside("cache/models--org--name");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(repository.join("snapshots")).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    fs::rename(classifier(None).keep(), &snapshot).unwrap();
    let options = ResolveOptions { hub_cache: Some(world.shelf.beside("cache")), ..world.options() };
    let load = |row: &str, options: &ResolveOptions| {
        let found = Loaded::<TextClassifier>::load("critic", options, &LoadOptions::default());
        found.unwrap_or_else(|error| panic!("{row}: {}", message(&error))).resolved().clone()
    };
    assert_eq!(version_of(&load("the store has it", &options)), "base_models/v1");
    let no_store = ResolveOptions { store: Some(world.shelf.beside("none")), ..options.clone() };
    let is_cached = |found: &ResolvedModel| {
        matches!(found.source(), Source::HubCache { .. }) && found.base_ref() == Some("old")
    };
    assert!(is_cached(&load("no store", &no_store)));
    let weights = world.root().join("base_models/versions/v1/model.safetensors");
    fs::remove_file(weights).unwrap();
    assert!(is_cached(&load("a broken version", &options)));
    let strict = ResolveOptions { strictness: Strictness::Strict, ..options };
    let error = Loaded::<TextClassifier>::load("critic", &strict, &LoadOptions::default()).unwrap_err();
    check_error("strictly", &error, exit::CORRUPT, &["base_models/v1", "model.safetensors is missing"]);
}

//! The feature `hub`: what no place here has comes from a Hub, for who asks for it, and from nowhere for who does not.
//!
//! The Hub is that of the environment, so each case is a process of its own: this binary, told by its environment what to
//! resolve.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output};

use hub_server::{Config, Server};
use model_loader::{HubAccess, LoadError, ResolveOptions, SentenceEmbedder, Source, dry_run, load};
use model_store::ModelStore;
use serde_json::{Value, json};
use tempfile::TempDir;
use toy_store::{Kind, ToyVersion};

/// What the process is to do, as JSON.
const ASKED: &str = "MODEL_LOADER_TEST_ASKED";
const MODEL: &str = "news/memory";

/// A Hub with one model, an empty store and an empty cache.
struct World {
    server: Server,
    scratch: TempDir,
}

impl World {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let model = scratch.path().join("models").join(MODEL);
        toy_store::folder(Kind::Memory, toy_store::DEFAULT_SEED, ToyVersion::V1).write_to(&model).unwrap();
        ModelStore::create(scratch.path().join("store")).unwrap();
        let folders = vec![scratch.path().join("models")];
        let server = Server::start(Config { folders, ..Config::default() }).unwrap();
        Self { server, scratch }
    }

    /// Runs [`a_process_that_resolves`] with this in its environment.
    fn run(&self, asked: &Value, environment: &[(&str, &str)]) -> Value {
        let output = self.command(asked, environment);
        let text = String::from_utf8_lossy(&output.stdout);
        let said = text.lines().find_map(|line| line.split_once("said: "));
        let Some((_, said)) = said else { panic!("{text}{}", String::from_utf8_lossy(&output.stderr)) };
        serde_json::from_str(said).unwrap()
    }

    fn command(&self, asked: &Value, environment: &[(&str, &str)]) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hub::a_process_that_resolves", "--ignored", "--nocapture"])
            .env(ASKED, asked.to_string())
            .env("MODEL_STORE_ROOT", self.scratch.path().join("store"))
            .env("HF_HUB_CACHE", self.scratch.path().join("cache"))
            .env("HF_ENDPOINT", self.server.url())
            .env("HF_HUB_OFFLINE", "0")
            .env("HF_HUB_ETAG_TIMEOUT", "5")
            .env_remove("HF_TOKEN")
            .env_remove("AGENT_MODEL_MAP")
            .env_remove("STRICT_MODEL_STORE")
            .env_remove("MODEL_STORE_DRY_RUN")
            .envs(environment.iter().copied())
            .output()
            .unwrap()
    }

    fn asked(&self) -> usize {
        self.server.faults().seen().len()
    }

    fn has_cache(&self) -> bool {
        self.scratch.path().join("cache").exists()
    }
}

#[test]
#[ignore = "run by the tests of this file, in a process with an environment of its own"]
fn a_process_that_resolves() {
    let Ok(asked) = std::env::var(ASKED) else { return };
    let asked: Value = serde_json::from_str(&asked).unwrap();
    let text = |key: &str| asked[key].as_str().map(str::to_owned);
    let options = ResolveOptions {
        model_id: text("model_id"),
        revision: text("revision"),
        agent_map: text("agent_map").map(Into::into),
        hub: if asked["fetch"] == true { HubAccess::Fetch } else { HubAccess::CacheOnly },
        ..ResolveOptions::from_env()
    };
    let said = if asked["report"] == true {
        serde_json::to_value(dry_run("memory", &options).unwrap()).unwrap()
    } else {
        match load("memory", &options, |path| SentenceEmbedder::from_dir(path)) {
            Ok((embedder, found)) => {
                let vectors = embedder.embed(&["Ships wait in the canal."]).unwrap();
                let commit = match found.source() {
                    Source::Hub { commit, .. } | Source::HubCache { commit, .. } => commit.clone(),
                    _ => String::new(),
                };
                json!({ "source": found.source().name(), "commit": commit, "size": vectors[0].len(), "words": found.to_string() })
            }
            Err(error) => {
                json!({ "error": model_store::with_causes(&error), "code": error.exit_code(), "fetch": matches!(error, LoadError::Fetch { .. }) })
            }
        }
    };
    #[expect(clippy::print_stdout, reason = "what the parent reads")]
    {
        println!("said: {said}");
    }
}

#[test]
fn a_model_comes_from_the_hub_once_and_then_from_the_cache() {
    let world = World::new();
    let wanted = json!({ "model_id": MODEL, "fetch": true });
    let first = world.run(&wanted, &[]);
    assert_eq!((&first["source"], first["size"].as_u64().unwrap() > 0), (&"hub".into(), true), "{first}");
    let commit = first["commit"].as_str().unwrap();
    assert_eq!(commit.len(), 40, "{first}");
    assert!(
        first["words"].as_str().unwrap().contains(&format!("{MODEL} at {commit} from the Hub")),
        "{first}"
    );
    let asked = world.asked();
    assert!(asked > 0);
    let second = world.run(&wanted, &[]);
    assert_eq!((&second["source"], &second["commit"]), (&"hub-cache".into(), &first["commit"]), "{second}");
    assert_eq!(world.asked(), asked, "what is here is not asked for again");
}

#[test]
fn the_agent_map_names_models_of_the_hub() {
    let world = World::new();
    let map = world.scratch.path().join("map.json");
    let text = json!({ "base_models": { "m": { "hf_id": MODEL } }, "agents": { "memory": [ { "base_ref": "m" } ] } });
    fs::write(&map, text.to_string()).unwrap();
    let found = world.run(&json!({ "agent_map": map, "fetch": true }), &[]);
    assert_eq!(found["source"], "hub", "{found}");
}

#[test]
fn nobody_is_asked_where_that_is_not_allowed() {
    let world = World::new();
    // Whoever connects here is seen, however the connection ends.
    let trap = TcpListener::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let address = format!("http://{}", trap.local_addr().unwrap());
    let check = |row: &str, asked: Value, environment: &[(&str, &str)], code: u64, parts: &[&str]| {
        let mut all = vec![("HF_ENDPOINT", address.as_str())];
        all.extend(environment);
        let said = world.run(&asked, &all);
        assert_eq!(said["code"], code, "{row}: {said}");
        for part in parts {
            assert!(said["error"].as_str().unwrap().contains(part), "{row}: {part:?}: {said}");
        }
        let met = trap.accept();
        assert!(
            met.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
            "{row}: it connected"
        );
        assert!(!world.has_cache(), "{row}: something was written");
    };
    let wanted = || json!({ "model_id": MODEL, "fetch": true });
    check("strict", wanted(), &[("STRICT_MODEL_STORE", "1")], 6, &["STRICT_MODEL_STORE forbids"]);
    check("cache only", json!({ "model_id": MODEL }), &[], 3, &["no news/memory at main"]);
    check("offline", wanted(), &[("HF_HUB_OFFLINE", "1")], 3, &["HF_HUB_OFFLINE is set"]);
    check(
        "a dry run",
        wanted(),
        &[("MODEL_STORE_DRY_RUN", "1")],
        3,
        &["would be fetched from http://127.0.0.1"],
    );
    check("nothing named", json!({ "fetch": true }), &[], 3, &["no model found"]);
    // The trap works: the same without any of these does connect.
    let said = world.run(&wanted(), &[("HF_ENDPOINT", &address), ("HF_HUB_ETAG_TIMEOUT", "1")]);
    assert_eq!(said["fetch"], true, "{said}");
    assert!(trap.accept().is_ok());
}

#[test]
fn a_report_says_that_it_would_and_asks_nobody() {
    let world = World::new();
    let of_hub = |asked: Value, environment: &[(&str, &str)]| {
        let report = world.run(&asked, environment);
        let places = report["places"].as_array().unwrap().clone();
        places.into_iter().find(|place| place["place"] == "hub").unwrap()
    };
    let wanted = json!({ "model_id": MODEL, "revision": "v2", "fetch": true, "report": true });
    let hub = of_hub(wanted.clone(), &[]);
    assert_eq!(hub["outcome"], "would-fetch", "{hub}");
    let words = format!("{MODEL} at v2 would be fetched from {}", world.server.url());
    assert!(hub["what"].as_str().unwrap().contains(&words), "{hub}");
    let strict = of_hub(wanted.clone(), &[("STRICT_MODEL_STORE", "1")]);
    assert_eq!(strict["outcome"], "forbidden", "{strict}");
    let offline = of_hub(wanted, &[("HF_HUB_OFFLINE", "1")]);
    assert!(offline["what"].as_str().unwrap().contains("would not be fetched"), "{offline}");
    let unasked = of_hub(json!({ "model_id": MODEL, "report": true }), &[]);
    assert_eq!(unasked["outcome"], "not-asked", "{unasked}");
    assert_eq!(world.asked(), 0);
    assert!(!world.has_cache());
}

#[test]
fn what_the_hub_says_is_what_is_told() {
    let world = World::new();
    let said = world.run(&json!({ "model_id": "news/none", "fetch": true }), &[]);
    assert_eq!((&said["fetch"], &said["code"]), (&true.into(), &3.into()), "{said}");
    assert!(said["error"].as_str().unwrap().contains("has no model news/none"), "{said}");
}

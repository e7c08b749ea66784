//! Where an agent's model is taken from, and what is said when it is nowhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model_loader::{
    ResolveOptions, ResolvedModel, Source, Strictness, TextClassifier, Verify, hub_cache, load, resolve,
};
use model_store::{
    Activation, Collected, FinalizeOptions, ModelStore, MoveOptions, Policy, RepairOptions, exit,
};
use tempfile::TempDir;

use crate::support::{check_error, copy_of, data};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER_COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

/// A store with the agent `analyst` (v1 and v2, which is current; v3 holds no model), the agent `hub` whose version has
/// the layout of the Hub cache, `empty` without a current version; and a Hub cache with `org/name`.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        let store = ModelStore::create(world.store()).unwrap();
        let publish = |agent: &str, version: &str, below: &str, activation: Activation| {
            let staging = store.stage_new(&agent.parse().unwrap(), &version.parse().unwrap()).unwrap();
            for entry in fs::read_dir(data("bert")).unwrap() {
                let from = entry.unwrap().path();
                let name = format!("{below}{}", from.file_name().unwrap().to_str().unwrap());
                staging.import(&from, &name.parse().unwrap()).unwrap();
            }
            staging.finalize(FinalizeOptions { activation, ..FinalizeOptions::default() }).unwrap();
        };
        publish("analyst", "v1", "", Activation::Activate);
        publish("analyst", "v2", "", Activation::Activate);
        publish("analyst", "v3", "elsewhere/", Activation::Keep);
        let (analyst, champion) = ("analyst".parse().unwrap(), "champion".parse().unwrap());
        store.tag(&analyst, &champion, &"v1".parse().unwrap(), &MoveOptions::default()).unwrap();
        publish("hub", "v1", &format!("models--org--name/snapshots/{COMMIT}/"), Activation::Activate);
        publish("empty", "v1", "", Activation::Keep);

        let repository = world.cache().join("models--org--name");
        for (reference, commit) in
            [("main", COMMIT), ("v1.0", OTHER_COMMIT), ("refs/pr/7", COMMIT), ("gone", "f")]
        {
            let path = repository.join("refs").join(reference);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, if commit == "f" { "f".repeat(40) } else { format!("{commit}\n") }).unwrap();
        }
        for commit in [COMMIT, OTHER_COMMIT] {
            fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        }
        world
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Options that look at nothing outside this world.
    fn options(&self) -> ResolveOptions {
        ResolveOptions {
            store: Some(self.store()),
            hub_cache: Some(self.cache()),
            ..ResolveOptions::default()
        }
    }
}

#[test]
fn the_store_comes_first_then_the_folder_then_the_hub_cache() {
    let world = World::new();
    let base = world.options();
    let folder = copy_of("bert");
    let check =
        |row: &str, agent: &str, options: ResolveOptions, expected: &dyn Fn(&ResolvedModel) -> bool| {
            let found = resolve(agent, &options).unwrap_or_else(|error| panic!("{row}: {error}"));
            assert!(expected(&found), "{row}: {found:?}");
            assert_eq!(found.agent(), agent, "{row}");
            assert!(found.path().is_dir(), "{row}: {found}");
        };
    let version = |name: &'static str| {
        move |found: &ResolvedModel| {
            found.version().is_some_and(|version| version.as_str() == name)
                && found.path().ends_with(format!("versions/{name}"))
                && found.checksum().is_some()
        }
    };
    let is_folder =
        |found: &ResolvedModel| *found.source() == Source::Folder && found.path() == folder.path();
    let commit = |expected: &'static str| {
        move |found: &ResolvedModel| {
            matches!(found.source(), Source::HubCache { model_id, commit } if model_id == "org/name" && commit == expected)
                && found.path().ends_with(expected)
        }
    };
    let in_version = |found: &ResolvedModel| found.version().is_some() && found.path().ends_with(COMMIT);
    let fallback = Some(folder.path().to_owned());
    let strict = ResolveOptions { strictness: Strictness::Strict, ..base.clone() };
    let hub = ResolveOptions { model_id: Some("org/name".into()), ..base.clone() };

    check("current", "analyst", base.clone(), &version("v2"));
    check("current, strictly", "analyst", strict.clone(), &version("v2"));
    check(
        "a version",
        "analyst",
        ResolveOptions { version: Some("v1".into()), ..base.clone() },
        &version("v1"),
    );
    let asked = |name: &str| ResolveOptions { version: Some(name.into()), ..base.clone() };
    check("current by name", "analyst", asked("current"), &version("v2"));
    check("a ref", "analyst", asked("champion"), &version("v1"));
    check(
        "a ref, strictly",
        "analyst",
        ResolveOptions { strictness: Strictness::Strict, ..asked("champion") },
        &version("v1"),
    );
    check(
        "not current",
        "empty",
        ResolveOptions { version: Some("v1".into()), ..base.clone() },
        &version("v1"),
    );
    check(
        "over the folder",
        "analyst",
        ResolveOptions { folder: fallback.clone(), ..base.clone() },
        &version("v2"),
    );
    check("the folder", "nobody", ResolveOptions { folder: fallback.clone(), ..base.clone() }, &is_folder);
    let no_store = ResolveOptions {
        store: Some(world.dir.path().join("none")),
        folder: fallback.clone(),
        ..base.clone()
    };
    check("no store", "analyst", no_store, &is_folder);
    let no_model = ResolveOptions { version: Some("v3".into()), folder: fallback.clone(), ..base.clone() };
    check("a version without a model", "analyst", no_model, &is_folder);
    check("over the cache", "nobody", ResolveOptions { folder: fallback, ..hub.clone() }, &is_folder);
    check("main", "nobody", hub.clone(), &commit(COMMIT));
    check(
        "a tag",
        "nobody",
        ResolveOptions { revision: Some("v1.0".into()), ..hub.clone() },
        &commit(OTHER_COMMIT),
    );
    check(
        "a pull request",
        "nobody",
        ResolveOptions { revision: Some("refs/pr/7".into()), ..hub.clone() },
        &commit(COMMIT),
    );
    check(
        "a commit",
        "nobody",
        ResolveOptions { revision: Some(OTHER_COMMIT.into()), ..hub.clone() },
        &commit(OTHER_COMMIT),
    );
    let within =
        ResolveOptions { model_id: Some("org/name".into()), revision: Some(COMMIT.into()), ..strict };
    check("a snapshot in a version", "hub", within, &in_version);
}

#[test]
fn a_model_that_is_nowhere_is_reported_with_the_places() {
    let world = World::new();
    let base = world.options();
    let store = world.store();
    let store = store.to_str().unwrap();
    let check = |row: &str, agent: &str, options: ResolveOptions, code: u8, parts: &[&str]| {
        check_error(row, &resolve(agent, &options).unwrap_err(), code, parts);
    };
    let strict = ResolveOptions {
        strictness: Strictness::Strict,
        // Neither may be looked at.
        folder: Some(data("bert")),
        model_id: Some("org/name".into()),
        ..base.clone()
    };
    let refused = ["STRICT_MODEL_STORE", store, "model-store publish"];
    let all = |more: &[&'static str]| [refused.as_slice(), more].concat();

    check(
        "strict, nobody",
        "nobody",
        strict.clone(),
        exit::REFUSED,
        &all(&["agent `nobody`", "no `current`"]),
    );
    check(
        "strict, no current",
        "empty",
        strict.clone(),
        exit::REFUSED,
        &all(&["agent `empty`", "no `current`"]),
    );
    let version = ResolveOptions { version: Some("v9".into()), ..strict.clone() };
    check(
        "strict, no version",
        "analyst",
        version,
        exit::REFUSED,
        &all(&["agent `analyst`", "version `v9`"]),
    );
    let no_model = ResolveOptions { version: Some("v3".into()), ..strict.clone() };
    check(
        "strict, no model",
        "analyst",
        no_model,
        exit::REFUSED,
        &all(&["v3", "no config.json", "models--org--name"]),
    );
    let none = world.dir.path().join("none");
    let parts = ["agent `analyst`", "STRICT_MODEL_STORE", none.to_str().unwrap(), "could not be read"];
    check(
        "strict, no store",
        "analyst",
        ResolveOptions { store: Some(none.clone()), ..strict },
        exit::REFUSED,
        &parts,
    );

    check("nobody", "nobody", base.clone(), exit::NOT_FOUND, &["`nobody`", store, "model-store publish"]);
    let version = ResolveOptions { version: Some("v9".into()), ..base.clone() };
    check("no version", "analyst", version, exit::NOT_FOUND, &["`analyst`", "version `v9`", "no ref"]);
    let version = ResolveOptions { version: Some("champoin".into()), ..base.clone() };
    check("nearly a ref", "analyst", version, exit::NOT_FOUND, &["`champoin`", "there is champion"]);
    let folder = ResolveOptions { folder: Some(world.dir.path().to_owned()), ..base.clone() };
    let parts = [store, "the folder", world.dir.path().to_str().unwrap(), "no config.json"];
    check("an empty folder", "nobody", folder, exit::NOT_FOUND, &parts);
    let hub = |model_id: &str, revision: &str| ResolveOptions {
        model_id: Some(model_id.into()),
        revision: Some(revision.into()),
        ..base.clone()
    };
    check(
        "not in the cache",
        "nobody",
        hub("org/other", "main"),
        exit::NOT_FOUND,
        &["Hub cache", "org/other at main"],
    );
    check("no such branch", "nobody", hub("org/name", "dev"), exit::NOT_FOUND, &["org/name at dev"]);
    check("half fetched", "nobody", hub("org/name", "gone"), exit::NOT_FOUND, &["org/name at gone"]);
}

#[test]
fn hostile_names_never_become_paths() {
    let world = World::new();
    let base = world.options();
    // What such a name could reach if it were joined to a path.
    for place in ["store/secret/config.json", "secret/config.json", "cache/secret/config.json"] {
        let path = world.dir.path().join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "{}").unwrap();
    }
    let check = |agent: &str, options: &ResolveOptions, name: &str| {
        for strictness in [Strictness::Lenient, Strictness::Strict] {
            let row = format!("{agent:?} {options:?} {strictness:?}");
            let error = resolve(agent, &ResolveOptions { strictness, ..options.clone() }).unwrap_err();
            check_error(&row, &error, exit::USAGE, &["is not a valid", name]);
        }
    };
    let long = "a".repeat(300);
    for agent in [
        "",
        ".",
        "..",
        "../secret",
        "a/b",
        "/etc",
        "a\0b",
        "a b",
        "-rf",
        ".hidden",
        "ä",
        "a\n",
        "v1.tmp",
        &long,
    ] {
        check(agent, &base, agent);
    }
    for version in ["", "..", "../../secret", "v1/..", "/", "v1.tmp", "current\0"] {
        check("analyst", &ResolveOptions { version: Some(version.into()), ..base.clone() }, version);
    }
    for id in [
        "",
        "..",
        "../secret",
        "org/..",
        "a/b/c",
        "/etc",
        "org/",
        "org/a--b",
        "org\\name",
        "org/na me",
        ".x/y",
    ] {
        check("hub", &ResolveOptions { model_id: Some(id.into()), ..base.clone() }, id);
    }
    for revision in ["", "..", "../../secret", "/etc", "refs//main", "a\0b", &long] {
        let options = ResolveOptions {
            model_id: Some("org/name".into()),
            revision: Some(revision.into()),
            ..base.clone()
        };
        check("hub", &options, revision);
    }
}

#[test]
fn a_model_that_does_not_load_is_passed_over_unless_only_the_store_may_serve() {
    let world = World::new();
    let folder = copy_of("bert");
    let published = world.store().join("analyst/versions/v2");
    let weights = published.join("model.safetensors");
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, b"cut").unwrap();
    let try_load = |strictness, folder: Option<&Path>| {
        let folder = folder.map(Path::to_owned);
        // What is in the file is for the loader to find out here.
        let options = ResolveOptions { strictness, folder, verify: Verify::Never, ..world.options() };
        load("analyst", &options, |dir| TextClassifier::from_dir(dir)).map(|(_, resolved)| resolved)
    };
    let parts = [weights.to_str().unwrap(), "damaged or truncated"];
    let found = try_load(Strictness::Lenient, Some(folder.path())).unwrap();
    assert_eq!((found.source(), found.path()), (&Source::Folder, folder.path()));
    check_error("alone", &try_load(Strictness::Lenient, None).unwrap_err(), exit::CORRUPT, &parts);
    let error = try_load(Strictness::Strict, Some(folder.path())).unwrap_err();
    check_error("strict", &error, exit::CORRUPT, &parts);
}

#[test]
fn strictness_is_what_the_variable_says() {
    let check = |value: &str, expected| assert_eq!(Strictness::from_value(value), expected, "{value:?}");
    for value in ["1", "true", "TRUE", "yes", "On", " 1 "] {
        check(value, Strictness::Strict);
    }
    for value in ["", "0", "false", "no", "off", "2", "maybe"] {
        check(value, Strictness::Lenient);
    }
}

#[test]
fn the_hub_cache_is_where_the_variables_say() {
    let check = |variables: &[(&str, &str)], expected: Option<&str>| {
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        assert_eq!(hub_cache::dir_from(lookup), expected.map(PathBuf::from), "{variables:?}");
    };
    check(&[], None);
    check(&[("HOME", "/h")], Some("/h/.cache/huggingface/hub"));
    check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x/huggingface/hub"));
    check(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")], Some("/hf/hub"));
    check(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")], Some("/c"));
    check(&[("HF_HUB_CACHE", "~/c"), ("HOME", "/h")], Some("/h/c"));
    check(&[("HF_HUB_CACHE", ""), ("HOME", "/h")], Some("/h/.cache/huggingface/hub"));
}

/// A version in use must not be retired under its user.
#[test]
fn a_resolved_model_outlives_a_new_current() {
    let world = World::new();
    let found = resolve("analyst", &world.options()).unwrap();
    let store = ModelStore::open(world.store()).unwrap();
    let staging = store.stage_new(&"analyst".parse().unwrap(), &"v4".parse().unwrap()).unwrap();
    staging.import(&data("bert").join("config.json"), &"config.json".parse().unwrap()).unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(found.version().unwrap().as_str(), "v2");
    let policy = Policy { keep: 1, grace: Duration::ZERO, ..Policy::default() };
    let collect = || store.gc(&["analyst".parse().unwrap()], &policy, &MoveOptions::default()).unwrap();
    let is_retired =
        |collected: &Collected| collected.retired.iter().any(|retired| retired.version.as_str() == "v2");
    let collected = collect();
    assert!(!is_retired(&collected), "{collected:?}");
    assert!(collected.retired.iter().any(|retired| retired.version.as_str() == "v3"), "{collected:?}");
    TextClassifier::from_dir(found.path()).unwrap();
    assert_eq!(resolve("analyst", &world.options()).unwrap().version().unwrap().as_str(), "v4");
    drop(found);
    let collected = collect();
    assert!(is_retired(&collected), "nobody uses it any more: {collected:?}");
}

/// A version that was being retired went on without a lease, and was taken away under its user.
#[test]
fn a_version_that_cannot_be_leased_is_an_error() {
    let world = World::new();
    let retiring = fs::File::open(world.store().join("analyst/versions/v2")).unwrap();
    rustix::fs::flock(&retiring, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let error = resolve("analyst", &world.options()).unwrap_err();
    check_error("leased by none", &error, exit::BUSY, &["analyst/v2"]);
    drop(retiring);
    resolve("analyst", &world.options()).unwrap();
}

#[test]
fn a_quarantined_version_is_refused_in_strict_mode_and_warned_of_otherwise() {
    let world = World::new();
    let store = ModelStore::open(world.store()).unwrap();
    let (agent, version) = ("analyst".parse().unwrap(), "v2".parse().unwrap());
    // Damage without a sound copy anywhere: the store marks the version.
    for name in
        ["analyst/versions/v2", "analyst/versions/v1", "empty/versions/v1", "analyst/versions/v3/elsewhere"]
    {
        let config = world.store().join(name).join("config.json");
        let bytes = fs::read(&config).unwrap();
        fs::remove_file(&config).unwrap();
        fs::write(&config, [bytes.as_slice(), b"\n"].concat()).unwrap();
    }
    let hub = format!("hub/versions/v1/models--org--name/snapshots/{COMMIT}/config.json");
    fs::remove_file(world.store().join(hub)).unwrap();
    assert!(store.repair(&agent, &version, &RepairOptions::default()).unwrap().quarantined);

    let found = resolve("analyst", &world.options()).unwrap();
    assert!(found.path().ends_with("analyst/versions/v2"), "{found:?}");
    let strict = ResolveOptions { strictness: Strictness::Strict, ..world.options() };
    let error = resolve("analyst", &strict).unwrap_err();
    let message = model_store::with_causes(&error);
    assert!(message.contains("analyst/v2 is quarantined: config.json"), "{message}");
    assert_eq!(error.exit_code(), exit::REFUSED);
}

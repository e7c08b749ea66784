//! What is in a store after publishing into one.

use std::fs;

use model_store::{Activation, AgentEntry, AgentName, FinalizeOptions, ModelStore, VersionName, exit};
use tempfile::TempDir;
use toy_store::{ALIAS, DEFAULT_SEED, Kind, Outcome, ToyError, ToyVersion, publish};

fn store() -> (TempDir, ModelStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ModelStore::create(dir.path()).unwrap();
    (dir, store)
}

fn current(store: &ModelStore, agent: &AgentName) -> String {
    store.get_current(agent).unwrap().unwrap().version().to_string()
}

/// Publishes one small file as a version.
fn publish_by_hand(store: &ModelStore, agent: &AgentName, version: &str, activation: Activation) {
    let staging = store.stage_new(agent, &version.parse().unwrap()).unwrap();
    staging.write(&"config.json".parse().unwrap(), b"{}").unwrap();
    staging.finalize(FinalizeOptions { activation, ..FinalizeOptions::default() }).unwrap();
}

#[test]
fn an_empty_store_gets_everything() {
    let (_dir, store) = store();
    let rows = publish(&store, DEFAULT_SEED).unwrap();
    assert_eq!(rows.len(), 6);
    for row in &rows {
        assert_eq!(row.outcome, Outcome::Published, "{row:?}");
        assert_eq!(row.is_current, row.version == ToyVersion::V2.name(), "{row:?}");
        let found = store.get_version(&row.agent, &row.version).unwrap().unwrap();
        assert_eq!(found.checksum(), row.checksum, "{row:?}");
        assert_eq!(found.path(), row.path, "{row:?}");
        assert_eq!(found.manifest().files.len(), row.files, "{row:?}");
        assert_eq!(found.manifest().size_bytes(), row.bytes, "{row:?}");
        assert_eq!(found.manifest().metadata["seed"], DEFAULT_SEED, "{row:?}");
        assert!(store.verify(&row.agent, &row.version).unwrap().is_ok(), "{row:?}");
    }
    let (alias, target) = (ALIAS.parse().unwrap(), Kind::Synthesizer.agent());
    assert!(store.agents().unwrap().contains(&AgentEntry::Alias { alias, target }));
    let v1_v2: Vec<VersionName> = ToyVersion::ALL.map(ToyVersion::name).into();
    assert_eq!(store.versions(&Kind::Analyst.agent()).unwrap(), v1_v2);
}

#[test]
fn manifests_of_two_stores_are_the_same_bytes() {
    let [(one, first), (two, second)] = [store(), store()];
    publish(&first, DEFAULT_SEED).unwrap();
    publish(&second, DEFAULT_SEED).unwrap();
    for kind in Kind::ALL {
        for version in ToyVersion::ALL {
            let path = format!("{}/versions/{}/manifest.json", kind.agent(), version.name());
            assert_eq!(
                fs::read(one.path().join(&path)).unwrap(),
                fs::read(two.path().join(&path)).unwrap(),
                "{path}"
            );
        }
    }
}

#[test]
fn a_second_time_finds_everything_there() {
    let (_dir, store) = store();
    let first = publish(&store, DEFAULT_SEED).unwrap();
    let second = publish(&store, DEFAULT_SEED).unwrap();
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(second.outcome, Outcome::AlreadyThere, "{second:?}");
        assert_eq!(
            (first.checksum, &first.path, first.is_current),
            (second.checksum, &second.path, second.is_current)
        );
    }
}

#[test]
fn what_is_missing_is_added() {
    let (dir, store) = store();
    publish(&store, DEFAULT_SEED).unwrap();
    let agent = Kind::Memory.agent();
    fs::remove_dir_all(dir.path().join(agent.as_str())).unwrap();
    let rows = publish(&store, DEFAULT_SEED).unwrap();
    for row in rows {
        let wanted = if row.agent == agent { Outcome::Published } else { Outcome::AlreadyThere };
        assert_eq!(row.outcome, wanted, "{row:?}");
    }
    assert_eq!(current(&store, &agent), "v2");
}

#[test]
fn an_operators_choice_of_current_is_kept() {
    let agent = Kind::Analyst.agent();
    let (_dir, later) = store();
    publish(&later, DEFAULT_SEED).unwrap();
    publish_by_hand(&later, &agent, "v3", Activation::Activate);
    publish(&later, DEFAULT_SEED).unwrap();
    assert_eq!(current(&later, &agent), "v3");

    let (_dir, earlier) = store();
    publish_by_hand(&earlier, &agent, "production", Activation::Activate);
    let rows = publish(&earlier, DEFAULT_SEED).unwrap();
    assert_eq!(current(&earlier, &agent), "production");
    assert!(rows.iter().all(|row| row.agent != agent || !row.is_current));
}

#[test]
fn another_version_of_that_name_is_refused_and_nothing_published() {
    let (_dir, store) = store();
    let agent = Kind::Synthesizer.agent();
    publish_by_hand(&store, &agent, "v2", Activation::Keep);
    let error = publish(&store, DEFAULT_SEED).unwrap_err();
    assert_eq!(error.exit_code(), exit::REFUSED, "{error}");
    assert!(
        matches!(&error, ToyError::Different { agent, .. } if *agent == Kind::Synthesizer.agent()),
        "{error}"
    );
    assert!(error.to_string().contains("synthesizer/v2"), "{error}");
    assert_eq!(store.agents().unwrap(), [AgentEntry::Agent(agent)]);
}

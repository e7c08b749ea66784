use std::fs;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model_store::{Activation, AgentEntry, Digest, FinalizeOptions, ModelStore, Progress, StoreError, exit};

use crate::fixture::{Fixture, agent, full_message, paths, payload, scout, version};

#[test]
fn what_was_published_is_what_is_read() {
    let fixture = Fixture::new();
    let first = fixture.publish("v1", &[("b/c.bin", b"see"), ("a.bin", b"a")]).unwrap();
    assert_eq!((first.files, first.bytes, first.activated), (2, 4, true));
    assert_eq!(first.previous, None);
    let second = fixture.publish("v2", &[("a.bin", b"another")]).unwrap();
    assert_eq!(second.previous, Some(version("v1")));

    let current = fixture.current();
    assert_eq!((current.agent(), current.version()), (&scout(), &version("v2")));
    assert_eq!(current.checksum(), second.checksum);
    assert_eq!(current.path(), second.path);
    assert_eq!(current.path(), fixture.root().join("scout/versions/v2"));
    assert_eq!(fs::read_link(fixture.agent_dir().join("current")).unwrap().to_str(), Some("versions/v2"));
    let mut text = String::new();
    current.open(&payload("a.bin")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "another");

    let old = fixture.store.get_version(&scout(), &version("v1")).unwrap().unwrap();
    assert_eq!(paths(&old.manifest().files), ["a.bin", "b/c.bin"]);
    assert_eq!(old.manifest().file(&payload("b/c.bin")).unwrap().sha256, Digest::of(b"see"));
    assert_eq!(fixture.store.versions(&scout()).unwrap(), [version("v1"), version("v2")]);
    assert_eq!(fixture.store.agents().unwrap(), [AgentEntry::Agent(scout())]);
    for name in ["v1", "v2"] {
        let report = fixture.store.verify(&scout(), &version(name)).unwrap();
        assert!(report.is_ok(), "{name}: {:?}", report.findings);
    }
    assert!(fixture.leftovers().is_empty());
}

#[test]
fn a_reader_keeps_its_version_through_a_swap() {
    let fixture = Fixture::with_v1();
    let reader = fixture.current();
    fixture.publish("v2", &[("config.json", b"two"), ("weights/model.bin", b"two")]).unwrap();
    let mut text = String::new();
    reader.open(&payload("weights/model.bin")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((reader.version().as_str(), text.as_str()), ("v1", "one"));
}

#[test]
fn versions_come_in_the_order_of_publication() {
    let fixture = Fixture::new();
    let at = |second: i64| Some(jiff::Timestamp::from_second(1_760_000_000 + second).unwrap());
    for (name, second) in [("b", 2), ("c", 1), ("a", 2)] {
        let options = FinalizeOptions { created_at: at(second), ..FinalizeOptions::default() };
        fixture.publish_with(name, &[("x", b"x")], options).unwrap();
    }
    assert_eq!(fixture.store.versions(&scout()).unwrap(), ["c", "a", "b"].map(version));
}

#[test]
fn kept_activation_leaves_current_alone() {
    let fixture = Fixture::new();
    let keep = || FinalizeOptions { activation: Activation::Keep, ..FinalizeOptions::default() };
    let first = fixture.publish_with("v1", &[("x", b"x")], keep()).unwrap();
    assert!(!first.activated);
    assert!(fixture.store.get_current(&scout()).unwrap().is_none());
    let error = fixture.store.require_current(&scout()).unwrap_err();
    assert!(matches!(&error, StoreError::NothingCurrent { versions, .. } if versions == &["v1"]), "{error}");
    assert_eq!(error.exit_code(), exit::NOT_FOUND);

    fixture.publish("v2", &[("x", b"x")]).unwrap();
    let third = fixture.publish_with("v3", &[("x", b"x")], keep()).unwrap();
    assert_eq!((third.activated, third.previous), (false, Some(version("v2"))));
    assert_eq!(fixture.current().version(), &version("v2"));
}

#[test]
fn a_version_is_published_once() {
    let fixture = Fixture::with_v1();
    let error = fixture.publish("v1", &[("x", b"x")]).unwrap_err();
    assert!(matches!(error, StoreError::VersionExists { .. }), "{error}");
    assert_eq!(error.exit_code(), exit::REFUSED);
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
}

#[test]
fn a_staging_that_came_to_nothing_leaves_nothing() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    staging.write(&payload("deep/er/file"), b"x").unwrap();
    fs::set_permissions(staging.path().join("deep"), fs::Permissions::from_mode(0o000)).unwrap();
    assert!(staging.path().ends_with("scout/versions/v1.tmp"));
    staging.discard().unwrap();
    assert_eq!(fs::read_dir(fixture.root()).unwrap().count(), 0, "the agent itself was new");

    fixture.publish("v1", &[("x", b"x")]).unwrap();
    drop(fixture.store.stage_new(&scout(), &version("v2")).unwrap());
    assert!(fixture.leftovers().is_empty());
    assert_eq!(fixture.current().version(), &version("v1"));
}

#[test]
fn an_unfinished_writer_takes_its_file_away() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    let mut writer = staging.writer(&payload("half")).unwrap();
    writer.write_all(b"half of").unwrap();
    drop(writer);
    let mut writer = staging.writer(&payload("whole")).unwrap();
    writer.write_all(b"the whole").unwrap();
    let entry = writer.finish().unwrap();
    assert_eq!((entry.size, entry.sha256), (9, Digest::of(b"the whole")));
    let taken = staging.write(&payload("whole"), b"again").unwrap_err();
    assert!(full_message(&taken).contains("whole"), "{taken}");
    staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(paths(&fixture.current().manifest().files), ["whole"]);
}

#[test]
fn several_threads_may_write_into_one_staging() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let staging = &staging;
            scope.spawn(move || staging.write(&payload(&format!("shard/{i}")), &[i; 1000]).unwrap());
        }
    });
    let published = staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!((published.files, published.bytes), (8, 8000));
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
}

#[test]
fn a_file_changed_after_it_was_hashed_is_hashed_again() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    staging.write(&payload("a"), b"before").unwrap();
    let path = staging.path().join("a");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, b"after!").unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(fixture.current().manifest().files[0].sha256, Digest::of(b"after!"));
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
}

#[test]
fn what_a_foreign_writer_left_is_hashed_where_it_lies() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    let elsewhere = fixture.root().join("elsewhere");
    let place = |name: &str| staging.path().join(name);
    fs::write(&elsewhere, b"linked").unwrap();
    fs::hard_link(&elsewhere, place("linked")).unwrap();
    fs::write(place("plain"), b"plain").unwrap();
    fs::write(place("changed"), b"before").unwrap();
    for (name, bytes) in [("linked", &b"linked"[..]), ("plain", b"plain"), ("changed", b"before")] {
        let entry = staging.hash(&payload(name)).unwrap();
        assert_eq!((entry.size, entry.sha256), (bytes.len() as u64, Digest::of(bytes)), "{name}");
    }
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o222;
    assert_eq!(mode(&place("plain")), 0);
    assert_ne!(mode(&elsewhere), 0, "what is not ours is not touched");
    fs::set_permissions(place("changed"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(place("changed"), b"after!").unwrap();
    assert!(staging.hash(&payload("missing")).is_err());
    staging.finalize(FinalizeOptions::default()).unwrap();
    fs::write(&elsewhere, b"gone!!").unwrap();
    let manifest = fixture.current().manifest().clone();
    for (name, bytes) in [("linked", &b"linked"[..]), ("plain", b"plain"), ("changed", b"after!")] {
        assert_eq!(manifest.file(&payload(name)).unwrap().sha256, Digest::of(bytes), "{name}");
    }
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
}

#[test]
fn many_small_files_are_published_by_one_sync() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    for i in 0..300 {
        staging.write(&payload(&format!("{}/{i}", i % 7)), b"small").unwrap();
    }
    assert_eq!(staging.finalize(FinalizeOptions::default()).unwrap().files, 300);
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
}

#[test]
fn modes_are_those_of_a_shared_store() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    staging.write(&payload("a/b"), b"x").unwrap();
    let foreign = staging.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("tool.sh"), b"x").unwrap();
    fs::set_permissions(foreign.join("tool.sh"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(staging.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let tool = fixture.outside().join("tool");
    fs::write(&tool, b"x").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o750)).unwrap();
    staging.import(&tool, &payload("tool")).unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    let rows = [
        ("", 0o2775),
        (".lock", 0o660),
        ("history.jsonl", 0o660),
        ("versions", 0o2775),
        ("versions/v1", 0o2775),
        ("versions/v1/a", 0o2775),
        ("versions/v1/foreign", 0o2775),
        ("versions/v1/manifest.json", 0o444),
        ("versions/v1/a/b", 0o444),
        ("versions/v1/foreign/tool.sh", 0o540),
        ("versions/v1/tool", 0o554),
    ];
    for (path, expected) in rows {
        let mode = fs::metadata(fixture.agent_dir().join(path)).unwrap().permissions().mode() & 0o7777;
        // The umask may keep others from reading; it never takes from the group.
        assert_eq!(mode & !0o4, expected & !0o4, "{path:?} has mode {mode:o}, expected {expected:o}");
    }
    let root = fs::metadata(fixture.root()).unwrap().permissions().mode() & 0o7777;
    assert_eq!(root, 0o2775, "the root");
}

#[test]
fn the_history_tells_who_moved_what() {
    let fixture = Fixture::with_v1();
    let options = FinalizeOptions {
        actor: Some("trainer@night".into()),
        reason: Some("better labels".into()),
        ..FinalizeOptions::default()
    };
    fixture.publish_with("v2", &[("x", b"x")], options).unwrap();
    let history = fixture.history();
    assert_eq!(history.len(), 2);
    assert_eq!(history[0]["from"], serde_json::Value::Null);
    let last = &history[1];
    for (key, value) in [
        ("action", "publish"),
        ("pointer", "current"),
        ("from", "v1"),
        ("to", "v2"),
        ("by", "trainer@night"),
        ("reason", "better labels"),
    ] {
        assert_eq!(last[key], value, "{key}");
    }
}

#[test]
fn a_stop_on_request_publishes_nothing() {
    for stop_after_bytes in [0, 1, 3_000_000, 5_000_000] {
        let fixture = Fixture::new();
        let done_bytes = Arc::new(AtomicU64::new(0));
        let counter = done_bytes.clone();
        let progress = Progress::new(move |bytes| {
            let done = counter.fetch_add(bytes, Ordering::Relaxed) + bytes;
            if done >= stop_after_bytes { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let store = fixture.store.clone().with_progress(progress);
        let publish = || {
            let staging = store.stage_new(&scout(), &version("v1"))?;
            fs::write(staging.path().join("foreign"), vec![0; 2_000_000]).unwrap();
            staging.write(&payload("ours"), &vec![1; 2_000_000])?;
            staging.finalize(FinalizeOptions::default())
        };
        match publish() {
            Err(error) => {
                assert!(matches!(error, StoreError::Interrupted), "{stop_after_bytes}: {error}");
                assert_eq!(error.exit_code(), exit::INTERRUPTED);
                assert_eq!(fs::read_dir(fixture.root()).unwrap().count(), 0, "{stop_after_bytes}");
            }
            Ok(_) => assert!(stop_after_bytes > 4_000_000, "{stop_after_bytes}: it was published"),
        }
    }
}

#[test]
fn opening_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("a/b/store");
    let error = ModelStore::open(&missing).unwrap_err();
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    let message = error.to_string();
    assert!(message.contains("mkdir -p") && message.contains("a/b/store"), "{message}");
    fs::write(dir.path().join("file"), b"").unwrap();
    assert!(matches!(ModelStore::open(dir.path().join("file")), Err(StoreError::RootNotFound { .. })));
    ModelStore::create(&missing).unwrap();
    ModelStore::create(&missing).unwrap();
    assert!(ModelStore::open(&missing).unwrap().agents().unwrap().is_empty());
}

#[test]
fn what_is_missing_names_what_is_near() {
    let fixture = Fixture::with_v1();
    let error = fixture.store.require_current(&agent("scuot")).unwrap_err();
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    assert!(error.to_string().contains("did you mean scout?"), "{error}");
    let error = fixture.store.verify(&scout(), &version("v11")).unwrap_err();
    assert!(error.to_string().contains("did you mean v1?"), "{error}");
    let error = fixture.store.versions(&agent("zebra")).unwrap_err();
    assert!(!error.to_string().contains("did you mean"), "{error}");
    assert!(fixture.store.get_current(&agent("zebra")).unwrap().is_none());
    assert!(fixture.store.get_version(&scout(), &version("v9")).unwrap().is_none());
}

#[test]
fn a_leased_version_says_so_to_a_lock() {
    let fixture = Fixture::with_v1();
    let lease = fixture.current().lease().unwrap();
    let second = fixture.current().lease().unwrap();
    let dir = fs::File::open(fixture.agent_dir().join("versions/v1")).unwrap();
    assert!(dir.try_lock().is_err(), "leased twice");
    drop((lease, second));
    dir.try_lock().unwrap();
}

#[test]
fn a_manifest_that_nobody_could_read_is_not_published() {
    let deep = (0..200).fold(serde_json::Value::Null, |inner, _| serde_json::Value::Array(vec![inner]));
    let rows = [
        ("too long", "x".repeat(65 * 1024 * 1024).into(), "64 MiB"),
        ("too deep", deep, "could not be read again"),
    ];
    for (row, value, reason) in rows {
        let fixture = Fixture::with_v1();
        let metadata = [("note".to_owned(), value)].into_iter().collect();
        let options = FinalizeOptions { metadata, ..FinalizeOptions::default() };
        let error = fixture.publish_with("v2", &[("x", b"x")], options).unwrap_err();
        assert_eq!(error.exit_code(), exit::REFUSED, "{row}: {error}");
        let message = error.to_string();
        assert!(message.contains("manifest.json") && message.contains(reason), "{row}: {message}");
        assert_eq!(fixture.current().version(), &version("v1"), "{row}");
        assert!(fixture.leftovers().is_empty(), "{row}: {:?}", fixture.leftovers());
    }
}

#[test]
fn figures_of_a_gate_are_no_reason_to_refuse() {
    let fixture = Fixture::new();
    let figures: Vec<f64> = (1..2000).map(|i| (f64::from(i)).sqrt() / 7e9).collect();
    let metadata = [("figures".to_owned(), figures.into())].into_iter().collect();
    let options = FinalizeOptions { metadata, ..FinalizeOptions::default() };
    fixture.publish_with("v1", &[("x", b"x")], options).unwrap();
}

#[test]
fn a_staging_that_somebody_replaced_is_neither_published_nor_removed() {
    let fixture = Fixture::with_v1();
    for finalize in [true, false] {
        let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
        staging.write(&payload("a"), b"a").unwrap();
        let path = staging.path().to_owned();
        let moved = fixture.outside().join(format!("moved-{finalize}"));
        fs::rename(&path, &moved).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("foreign"), b"x").unwrap();
        // Without its lock it would be a dead writer's, and cleared.
        let theirs = fs::File::open(&path).unwrap();
        rustix::fs::flock(&theirs, rustix::fs::FlockOperation::LockExclusive).unwrap();
        if finalize {
            let error = staging.finalize(FinalizeOptions::default()).unwrap_err();
            assert!(error.to_string().contains("somebody moved or replaced it"), "{error}");
        } else {
            staging.discard().unwrap();
        }
        assert_eq!(fs::read(path.join("foreign")).unwrap(), b"x", "it is not ours to remove");
        assert!(!fixture.agent_dir().join("versions/v2").exists());
        assert_eq!(fixture.current().version(), &version("v1"));
        fs::remove_dir_all(&path).unwrap();
    }
}

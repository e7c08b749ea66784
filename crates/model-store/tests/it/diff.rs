use std::fs;
use std::os::unix::fs::symlink;

use model_store::{Digest, FinalizeOptions, VersionDiff, exit};
use serde_json::json;

use crate::fixture::{Fixture, paths, payload, scout, version};

type Files<'a> = &'a [(&'a str, &'a [u8])];

fn diff(fixture: &Fixture, old: &str, new: &str) -> VersionDiff {
    let open = |name| fixture.store.require_version(&scout(), &version(name)).unwrap();
    fixture.store.diff(&open(old), &open(new)).unwrap()
}

/// Files of v1, files of v2, and what is added, removed, changed and renamed (from, to).
struct Row<'a> {
    name: &'a str,
    old: Files<'a>,
    new: Files<'a>,
    added: &'a [&'a str],
    removed: &'a [&'a str],
    changed: &'a [&'a str],
    renamed: &'a [(&'a str, &'a str)],
}

const NOTHING: Row<'_> =
    Row { name: "", old: &[], new: &[], added: &[], removed: &[], changed: &[], renamed: &[] };

#[test]
fn files() {
    let rows = [
        Row {
            name: "the same",
            old: &[("a", b"1"), ("b", b"2")],
            new: &[("a", b"1"), ("b", b"2")],
            ..NOTHING
        },
        Row {
            name: "one of each",
            old: &[("a", b"1"), ("c", b"3"), ("old/d", b"4"), ("z", b"")],
            new: &[("a", b"one"), ("b", b"2"), ("new/d", b"4"), ("z", b"")],
            added: &["b"],
            removed: &["c"],
            changed: &["a"],
            renamed: &[("old/d", "new/d")],
        },
        Row {
            name: "a copy beside is added, not renamed",
            old: &[("a", b"1")],
            new: &[("a", b"1"), ("b", b"1")],
            added: &["b"],
            ..NOTHING
        },
        Row {
            name: "each file is renamed once",
            old: &[("a", b"1"), ("b", b"1"), ("x", b"x")],
            new: &[("c", b"1"), ("x", b"x")],
            removed: &["b"],
            renamed: &[("a", "c")],
            ..NOTHING
        },
        Row {
            name: "two that changed places",
            old: &[("a", b"1"), ("b", b"2")],
            new: &[("a", b"2"), ("b", b"1")],
            changed: &["a", "b"],
            ..NOTHING
        },
        Row {
            name: "empty files are not matched",
            old: &[("a", b""), ("x", b"x")],
            new: &[("b", b""), ("x", b"x")],
            added: &["b"],
            removed: &["a"],
            ..NOTHING
        },
    ];
    for row in rows {
        let fixture = Fixture::new();
        fixture.publish("v1", row.old).unwrap();
        fixture.publish("v2", row.new).unwrap();
        let found = diff(&fixture, "v1", "v2");
        assert_eq!(paths(&found.added), row.added, "{}: added", row.name);
        assert_eq!(paths(&found.removed), row.removed, "{}: removed", row.name);
        let changed: Vec<_> = found.changed.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(changed, row.changed, "{}: changed", row.name);
        let renamed: Vec<_> =
            found.renamed.iter().map(|r| (r.path.old.as_str(), r.path.new.as_str())).collect();
        assert_eq!(renamed, row.renamed, "{}: renamed", row.name);
        let (old, new) = (row.old.len(), row.new.len());
        let both = found.unchanged_files + changed.len() + renamed.len();
        assert_eq!(
            (both + row.removed.len(), both + row.added.len()),
            (old, new),
            "{}: none is lost",
            row.name
        );
        assert_eq!(found.is_empty(), row.name == "the same", "{}", row.name);
        assert!(diff(&fixture, "v2", "v2").is_empty(), "{}: itself", row.name);
    }
}

#[test]
fn sizes_and_digests_are_told() {
    let fixture = Fixture::new();
    fixture.publish("v1", &[("a", b"1"), ("same", b"12345")]).unwrap();
    fixture.publish("v2", &[("a", b"one"), ("same", b"12345")]).unwrap();
    let found = serde_json::to_value(diff(&fixture, "v1", "v2")).unwrap();
    let (old, new) = (Digest::of(b"1"), Digest::of(b"one"));
    assert_eq!(
        found["changed"],
        json!([{"path": "a", "size": {"old": 1, "new": 3}, "sha256": {"old": old, "new": new}}])
    );
    assert_eq!((&found["unchanged_files"], &found["unchanged_bytes"]), (&json!(1), &json!(5)));
    assert_eq!(found["versions"]["new"], json!({"agent": "scout", "version": "v2", "hashed_now": false}));
}

#[test]
fn links() {
    let fixture = Fixture::new();
    for (name, links) in [
        ("v1", &[("gone", "a"), ("moved", "a"), ("same", "a")]),
        ("v2", &[("moved", "b"), ("new", "b"), ("same", "a")]),
    ] {
        let staging = fixture.store.stage_new(&scout(), &version(name)).unwrap();
        staging.write(&payload("a"), b"a").unwrap();
        staging.write(&payload("b"), b"b").unwrap();
        for (link, target) in links {
            symlink(target, staging.path().join(link)).unwrap();
        }
        staging.finalize(FinalizeOptions::default()).unwrap();
    }
    let found = diff(&fixture, "v1", "v2");
    assert_eq!((found.links_added[0].path.as_str(), found.links_added.len()), ("new", 1));
    assert_eq!((found.links_removed[0].path.as_str(), found.links_removed.len()), ("gone", 1));
    let change = &found.links_changed[0];
    assert_eq!((change.path.as_str(), &*change.target.old, &*change.target.new), ("moved", "a", "b"));
    assert_eq!(found.links_changed.len(), 1);
    assert!(!found.is_empty() && found.changed.is_empty());
}

#[test]
fn a_version_of_the_old_helper_is_hashed_now() {
    let fixture = Fixture::new();
    fixture.publish("v2", &[("a", b"1"), ("b", b"2")]).unwrap();
    let old = fixture.agent_dir().join("versions/v1");
    fs::create_dir(&old).unwrap();
    fs::write(old.join("a"), b"1").unwrap();
    symlink("/etc/passwd", old.join("out")).unwrap();
    let manifest = json!({"version": "v1", "checksum": Digest::of(b"a1"), "metadata": {}});
    fs::write(old.join("manifest.json"), manifest.to_string()).unwrap();
    let found = diff(&fixture, "v1", "v2");
    assert!(found.versions.old.hashed_now && !found.versions.new.hashed_now);
    assert_eq!((paths(&found.added), found.unchanged_files), (vec!["b"], 1));
    assert_eq!(found.not_compared[0].path(), "out");

    fs::create_dir(fixture.agent_dir().join("v0")).unwrap();
    fs::write(fixture.agent_dir().join("v0/a"), b"1").unwrap();
    let found = diff(&fixture, "v0", "v2");
    assert!(found.versions.old.hashed_now && found.unchanged_files == 1, "{found:?}");
}

#[test]
fn a_newer_format_cannot_be_compared() {
    let fixture = Fixture::with_v1();
    let newer = fixture.agent_dir().join("versions/v2");
    fs::create_dir(&newer).unwrap();
    let manifest = json!({"version": "v2", "checksum": Digest::of(b""), "metadata": {}, "format": 2});
    fs::write(newer.join("manifest.json"), manifest.to_string()).unwrap();
    let open = |name| fixture.store.require_version(&scout(), &version(name)).unwrap();
    for (old, new) in [("v1", "v2"), ("v2", "v1")] {
        let error = fixture.store.diff(&open(old), &open(new)).unwrap_err();
        assert_eq!(error.exit_code(), exit::REFUSED, "{old}, {new}: {error}");
    }
}

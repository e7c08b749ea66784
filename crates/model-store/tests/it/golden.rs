//! Stores as they lie on disk, to be read for ever. Each row says what one of tests/golden is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model_store::{AgentEntry, Doctoring, ModelStore, MoveOptions, Policy, StoreError};

use crate::fixture::{agent, full_message, scout, version};

/// An exit code, and a part of the message.
type Refusal = (u8, &'static str);

struct Golden {
    name: &'static str,
    agents: &'static [&'static str],
    /// Of `scout`, in the order of publication.
    versions: &'static [&'static str],
    /// Of `scout`.
    current: Result<&'static str, Refusal>,
    /// What `verify` finds in each version that is not sound.
    damage: &'static [(&'static str, Result<&'static [&'static str], Refusal>)],
    /// Where a rollback leads.
    rollback: Result<&'static str, Refusal>,
    /// What a collection that keeps no more than it must would retire.
    retired: Result<&'static [&'static str], Refusal>,
}

/// What most of them are: v1 and v2, which is current.
const PLAIN: Golden = Golden {
    name: "",
    agents: &["scout"],
    versions: &["v1", "v2"],
    current: Ok("v2"),
    damage: &[],
    rollback: Ok("v1"),
    retired: Ok(&["v1"]),
};

const GOLDEN: &[Golden] = &[
    Golden {
        name: "format-1",
        agents: &["news-scout → scout", "scout", "writer"],
        versions: &["v0", "v1", "v2", "v3"],
        retired: Ok(&["v0"]),
        ..PLAIN
    },
    Golden { name: "python-helper", rollback: Err((3, "names no version that was current before")), ..PLAIN },
    Golden {
        name: "hub-snapshot",
        versions: &["v1"],
        current: Ok("v1"),
        rollback: Err((3, "names no version")),
        retired: Ok(&[]),
        ..PLAIN
    },
    Golden {
        name: "toy-script",
        agents: &["memory", "scout"],
        versions: &["v1"],
        current: Ok("v1"),
        damage: &[("v1", Ok(&["manifest.json is missing"]))],
        rollback: Err((3, "names no version")),
        retired: Ok(&[]),
    },
    Golden {
        name: "flipped-byte",
        damage: &[("v2", Ok(&["config.json has other bytes than were published", "the checksum is"]))],
        ..PLAIN
    },
    Golden {
        name: "missing-file",
        damage: &[("v1", Ok(&["weights/model.bin is missing", "the checksum is"]))],
        rollback: Err((4, "weights/model.bin: is missing")),
        ..PLAIN
    },
    Golden {
        name: "extra-file",
        damage: &[("v2", Ok(&["weights/optimizer.bin is not in the manifest", "the checksum is"]))],
        ..PLAIN
    },
    Golden {
        name: "dangling-current",
        current: Err((4, "points at v9, which is not there")),
        rollback: Ok("v2"),
        retired: Ok(&[]),
        ..PLAIN
    },
    Golden {
        name: "current-outside",
        current: Err((4, "outside this agent")),
        rollback: Ok("v2"),
        retired: Ok(&[]),
        ..PLAIN
    },
    Golden { name: "torn-history", ..PLAIN },
    Golden { name: "lying-version", damage: &[("v2", Ok(&["manifest.json is of version v1"]))], ..PLAIN },
    Golden {
        name: "unreadable-manifest",
        versions: &["v2", "v1"],
        current: Err((4, "is not a manifest")),
        damage: &[("v2", Err((4, "is not a manifest")))],
        ..PLAIN
    },
    Golden {
        name: "format-2",
        versions: &["v0", "v2", "v1"],
        damage: &[("v0", Err((6, "is of format 2"))), ("v2", Err((6, "use a newer model-store")))],
        ..PLAIN
    },
];

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// A copy to work on.
fn open(name: &str) -> (tempfile::TempDir, ModelStore) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap().join("store");
    let sealed = !["python-helper", "hub-snapshot", "toy-script"].contains(&name);
    copy(&golden_dir().join(name), &root, sealed);
    if name == "toy-script" {
        for agent in ["scout", "memory"] {
            symlink(root.join(agent).join("v1"), root.join(agent).join("current")).unwrap();
        }
    }
    let store = ModelStore::open(root).unwrap();
    (dir, store)
}

fn copy(from: &Path, to: &Path, sealed: bool) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o2775)).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&from, &to, sealed);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
            let mode = match (entry.file_name() == "history.jsonl", sealed) {
                (true, _) => 0o660,
                (_, true) => 0o444,
                (_, false) => 0o644,
            };
            fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// Every path with its bytes, a link with its target.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut left) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        if path.is_symlink() {
            found.insert(path.clone(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
        } else if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[track_caller]
fn assert_refused(row: &str, error: &StoreError, (code, part): Refusal) {
    let said = full_message(error);
    assert_eq!(error.exit_code(), code, "{row}: {said}");
    assert!(said.contains(part), "{row}: {part:?} is not in {said:?}");
}

#[test]
fn every_golden_store_is_in_the_table() {
    let entries = fs::read_dir(golden_dir()).unwrap().map(|entry| entry.unwrap());
    let mut there: Vec<_> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let mut rows: Vec<_> = GOLDEN.iter().map(|golden| golden.name.to_owned()).collect();
    there.sort();
    rows.sort();
    assert_eq!(there, rows);
}

#[test]
fn they_are_listed_read_and_verified() {
    for golden in GOLDEN {
        let row = golden.name;
        let (_dir, store) = open(row);
        let before = tree(store.root());
        let agents: Vec<_> = store.agents().unwrap().iter().map(shown).collect();
        assert_eq!(agents, golden.agents, "{row}");
        let versions = store.versions(&scout()).unwrap();
        assert_eq!(
            versions.iter().map(model_store::VersionName::as_str).collect::<Vec<_>>(),
            golden.versions,
            "{row}"
        );
        match (store.get_current(&scout()), golden.current) {
            (Ok(found), Ok(expected)) => {
                let found = found.unwrap_or_else(|| panic!("{row}: nothing is current"));
                assert_eq!(found.version().as_str(), expected, "{row}");
            }
            (Err(error), Err(refusal)) => assert_refused(row, &error, refusal),
            (found, _) => panic!("{row}: {found:?}"),
        }
        for version in &versions {
            let row = format!("{row}, {version}");
            let expected = golden.damage.iter().find(|(damaged, _)| *damaged == version.as_str());
            match (store.verify(&scout(), version), expected.map_or(Ok(&[][..]), |(_, expected)| *expected)) {
                (Ok(report), Ok(expected)) => {
                    let said: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
                    assert_eq!(said.len(), expected.len(), "{row}: {said:?}");
                    for (said, expected) in said.iter().zip(expected) {
                        assert!(said.contains(expected), "{row}: {expected:?} is not in {said:?}");
                    }
                }
                (Err(error), Err(refusal)) => assert_refused(&row, &error, refusal),
                (found, _) => panic!("{row}: {found:?}"),
            }
        }
        assert_eq!(tree(store.root()), before, "{row}: reading changed it");
    }
}

fn shown(entry: &AgentEntry) -> String {
    match entry {
        AgentEntry::Agent(name) => name.to_string(),
        AgentEntry::Alias { alias, target } => format!("{alias} → {target}"),
    }
}

/// Published files, which no operation may change.
fn published(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let is_published = |path: &Path| {
        let inside = path.strip_prefix(root).unwrap();
        inside.components().count() > 2 && !inside.starts_with("scout/refs")
    };
    tree(root).into_iter().filter(|(path, _)| is_published(path)).collect()
}

#[test]
fn they_are_rolled_back() {
    for golden in GOLDEN {
        let row = golden.name;
        let (_dir, store) = open(row);
        let (before, history) = (published(store.root()), history(&store));
        match (store.rollback(&scout(), None, &MoveOptions::default()), golden.rollback) {
            (Ok(moved), Ok(expected)) => {
                assert_eq!(moved.to, Some(version(expected)), "{row}");
                assert_eq!(store.require_current(&scout()).unwrap().version(), &version(expected), "{row}");
            }
            (Err(error), Err(refusal)) => assert_refused(row, &error, refusal),
            (found, _) => panic!("{row}: {found:?}"),
        }
        assert_eq!(published(store.root()), before, "{row}: a version was changed");
        let whole = history.rfind('\n').map_or("", |at| &history[..=at]);
        let now = self::history(&store);
        assert!(now.starts_with(whole) && (now.is_empty() || now.ends_with('\n')), "{row}: {now}");
    }
}

fn history(store: &ModelStore) -> String {
    fs::read_to_string(store.root().join("scout/history.jsonl")).unwrap_or_default()
}

#[test]
fn they_are_collected() {
    let policy = Policy { keep: 0, grace: Duration::ZERO, ..Policy::default() };
    for golden in GOLDEN {
        let row = golden.name;
        let collect = || {
            let (dir, store) = open(row);
            let expected = tree(store.root());
            let result = store.gc(&[scout()], &policy, &MoveOptions::default());
            (dir, store, expected, result)
        };
        // A child that another test has just forked has the files of this process until it becomes another program, and
        // what any process has open stays: then once more, with a store of its own.
        let (_dir, store, mut expected, result) = (0..5)
            .map(|_| collect())
            .find(|(.., result)| match (result, golden.retired) {
                (Ok(collected), Ok(retired)) => collected.retired.len() == retired.len(),
                _ => true,
            })
            .unwrap_or_else(collect);
        match (result, golden.retired) {
            (Ok(collected), Ok(retired)) => {
                assert!(collected.problems.is_empty(), "{row}: {:?}", collected.problems);
                let mut gone: Vec<_> = collected.retired.iter().map(|gone| gone.version.as_str()).collect();
                gone.sort_unstable();
                assert_eq!(gone, retired, "{row}: {:#?}", collected.plan);
                for version in retired {
                    let dir = store.root().join("scout/versions").join(version);
                    expected.retain(|path, _| !path.starts_with(&dir));
                }
            }
            (Err(error), Err(refusal)) => assert_refused(row, &error, refusal),
            (found, _) => panic!("{row}: {found:?}"),
        }
        let control = |path: &Path| path.ends_with("history.jsonl") || path.ends_with(".lock");
        let mut left = tree(store.root());
        left.retain(|path, _| !control(path));
        expected.retain(|path, _| !control(path));
        assert_eq!(left, expected, "{row}: more was changed than retired");
    }
}

/// Which check complains, of what, and a part of what it says.
type Complained = (&'static str, &'static str, &'static str);

/// What the doctor says of each store that is not in order.
const COMPLAINTS: &[(&str, &[Complained])] = &[
    (
        "python-helper",
        &[
            ("old-layout", "scout/versions/v1", "by the Python helper"),
            ("old-layout", "scout/versions/v2", "by the Python helper"),
        ],
    ),
    ("hub-snapshot", &[("old-layout", "scout/versions/v1", "by the Python helper")]),
    (
        "toy-script",
        &[
            ("old-layout", "memory/current", "absolute link"),
            ("old-layout", "memory/v1", "not in versions/"),
            ("old-layout", "memory/v1", "by the Python helper"),
            ("old-layout", "scout/current", "absolute link"),
            ("old-layout", "scout/v1", "not in versions/"),
        ],
    ),
    (
        "dangling-current",
        &[
            ("pointers", "scout/current", "points at v9, which is not there"),
            ("history", "scout/history.jsonl", "says that current is at v2"),
        ],
    ),
    ("current-outside", &[("pointers", "scout/current", "outside this agent")]),
    ("torn-history", &[("history", "scout/history.jsonl", "did not finish")]),
    ("unreadable-manifest", &[("versions", "scout/versions/v2", "is not a manifest")]),
    (
        "format-2",
        &[
            ("versions", "scout/versions/v0", "is of format 2"),
            ("versions", "scout/versions/v2", "is of format 2"),
        ],
    ),
];

#[test]
fn they_are_diagnosed() {
    // What these say is of this host.
    const OF_THE_HOST: [&str; 4] = ["root", "file-system", "space", "clock"];
    for golden in GOLDEN {
        let row = golden.name;
        let (_dir, store) = open(row);
        let before = tree(store.root());
        let found = store.doctor(Doctoring::Look).unwrap();
        let found: Vec<_> = found.complaints.iter().filter(|one| !OF_THE_HOST.contains(&one.check)).collect();
        let expected =
            COMPLAINTS.iter().find(|(name, _)| *name == row).map_or(&[][..], |(_, expected)| expected);
        assert_eq!(found.len(), expected.len(), "{row}: {found:#?}");
        for (found, (check, subject, part)) in found.iter().zip(expected) {
            assert_eq!((found.check, &*found.subject), (*check, &*store.root().join(subject)), "{row}");
            assert!(found.what.contains(part), "{row}: {part:?} is not in {:?}", found.what);
        }
        assert_eq!(tree(store.root()), before, "{row}: looking changed it");
    }
}

#[test]
fn legacy_versions_are_what_they_were() {
    let (_dir, store) = open("toy-script");
    let report = store.verify(&agent("memory"), &version("v1")).unwrap();
    assert!(report.is_ok() && report.legacy, "{report:?}");
    assert!(store.require_current(&agent("memory")).unwrap().is_legacy_layout());
    let (_dir, store) = open("python-helper");
    let report = store.verify(&scout(), &version("v2")).unwrap();
    assert!(report.legacy && report.files_checked == 4, "{report:?}");
    let (_dir, store) = open("hub-snapshot");
    let current = store.require_current(&scout()).unwrap();
    let inside = "models--org--name/snapshots/c9745ed1d9f207416be6d2e6f8de32d1f16199bf/config.json";
    assert_eq!(current.open(&inside.parse().unwrap()).unwrap().metadata().unwrap().len(), 23);
}

#[test]
fn refs_and_aliases_of_format_1_lead_where_they_did() {
    let (_dir, store) = open("format-1");
    let refs = store.refs(&scout()).unwrap();
    let shown: Vec<_> = refs.iter().map(|found| (found.name.as_str(), found.version.as_str())).collect();
    assert_eq!(shown, [("candidate", "v3"), ("champion", "v1")]);
    let current = store.require_current(&agent("news-scout")).unwrap();
    assert_eq!((current.agent(), current.version()), (&scout(), &version("v2")));
    assert_eq!(store.history(&scout()).unwrap().len(), 6);
    let error = store.stage_new(&agent("news-scout"), &version("v9")).unwrap_err();
    assert!(error.to_string().contains("write to scout instead"), "{error}");
}

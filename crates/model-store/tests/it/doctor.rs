//! What the doctor finds, and what it puts right.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use model_store::{Complaint, Doctoring, Fix, MoveOptions, Severity};

use crate::fixture::{Fixture, scout, version};

/// Complaints about the store, without what is so of this machine.
fn look(fixture: &Fixture, doctoring: Doctoring) -> Vec<Complaint> {
    let diagnosis = fixture.store.doctor(doctoring).unwrap();
    let of_the_host = ["space", "file-system"];
    diagnosis.complaints.into_iter().filter(|complaint| !of_the_host.contains(&complaint.check)).collect()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

struct Row {
    name: &'static str,
    harm: fn(&Path),
    /// Check, severity, whether `--fix` puts it right, and what is said.
    expected: &'static [(&'static str, Severity, bool, &'static str)],
}

const ROWS: &[Row] = &[
    Row {
        name: "a dead writer's staging",
        harm: |agent| fs::create_dir_all(agent.join("versions/v9.tmp/deep")).unwrap(),
        expected: &[("leftovers", Severity::Warning, true, "writer died")],
    },
    Row {
        name: "temporary links",
        harm: |agent| {
            symlink("versions/v9", agent.join(".current-4711")).unwrap();
            symlink("../versions/v9", agent.join("refs/.current-4711")).unwrap();
        },
        expected: &[
            ("leftovers", Severity::Warning, true, "not finished"),
            ("leftovers", Severity::Warning, true, "not finished"),
        ],
    },
    Row {
        name: "trash",
        harm: |agent| {
            fs::create_dir_all(agent.join(".trash/v0")).unwrap();
            chmod(&agent.join(".trash"), 0o2775);
            fs::write(agent.join(".trash/v0/a"), b"x").unwrap();
            fs::write(agent.join(".trash/v1-4711"), b"x").unwrap();
        },
        expected: &[
            ("leftovers", Severity::Warning, true, "its remover died"),
            ("leftovers", Severity::Warning, true, "its remover died"),
        ],
    },
    Row {
        name: "modes of directories and files",
        harm: |agent| {
            chmod(&agent.join("versions"), 0o755);
            chmod(&agent.join("history.jsonl"), 0o644);
            chmod(agent.parent().unwrap(), 0o755);
        },
        expected: &[
            ("root", Severity::Warning, true, "has mode 755 and not 2775"),
            ("directories", Severity::Warning, true, "has mode 755 and not 2775"),
            ("directories", Severity::Warning, true, "has mode 644 and not 660"),
        ],
    },
    Row {
        name: "a published file that can be written to",
        harm: |agent| chmod(&agent.join("versions/v1/config.json"), 0o664),
        expected: &[("read-only", Severity::Warning, true, "has 1 files that somebody may write to")],
    },
    Row {
        name: "a published directory that anybody may write to",
        harm: |agent| chmod(&agent.join("versions/v1"), 0o777),
        expected: &[("read-only", Severity::Error, true, "1 directories that anybody may write to")],
    },
    Row {
        name: "an absolute current",
        harm: |agent| {
            fs::remove_file(agent.join("current")).unwrap();
            symlink(agent.join("versions/v2"), agent.join("current")).unwrap();
        },
        expected: &[("old-layout", Severity::Warning, true, "absolute link")],
    },
    Row {
        name: "a dangling current",
        harm: |agent| {
            fs::remove_file(agent.join("current")).unwrap();
            symlink("versions/v9", agent.join("current")).unwrap();
        },
        expected: &[
            ("pointers", Severity::Error, false, "points at v9, which is not there"),
            // The history is told where the link is.
            ("history", Severity::Warning, true, "says that current is at v2, and it is at v9"),
        ],
    },
    Row {
        name: "a current that leads out",
        harm: |agent| {
            fs::remove_file(agent.join("current")).unwrap();
            symlink("/etc/passwd", agent.join("current")).unwrap();
        },
        expected: &[("pointers", Severity::Error, false, "which is outside this agent")],
    },
    Row {
        name: "a dangling ref",
        harm: |agent| symlink("../versions/v9", agent.join("refs/old")).unwrap(),
        expected: &[("pointers", Severity::Error, false, "points at v9, which is not there")],
    },
    Row {
        name: "aliases that lead nowhere",
        harm: |agent| {
            let root = agent.parent().unwrap();
            symlink("gone", root.join("old-scout")).unwrap();
            symlink("/etc", root.join("outside")).unwrap();
            symlink("scout", root.join("news-scout")).unwrap();
        },
        expected: &[
            ("aliases", Severity::Warning, false, "is an alias of gone, which is not there"),
            ("aliases", Severity::Warning, false, "which is not an agent of this store"),
        ],
    },
    Row {
        name: "a torn history",
        harm: |agent| {
            let path = agent.join("history.jsonl");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, text + "{\"at").unwrap();
        },
        expected: &[("history", Severity::Warning, true, "did not finish")],
    },
    Row {
        name: "a directory that nobody published",
        harm: |agent| fs::create_dir(agent.join("versions/by-hand")).unwrap(),
        expected: &[("versions", Severity::Warning, false, "has no manifest.json")],
    },
    Row {
        name: "a manifest of tomorrow",
        harm: |agent| {
            let path = agent.join("versions/v1/manifest.json");
            let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            manifest["created_at"] = "2199-01-01T00:00:00Z".into();
            fs::remove_file(&path).unwrap();
            fs::write(&path, manifest.to_string()).unwrap();
        },
        expected: &[("clock", Severity::Warning, false, "still to come")],
    },
    Row {
        name: "a legacy manifest, and the old layout",
        harm: |agent| {
            let legacy =
                format!(r#"{{"version": "v1", "checksum": "{}", "metadata": {{}}}}"#, "0".repeat(64));
            let path = agent.join("versions/v1/manifest.json");
            fs::remove_file(&path).unwrap();
            fs::write(&path, legacy).unwrap();
            fs::create_dir(agent.join("v0")).unwrap();
        },
        expected: &[
            ("old-layout", Severity::Note, false, "old toy script"),
            ("old-layout", Severity::Note, false, "Python helper"),
        ],
    },
];

#[test]
fn everything_is_found_and_what_can_be_is_put_right() {
    for Row { name, harm, expected } in ROWS {
        let fixture = Fixture::with_v1();
        fixture.publish("v2", &[("config.json", b"{}")]).unwrap();
        fixture
            .store
            .tag(&scout(), &"champion".parse().unwrap(), &version("v1"), &MoveOptions::default())
            .unwrap();
        assert_eq!(look(&fixture, Doctoring::Look), [], "{name}: before");
        harm(&fixture.agent_dir());
        let found = look(&fixture, Doctoring::Look);
        let said: Vec<_> =
            found.iter().map(|one| (one.check, one.severity, one.fix == Fix::Possible)).collect();
        let wanted: Vec<_> =
            expected.iter().map(|(check, severity, fix, _)| (*check, *severity, *fix)).collect();
        assert_eq!(said, wanted, "{name}: {found:?}");
        for (complaint, (.., words)) in found.iter().zip(*expected) {
            assert!(complaint.what.contains(words), "{name}: {complaint:?} lacks {words:?}");
        }
        let fixed = look(&fixture, Doctoring::Fix);
        for complaint in fixed.iter().filter(|complaint| complaint.fix != Fix::ByHand) {
            assert_eq!(complaint.fix, Fix::Done, "{name}: {complaint:?}");
        }
        let left = look(&fixture, Doctoring::Look);
        let by_hand = expected.iter().filter(|(_, _, fix, _)| !fix).count();
        assert_eq!(left.len(), by_hand, "{name}: {left:?}");
        // Nothing that was published is lost.
        for version in ["v1", "v2"] {
            assert!(
                fixture.agent_dir().join("versions").join(version).join("config.json").exists(),
                "{name}"
            );
        }
    }
}

#[test]
fn what_a_living_writer_has_is_no_leftover() {
    let fixture = Fixture::with_v1();
    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    assert_eq!(look(&fixture, Doctoring::Fix), []);
    assert!(staging.path().exists());
}

#[test]
fn a_group_is_handed_down() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may give files away");
        return;
    }
    let fixture = Fixture::with_v1();
    std::os::unix::fs::chown(fixture.root(), None, Some(54_321)).unwrap();
    let found = look(&fixture, Doctoring::Look);
    assert!(
        found.iter().all(|one| one.check == "directories" && one.what.contains("the store to 54321")),
        "{found:?}"
    );
    let fixed = look(&fixture, Doctoring::Fix);
    assert!(fixed.iter().all(|complaint| complaint.fix == Fix::Done), "{fixed:?}");
    assert_eq!(look(&fixture, Doctoring::Look), []);
}

#[test]
fn a_store_in_memory_is_said_to_be_volatile() {
    let fixture = Fixture::new();
    let at = fixture.outside();
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&at).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: cannot mount here");
        return;
    }
    let complaints = model_store::ModelStore::open(&at).and_then(|store| store.doctor(Doctoring::Look));
    let _ = std::process::Command::new("umount").arg("--lazy").arg(&at).status();
    let complaints = complaints.unwrap().complaints;
    assert!(complaints.iter().any(|one| one.what.contains("outlives a reboot")), "{complaints:?}");
}

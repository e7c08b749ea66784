//! Verifying on a schedule, and mending what is found.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::desk::{Desk, agent, text, version};

/// `scout` with v1 and v2, whose `sub/vocab.txt` has the same bytes and whose `config.json` has not.
fn two() -> Desk {
    let desk = Desk::new();
    desk.publish("scout", "v1");
    desk.publish("scout", "v2");
    desk
}

const LOST: &str = "scout/versions/v1/config.json";
const ELSEWHERE_TOO: &str = "scout/versions/v1/sub/vocab.txt";

#[test]
fn damage_is_mended_from_another_version_or_marked() {
    type Break = fn(&Desk);
    type Row = (&'static str, Break, &'static [&'static str], i32, &'static [&'static str]);
    let rows: [Row; 7] = [
        ("nothing", |_| (), &["repair", "scout", "v1"], 0, &["ok       scout/v1"]),
        (
            "a bit elsewhere too",
            |desk| desk.flip_a_bit(ELSEWHERE_TOO),
            &["repair", "scout", "v1"],
            0,
            &["mended   scout/v1   2 files", "mended     sub/vocab.txt: its bytes came from scout/v2\n"],
        ),
        (
            "a file elsewhere too, by verify",
            |desk| fs::remove_file(desk.root().join(ELSEWHERE_TOO)).unwrap(),
            &["verify", "--repair"],
            0,
            &["mended   scout/v1", "its bytes came from scout/v2", "ok       scout/v2"],
        ),
        (
            "a bit that nobody else has",
            |desk| desk.flip_a_bit(LOST),
            &["repair", "scout"],
            4,
            &[
                "corrupt  scout/v1",
                "config.json has other bytes",
                "not mended config.json: no other version holds a sound copy",
                "quarantined",
                "next       restore the files from a backup, then model-store repair scout v1",
                "ok       scout/v2",
            ],
        ),
        (
            "a mode",
            |desk| {
                let file = desk.root().join(LOST);
                fs::set_permissions(file, fs::Permissions::from_mode(0o666)).unwrap();
            },
            &["verify", "scout", "v1", "--repair"],
            0,
            &["mended     config.json: its mode was set right"],
        ),
        (
            "a stray file",
            |desk| fs::write(desk.root().join("scout/versions/v1/stray"), b"x").unwrap(),
            &["repair", "scout", "v1"],
            4,
            &["stray is not in the manifest", "next       model-store repair scout v1 --remove-unlisted"],
        ),
        (
            "a stray file that may go",
            |desk| fs::write(desk.root().join("scout/versions/v1/stray"), b"x").unwrap(),
            &["repair", "scout", "v1", "--remove-unlisted", "--reason", "stray"],
            0,
            &["mended     stray: removed, since the manifest does not list it"],
        ),
    ];
    for (row, break_it, arguments, code, parts) in rows {
        let desk = two();
        break_it(&desk);
        let run = desk.run(arguments).ended(code);
        for part in parts {
            assert!(run.stdout.contains(part), "{row}: {part:?} is not in\n{}", run.stdout);
        }
        assert_eq!(run.stderr, "", "{row}");
        let again = desk.run(&["verify"]);
        assert_eq!(again.code, Some(code), "{row}: {}", again.stdout);
    }
}

#[test]
fn a_quarantine_ends_when_the_bytes_are_back() {
    let desk = two();
    let sound = fs::read(desk.root().join(LOST)).unwrap();
    desk.flip_a_bit(LOST);
    let json = desk.run(&["repair", "scout", "v1", "--json"]).ended(4).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["quarantined"], &json[0]["ok"]), (&true.into(), &false.into()));
    assert!(json[0]["problems"][0].as_str().unwrap().contains("config.json"), "{json}");
    assert!(desk.run(&["path", "scout", "v1"]).ended(0).stderr.contains("is quarantined"));
    desk.run(&["activate", "scout", "v1"]).ended(6);
    // Another agent that has the file is as good as a backup.
    fs::write(desk.folder().join("config.json"), sound).unwrap();
    desk.run(&["publish", "archive", "v1", "--from", text(&desk.folder())]).ok();
    let said = desk.run(&["repair", "scout", "v1"]).ok();
    assert!(said.contains("its bytes came from archive/v1") && said.contains("released"), "{said}");
    desk.run(&["activate", "scout", "v1"]).ok();
    let told = desk.run(&["history", "scout", "--pointer", "versions/v1", "--json"]).json();
    let actions: Vec<_> = told.as_array().unwrap().iter().map(|record| record["action"].clone()).collect();
    assert_eq!(actions, ["quarantine", "repair", "release"]);
}

#[test]
fn a_corrupt_version_that_readers_have_names_the_way_back() {
    let desk = two();
    desk.flip_a_bit("scout/versions/v2/config.json");
    let said = desk.run(&["verify"]).ended(4).stdout;
    for part in ["readers have it now", "model-store rollback scout", "model-store repair scout v2"] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    assert!(!desk.run(&["verify", "scout", "v1"]).ok().contains("next"));
}

#[test]
fn pointers_that_lead_nowhere_are_found() {
    let rows: [(&str, &str, &str); 3] = [
        ("scout/current", "versions/v9", "scout/current"),
        ("scout/refs/lost", "../versions/v9", "scout/refs/lost"),
        ("scout/current", "/etc", "scout/current"),
    ];
    for (link, target, said) in rows {
        let desk = two();
        desk.run(&["tag", "scout", "champion", "v1"]).ok();
        let link = desk.root().join(link);
        let _ = fs::remove_file(&link);
        symlink(target, &link).unwrap();
        for arguments in [&["verify"][..], &["verify", "scout"]] {
            let run = desk.run(arguments).ended(4);
            assert!(run.stdout.starts_with("not verified  scout   "), "{}", run.stdout);
            assert!(run.stdout.contains(said) && run.stdout.contains("ok       scout/v1"), "{}", run.stdout);
        }
        desk.run(&["verify", "scout", "v1"]).ok();
    }
}

#[test]
fn what_was_verified_lately_is_left_for_later() {
    let desk = two();
    let never = desk.run(&["verify", "--max-age", "30d", "--budget", "1GB/s"]).ok();
    assert_eq!(never.lines().count(), 2, "{never}");
    let run = desk.run(&["verify", "--max-age", "30d"]).ended(0);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.contains("nothing is due: 2 versions"), "{}", run.stderr);
    assert_eq!(desk.run(&["verify", "--max-age", "30d", "--json"]).json(), serde_json::json!([]));
    // In the order of what was longest ago, not of names.
    let note = |version: &str, days: u64, ok: bool| {
        let at = jiff::Timestamp::now() - std::time::Duration::from_hours(24 * days);
        let note = format!(r#"{{"at": "{at}", "ok": {ok}, "bytes": 7, "seconds": 0.5, "findings": 0}}"#);
        fs::write(desk.root().join(format!("scout/.verified/{version}.json")), note).unwrap();
    };
    let order = |max_age: &str| -> Vec<String> {
        let json = desk.run(&["verify", "--max-age", max_age, "--json"]).json();
        json.as_array().unwrap().iter().map(|one| one["version"].as_str().unwrap().to_owned()).collect()
    };
    note("v1", 40, true);
    note("v2", 50, true);
    assert_eq!(order("30d"), ["v2", "v1"]);
    note("v1", 40, true);
    assert_eq!(order("30d"), ["v1"]);
    note("v2", 1, false);
    assert_eq!(order("30d"), ["v2"], "damage is looked at every time");
    assert!(desk.run(&["ls"]).ok().lines().nth(1).unwrap().contains(" ago ok"));
    desk.flip_a_bit("scout/versions/v2/config.json");
    desk.run(&["verify"]).ended(4);
    assert!(desk.run(&["ls"]).ok().lines().nth(1).unwrap().ends_with(" ago CORRUPT"));
    let check = desk.store().last_check(&agent("scout"), &version("v2")).unwrap().unwrap();
    assert!(!check.ok && check.seconds > 0.0, "{check:?}");
}

/// A mount that goes away with this value.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_read_only_store_is_verified_and_not_written_to() {
    let desk = two();
    let at = desk.folder().join("../mounted");
    fs::create_dir(&at).unwrap();
    let mount = |arguments: &[&str]| {
        let output = Command::new("mount").args(arguments).arg(&at).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !mount(&["--bind", text(&desk.root())]) {
        return eprintln!("skipped: mounting a file system needs root and the mount command");
    }
    let _mount = Mount(&at);
    assert!(mount(&["-o", "remount,ro,bind"]), "what was mounted can be mounted read-only");
    let run = |command: &str| {
        desk.run(&[&["--store", text(&at)], &*command.split(' ').collect::<Vec<_>>()].concat())
    };
    for (command, lines) in [("verify", 2), ("verify scout v1", 1), ("verify --max-age 1d", 2)] {
        let run = run(command).ended(0);
        assert_eq!(run.stdout.lines().count(), lines, "{command}");
        assert!(run.stderr.starts_with("note: what is found is not remembered"), "{}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "once is enough: {}", run.stderr);
    }
    run("ls").ok();
    run("gc scout --keep 0 --grace 0s --dry-run").ok();
    for command in
        ["activate scout v1", "rollback scout", "tag scout champion v1", "gc scout --keep 0 --grace 0s"]
    {
        let run = run(command).ended(7);
        assert!(run.stderr.contains("mounted read-only"), "{command}: {}", run.stderr);
    }
}

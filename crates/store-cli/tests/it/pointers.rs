//! Moving pointers and what is told about it.

use std::fs;
use std::os::unix::fs::symlink;

use crate::desk::{Desk, agent};

const HISTORY: &str = "   (history: model-store history scout)\n";

#[test]
fn a_pointer_that_moved_says_from_where_to_where() {
    let desk = Desk::new();
    desk.publish("scout", "v1");
    desk.publish("scout", "v2");
    desk.run(&["publish", "scout", "v3", "--from", "folder", "--no-activate"]).ok();
    // In this order: the command, what it says, where `current` is then.
    let rows = [
        ("rollback scout", "scout: v2 → v1   (history", "v1"),
        ("rollback scout", "scout: v1 → v2   (history", "v2"),
        ("rollback scout --to v2", "scout: v2 is current already; nothing had to move\n", "v2"),
        ("activate scout v3 --reason better", "scout: v2 → v3   (history", "v3"),
        ("activate scout current", "scout: v3 is current already; nothing had to move\n", "v3"),
        ("tag scout candidate v2", "scout candidate → v2   (history", "v3"),
        ("tag scout champion candidate", "scout champion → v2   (history", "v3"),
        ("tag scout champion current", "scout champion: v2 → v3   (history", "v3"),
        ("tag scout champion v3", "scout champion: v3 is where it is already; nothing had to move\n", "v3"),
        ("activate scout candidate", "scout: v3 → v2   (history", "v2"),
        ("rollback scout --to champion", "scout: v2 → v3   (history", "v3"),
        ("untag scout candidate", "scout candidate: taken away; v2, where it was, stays   (history", "v3"),
    ];
    for (command, said, current) in rows {
        let out = desk.run(&command.split(' ').collect::<Vec<_>>()).ok();
        assert!(out.starts_with(said), "{command}: {out}");
        assert!(!said.ends_with("(history") || out.ends_with(HISTORY), "{command}: {out}");
        let now = desk.store().require_current(&agent("scout")).unwrap();
        assert_eq!(now.version().as_str(), current, "{command}");
    }
    let json = desk.run(&["rollback", "scout", "--json"]).json();
    let checksum = desk.store().require_current(&agent("scout")).unwrap().checksum().to_string();
    let expected = serde_json::json!({
        "agent": "scout", "pointer": "current", "from": "v3", "to": "v2", "checksum": checksum, "moved": true,
    });
    assert_eq!(json, expected);
    let json = desk.run(&["activate", "scout", "v2", "--json"]).json();
    assert_eq!((&json["moved"], &json["to"]), (&false.into(), &"v2".into()));
}

#[test]
fn a_version_that_is_not_all_there_is_not_made_current() {
    let desk = Desk::new();
    desk.publish("scout", "v1");
    desk.publish("scout", "v2");
    fs::remove_file(desk.root().join("scout/versions/v1/sub/vocab.txt")).unwrap();
    for command in ["rollback scout", "activate scout v1", "tag scout champion v1"] {
        let run = desk.run(&command.split(' ').collect::<Vec<_>>()).ended(4);
        assert!(run.stderr.contains("vocab.txt: is missing"), "{command}: {}", run.stderr);
        assert!(run.stderr.contains("model-store repair scout v1"), "{command}: {}", run.stderr);
    }
    let now = desk.store().require_current(&agent("scout")).unwrap();
    assert_eq!(now.version().as_str(), "v2");
}

#[test]
fn history_is_a_table_with_the_newest_last() {
    let desk = Desk::new();
    desk.publish("scout", "v1");
    desk.publish("scout", "v2");
    desk.run(&["tag", "scout", "champion", "v1", "--reason", "by hand\u{1b}[2J"]).ok();
    desk.run(&["rollback", "scout", "--reason", "labels flipped"]).ok();
    desk.run(&["untag", "scout", "champion"]).ok();
    let lines = |arguments: &[&str]| -> Vec<Vec<String>> {
        let table = desk.run(arguments).ok();
        assert!(!table.contains('\u{1b}'), "{table:?}");
        // Columns are two blanks apart at least.
        let cells = |line: &str| {
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
        };
        table.lines().map(cells).collect()
    };
    let all = lines(&["history", "scout"]);
    assert_eq!(all[0], ["WHEN", "ACTION", "POINTER", "FROM → TO", "BY", "REASON"]);
    let told: Vec<_> = all[1..].iter().map(|cells| cells[1..4].join("|")).collect();
    let expected = [
        "publish|current|→ v1",
        "publish|current|v1 → v2",
        "tag|refs/champion|→ v1",
        "rollback|current|v2 → v1",
        "untag|refs/champion|v1 →",
    ];
    assert_eq!(told, expected);
    assert_eq!(all[4][5], "labels flipped");
    assert_eq!(all[3][5], r"by hand\u{1b}[2J");
    assert!(all[1][0].ends_with('Z') && all[1][0].len() == "2025-10-28T10:15:30Z".len(), "{}", all[1][0]);

    let rows: [(&[&str], &[&str]); 5] = [
        (&["--limit", "2"], &expected[3..]),
        (&["--limit", "0"], &[]),
        (&["--pointer", "current", "--limit", "1"], &expected[3..4]),
        (&["--pointer", "champion"], &["tag|refs/champion|→ v1", "untag|refs/champion|v1 →"]),
        (&["--pointer", "refs/champion"], &["tag|refs/champion|→ v1", "untag|refs/champion|v1 →"]),
    ];
    for (options, expected) in rows {
        let arguments = [&["history", "scout"], options].concat();
        if expected.is_empty() {
            let run = desk.run(&arguments).ended(0);
            assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", "nothing is on record for scout\n"));
            continue;
        }
        let told: Vec<_> = lines(&arguments)[1..].iter().map(|cells| cells[1..4].join("|")).collect();
        assert_eq!(told, expected, "{options:?}");
    }
    let json = desk.run(&["history", "scout", "--json", "--limit", "2"]).json();
    let (rollback, by) = (&json[0], &json[1]["by"]);
    assert_eq!(
        (&rollback["action"], &rollback["pointer"], &rollback["from"], &rollback["to"], &rollback["reason"]),
        (&"rollback".into(), &"current".into(), &"v2".into(), &"v1".into(), &"labels flipped".into())
    );
    assert!(rollback["checksum"].is_string() && by.as_str().unwrap().contains('@'), "{json}");
}

#[test]
fn refs_are_listed_and_one_that_leads_nowhere_is_told() {
    let desk = Desk::with_v1();
    let run = desk.run(&["refs"]).ended(0);
    assert_eq!(run.stdout, "");
    assert!(run.stderr.contains("no refs yet"), "{}", run.stderr);
    desk.publish("memory", "v7");
    for command in ["tag scout champion v1", "tag scout candidate v1", "tag memory pin v7"] {
        desk.run(&command.split(' ').collect::<Vec<_>>()).ok();
    }
    let expected = "\
AGENT   REF        VERSION
memory  pin        v7
scout   candidate  v1
scout   champion   v1
";
    assert_eq!(desk.run(&["refs"]).ok(), expected);
    assert_eq!(desk.run(&["refs", "memory"]).ok().lines().count(), 2);
    assert_eq!(
        desk.run(&["refs", "memory", "--json"]).json(),
        serde_json::json!([{ "agent": "memory", "name": "pin", "version": "v7", "dangling": false }])
    );
    symlink("../versions/v3", desk.root().join("scout/refs/lost")).unwrap();
    let run = desk.run(&["refs"]).ended(4);
    assert!(run.stdout.contains("scout   lost       v3  ⚠ not there\n"), "{}", run.stdout);
    assert!(run.stderr.starts_with("warning: scout lost points at v3"), "{}", run.stderr);
    // It can be put right.
    desk.run(&["untag", "scout", "lost"]).ok();
    desk.run(&["refs"]).ok();
}

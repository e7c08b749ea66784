//! Retiring versions.

use model_store::VersionName;

use crate::desk::{Desk, agent};

/// Five versions of `scout`, each with bytes of its own, the last one current, the first one pinned.
fn five() -> Desk {
    let desk = Desk::new();
    for version in ["v1", "v2", "v3", "v4", "v5"] {
        desk.publish("scout", version);
    }
    desk.run(&["tag", "scout", "pin", "v1"]).ok();
    desk
}

fn versions(desk: &Desk) -> Vec<String> {
    desk.store().versions(&agent("scout")).unwrap().iter().map(VersionName::to_string).collect()
}

#[test]
fn a_dry_run_explains_every_keep_and_every_retire() {
    let desk = five();
    let shown = desk.run(&["gc", "scout", "--keep", "2", "--grace", "0s", "--dry-run"]).ok();
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].starts_with("AGENT  VERSION"), "{shown}");
    let rows = [
        ("v1", "keep", "ref pin"),
        ("v2", "retire", "3 newer, nothing points at it"),
        ("v3", "retire", "2 newer, nothing points at it"),
        ("v4", "keep", "one of the newest 2"),
        ("v5", "keep", "current, one of the newest 2"),
    ];
    for (line, (version, plan, why)) in lines[1..].iter().zip(rows) {
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words[..2], ["scout", version], "{shown}");
        assert!(words.contains(&plan) && line.contains(why), "{plan}, {why:?}: {line}");
    }
    assert_eq!(lines.len(), 7, "{shown}");
    assert!(lines[6].starts_with("of 5 versions 2 would go, which would free "), "{shown}");
    assert!(lines[6].ends_with("; nothing was changed"), "{shown}");
    assert_eq!(versions(&desk).len(), 5);

    let json = desk.run(&["gc", "--all", "--keep", "2", "--grace", "0s", "--dry-run", "--json"]).json();
    assert_eq!((&json["dry_run"], &json["retired"]), (&true.into(), &serde_json::json!([])));
    let decisions = json["plan"]["decisions"].as_array().unwrap();
    assert_eq!((&decisions[1]["version"], &decisions[1]["verdict"]), (&"v2".into(), &"retire".into()));
    assert!(decisions[4]["reasons"].as_array().unwrap().iter().any(|reason| reason == "current"), "{json}");
}

#[test]
fn what_is_retired_is_gone_and_on_record() {
    let desk = five();
    let kept = desk.run(&["gc", "scout"]).ok();
    assert_eq!(kept, "nothing to retire: 5 versions stay, and `--dry-run` says why each does\n");
    let said = desk.run(&["gc", "--all", "--keep", "2", "--grace", "0s", "--reason", "monthly"]).ok();
    let lines: Vec<_> = said.lines().collect();
    assert!(lines[0].starts_with("retired  scout/v2   published "), "{said}");
    assert!(lines[1].starts_with("retired  scout/v3   published "), "{said}");
    assert!(lines[2].starts_with("of 5 versions 2 went, which freed "), "{said}");
    assert_eq!(versions(&desk), ["v1", "v4", "v5"]);
    let history = desk.run(&["history", "scout", "--json", "--pointer", "versions/v2"]).json();
    assert_eq!((&history[0]["action"], &history[0]["reason"]), (&"retire".into(), &"monthly".into()));
    assert!(history[0]["bytes"].as_u64().unwrap() > 0, "{history}");

    let json = desk.run(&["gc", "scout", "--keep", "1", "--grace", "0s", "--json"]).json();
    assert_eq!(json["retired"], serde_json::json!([{ "agent": "scout", "version": "v4" }]));
    assert_eq!(json["bytes_freed"], json["plan"]["bytes_to_free"]);
    assert_eq!(versions(&desk), ["v1", "v5"]);
}

#[test]
fn what_is_in_use_stays_whatever_the_options_say() {
    let desk = five();
    let lease = desk.store().get_version(&agent("scout"), &"v2".parse().unwrap()).unwrap().unwrap();
    let held = lease.lease().unwrap();
    desk.run(&["gc", "scout", "--keep", "0", "--grace", "0s"]).ended(0);
    assert_eq!(versions(&desk), ["v1", "v2", "v5"]);
    drop((held, lease));
    desk.run(&["gc", "scout", "--keep", "0", "--grace", "0s"]).ended(0);
    assert_eq!(versions(&desk), ["v1", "v5"]);
}

#[test]
fn options_narrow_what_may_go() {
    let rows: [(&[&str], &[&str]); 4] = [
        (&["--older-than", "1h"], &["v1", "v2", "v3", "v4", "v5"]),
        (&["--older-than", "0s", "--keep", "1"], &["v1", "v5"]),
        (&["--keep", "1", "--max-bytes", "1GB"], &["v1", "v2", "v3", "v4", "v5"]),
        (&["--keep", "1", "--max-bytes", "1"], &["v1", "v5"]),
    ];
    for (options, left) in rows {
        let desk = five();
        let run = desk.run(&[&["gc", "scout", "--grace", "0s"], options].concat()).ended(0);
        assert_eq!(versions(&desk), left, "{options:?}: {}{}", run.stdout, run.stderr);
        if options.ends_with(&["--max-bytes", "1"]) {
            assert!(run.stderr.starts_with("note: ") && run.stderr.contains("asked for"), "{}", run.stderr);
        }
    }
    let desk = Desk::new();
    assert_eq!(desk.run(&["gc", "--all"]).ok(), "there are no versions yet\n");
}

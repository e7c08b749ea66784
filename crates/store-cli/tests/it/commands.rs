//! What the commands say when all is well, and when something is to be looked at.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use crate::desk::{Desk, Run, agent, text, version};

#[test]
fn publish_says_what_it_did() {
    let desk = Desk::new();
    let first = desk.run(&["publish", "scout", "v1", "--from", "folder", "--metadata", "commit=abc=1"]).ok();
    let lines: Vec<_> = first.lines().collect();
    assert!(lines[0].starts_with("published scout/v1   2 files, 7 B, checksum "), "{first}");
    assert_eq!(lines[1..], ["scout → v1", text(&desk.root().join("scout/versions/v1"))], "{first}");
    let second = desk.run(&["publish", "scout", "v2", "--from", "folder", "--reason", "labels"]).ok();
    assert!(second.contains("scout → v2   (was v1)\n"), "{second}");
    let kept = desk.run(&["publish", "scout", "v3", "--from", "folder", "--no-activate"]).ok();
    assert!(kept.contains("scout stays at v2\n"), "{kept}");
    let json = desk.run(&["--json", "publish", "scout", "v4", "--from", "folder"]).json();
    assert_eq!(
        (&json["version"], &json["previous"], &json["bytes"]),
        (&"v4".into(), &"v2".into(), &7.into())
    );

    let current = desk.store().get_version(&agent("scout"), &version("v1")).unwrap().unwrap();
    assert_eq!(current.manifest().metadata["commit"], "abc=1");
    let history = fs::read_to_string(desk.root().join("scout/history.jsonl")).unwrap();
    assert!(history.contains(r#""reason":"labels""#), "{history}");
}

#[test]
fn publish_says_where_the_bytes_came_from() {
    let desk = Desk::with_v1();
    let bytes_in = |version: &str, flags: &[&str]| {
        let arguments = [&["--json", "publish", "scout", version, "--from", "folder"], flags].concat();
        let json = desk.run(&arguments).json();
        ["shared_bytes", "copied_bytes", "linked_bytes", "reflinked_bytes"]
            .map(|key| json[key].as_u64().unwrap())
    };
    assert_eq!(bytes_in("v2", &[])[0], 7, "what v1 has is shared");
    assert_eq!(bytes_in("v3", &["--copy"]), [0, 7, 0, 0]);
    assert_eq!(bytes_in("v4", &["--link"]), [0, 0, 7, 0]);
    let shared = desk.run(&["publish", "scout", "v5", "--from", "folder"]).ok();
    assert!(shared.contains("7 B shared with other versions\n"), "{shared}");
    let both = desk.run(&["publish", "scout", "v6", "--from", "folder", "--copy", "--move"]);
    assert_eq!(both.code, Some(2), "{}", both.stderr);
    desk.run(&["publish", "scout", "v6", "--from", "folder", "--move"]).ok();
    assert!(!desk.folder().exists());
}

#[test]
fn a_version_published_again_leaves_its_old_manifest_behind() {
    let desk = Desk::with_v1();
    let from = desk.root().join("scout/versions/v1");
    let run = desk.run(&["publish", "scout", "v2", "--from", text(&from)]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stderr.contains("manifest.json"), "{}", run.stderr);
    fs::write(desk.folder().join("manifest.json"), b"{\"name\": \"a web app\"}").unwrap();
    let run = desk.run(&["publish", "scout", "v3", "--from", "folder"]);
    assert_eq!(run.code, Some(6), "{}", run.stderr);
    assert!(run.stderr.contains("manifest.json"), "{}", run.stderr);
}

#[test]
fn links_of_a_hub_snapshot_are_followed_on_request() {
    let desk = Desk::new();
    fs::write(desk.folder().join("../blob"), b"weights").unwrap();
    symlink("../blob", desk.folder().join("model.bin")).unwrap();
    let refused = desk.run(&["publish", "scout", "v1", "--from", "folder"]);
    assert_eq!(refused.code, Some(6), "{}", refused.stderr);
    assert!(refused.stderr.contains("\"model.bin\" is a symbolic link that leaves"), "{}", refused.stderr);
    desk.run(&["publish", "scout", "v1", "--from", "folder", "--follow-links"]).ok();
    assert_eq!(fs::read(desk.root().join("scout/current/model.bin")).unwrap(), b"weights");
}

#[test]
fn ls_is_a_table() {
    let desk = Desk::with_v1();
    desk.run(&["publish", "synthesizer", "v1", "--from", "folder", "--copy", "--no-activate"]).ok();
    desk.store().add_alias(&agent("news-cleaner-agent"), &agent("synthesizer")).unwrap();
    fs::create_dir(desk.root().join("synthesizer/versions/v9.tmp")).unwrap();
    let listing = desk.run(&["ls"]).ok();
    let expected = "\
AGENT        CURRENT                 AGE  SIZE  SHARED  VERSIONS  VERIFIED
scout        v1                      0s    7 B     0 B         1  never
synthesizer  -  ⚠ 1 staging left 0s  -       -       -         1  -
news-cleaner-agent → synthesizer
";
    // However slow the machine is.
    let listing = all_just_now(&listing);
    assert_eq!(listing, expected, "\n{listing}");
    let json = desk.run(&["ls", "--json"]).json();
    assert_eq!(json["store"], text(&desk.root()));
    let scout = &json["agents"][0];
    assert_eq!(
        (&scout["agent"], &scout["current"], &scout["size_bytes"]),
        (&"scout".into(), &"v1".into(), &7.into())
    );
    assert_eq!(json["agents"][1]["stagings"][0]["in_use"], false);
    assert_eq!(json["aliases"][0]["agent"], "synthesizer");
}

/// An age of a few seconds is made `0s`; every one of them is as wide.
fn all_just_now(listing: &str) -> String {
    (1..10).fold(listing.to_owned(), |text, age| text.replace(&format!(" {age}s "), " 0s "))
}

#[test]
fn ls_shares_what_hard_links_share() {
    let desk = Desk::with_v1();
    let store = desk.store();
    let staging = store.stage_new(&agent("scout"), &version("v2")).unwrap();
    let v1 = store.require_current(&agent("scout")).unwrap();
    staging.share(&v1, &"sub/vocab.txt".parse().unwrap()).unwrap();
    staging.finalize(model_store::FinalizeOptions::default()).unwrap();
    let shared = fs::metadata(desk.root().join("scout/versions/v2/sub/vocab.txt")).unwrap();
    let by_link = std::os::unix::fs::MetadataExt::nlink(&shared) > 1;
    let json = desk.run(&["ls", "--json"]).json();
    assert_eq!(json["agents"][0]["shared_bytes"], if by_link { 5 } else { 0 });
}

#[test]
fn an_agent_that_cannot_be_read_does_not_hide_the_others() {
    let desk = Desk::with_v1();
    desk.run(&["publish", "zebra", "v1", "--from", "folder"]).ok();
    let link = desk.root().join("scout/current");
    fs::remove_file(&link).unwrap();
    symlink("versions/v9", &link).unwrap();
    let run = desk.run(&["ls"]);
    assert_eq!(run.code, Some(4));
    assert!(run.stdout.contains("⚠ unreadable") && run.stdout.contains("zebra  v1"), "{}", run.stdout);
    assert!(run.stderr.starts_with("warning: ") && run.stderr.contains("scout/current"), "{}", run.stderr);
}

#[test]
fn an_empty_store_is_no_error() {
    let desk = Desk::new();
    for command in ["ls", "verify"] {
        let run = desk.run(&[command]);
        assert_eq!((run.code, run.stdout.as_str()), (Some(0), ""), "{command}");
        assert!(run.stderr.contains("yet"), "{command}: {}", run.stderr);
    }
}

#[test]
fn show_tells_where_a_version_came_from() {
    let desk = Desk::with_v1();
    desk.run(&["publish", "scout", "v2", "--from", "folder", "--copy", "--metadata", "author=Ada L"]).ok();
    let shown = desk.run(&["show", "scout"]).ok();
    for part in
        ["scout/v2   current\n", "    author  Ada L\n", "payload    2 files, 7 B\n", "sub/vocab.txt\n"]
    {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    let old = desk.run(&["show", "scout", "v1"]).ok();
    assert!(old.starts_with("scout/v1\n"), "{old}");
    for part in ["verified   never\n", "costs      7 B alone, 0 B shared with others\n"] {
        assert!(old.contains(part), "{part:?} is not in\n{old}");
    }
    desk.run(&["tag", "scout", "champion", "v1"]).ok();
    desk.run(&["tag", "scout", "fallback", "v1"]).ok();
    let tagged = desk.run(&["show", "scout", "champion"]).ok();
    assert!(
        tagged.starts_with("scout/v1\n") && tagged.contains("refs       champion, fallback\n"),
        "{tagged}"
    );
    let json = desk.run(&["show", "scout", "v1", "--json"]).json();
    assert_eq!(json["is_current"], false);
    assert_eq!((&json["refs"][1], &json["alone_bytes"]), (&"fallback".into(), &7.into()));
    assert_eq!(
        (&json["verified"], &json["quarantine"]),
        (&serde_json::Value::Null, &serde_json::Value::Null)
    );
    assert_eq!(json["manifest"]["files"][0]["path"], "config.json");
}

#[test]
fn path_prints_nothing_but_the_path() {
    let desk = Desk::with_v1();
    let path = desk.run(&["path", "scout"]).ok();
    assert_eq!(path, format!("{}\n", desk.root().join("scout/versions/v1").display()));
    desk.store().add_alias(&agent("old"), &agent("scout")).unwrap();
    desk.run(&["tag", "scout", "champion", "v1"]).ok();
    for arguments in
        [&["path", "old", "--version", "v1"][..], &["path", "old", "v1"], &["path", "scout", "champion"]]
    {
        assert_eq!(desk.run(arguments).ok(), path, "{arguments:?}");
    }
    assert_eq!(desk.run(&["path", "old", "--json"]).json()["agent"], "scout");
}

#[test]
fn verify_reads_every_file() {
    let desk = Desk::with_v1();
    desk.run(&["publish", "scout", "v2", "--from", "folder", "--copy"]).ok();
    let sound = desk.run(&["verify"]).ok();
    assert_eq!(sound, "ok       scout/v1   2 files, 7 B\nok       scout/v2   2 files, 7 B\n");

    let file = desk.root().join("scout/versions/v1/config.json");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, b"[]").unwrap();
    for arguments in [&["verify"][..], &["verify", "scout"], &["verify", "scout", "v1"]] {
        let run = desk.run(arguments);
        assert_eq!(run.code, Some(4), "{arguments:?}");
        assert!(run.stdout.contains("corrupt  scout/v1"), "{}", run.stdout);
        assert!(run.stdout.contains("config.json has other bytes than were published"), "{}", run.stdout);
    }
    desk.run(&["verify", "scout", "v2"]).ok();
    let run = desk.run(&["verify", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&json[0]["ok"], &json[1]["ok"]), (&false.into(), &true.into()));
    assert_eq!(json[0]["findings"][0]["kind"], "changed");

    // A damaged manifest is damage too, and does not keep the rest from being verified.
    let manifest = desk.root().join("scout/versions/v1/manifest.json");
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, b"{").unwrap();
    for arguments in [&["verify"][..], &["verify", "scout", "v1"]] {
        let run = desk.run(arguments);
        assert_eq!(run.code, Some(4), "{arguments:?}: {}", run.stderr);
        assert!(run.stdout.contains("not verified  scout/v1"), "{}", run.stdout);
    }
}

#[test]
fn colour_is_for_terminals() {
    let desk = Desk::with_v1();
    assert!(!desk.run(&["verify"]).ok().contains('\u{1b}'));
    let output = desk.command(&["verify"]).env("CLICOLOR_FORCE", "1").output().unwrap();
    assert!(Run::of("forced", &output).ok().contains('\u{1b}'));
}

#[test]
fn completions_name_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = Desk::new().run(&["completions", shell]).ok();
        assert!(script.contains("publish") && script.contains("no-activate"), "{shell}");
    }
}

#[test]
fn help_documents_the_exit_codes() {
    let help = Desk::new().run(&["--help"]).ok();
    for part in ["Exit codes:", "4  corrupt", "130  stopped by Ctrl-C", "MODEL_STORE_ROOT"] {
        assert!(help.contains(part), "{part:?} is not in\n{help}");
    }
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<_> = commands
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(commands.contains(&"rollback") && commands.contains(&"ls"), "{commands:?}");
    for command in commands {
        assert!(Desk::new().run(&[command, "--help"]).ok().contains("Example"), "{command}");
    }
}

#[test]
fn an_agent_that_cannot_be_read_does_not_keep_the_others_from_being_verified() {
    let desk = Desk::with_v1();
    // Not a directory: nothing can be listed in it.
    fs::create_dir(desk.root().join("broken")).unwrap();
    fs::write(desk.root().join("broken/versions"), b"x").unwrap();
    let run = desk.run(&["verify"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stdout.contains("not verified  broken   could not open"), "{}", run.stdout);
    assert!(run.stdout.contains("Not a directory"), "the cause: {}", run.stdout);
    assert!(run.stdout.contains("ok       scout/v1"), "{}", run.stdout);
    let run = desk.run(&["verify", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&json[0]["agent"], &json[0]["version"]), (&"broken".into(), &serde_json::Value::Null));
    assert_eq!(json[1]["ok"], true);
    // Damage outweighs it.
    fs::remove_file(desk.root().join("scout/versions/v1/config.json")).unwrap();
    assert_eq!(desk.run(&["verify"]).code, Some(4));
}

#[test]
fn what_others_wrote_does_not_reach_the_terminal_as_it_is() {
    let desk = Desk::new();
    symlink("a\u{1b}[2J", desk.folder().join("link")).unwrap();
    fs::write(desk.folder().join("a\u{1b}[2J"), b"x").unwrap();
    let refused = desk.run(&["publish", "scout", "v1", "--from", "folder"]);
    assert_eq!(refused.code, Some(6));
    assert!(!refused.stderr.contains('\u{1b}'), "{:?}", refused.stderr);
    fs::remove_file(desk.folder().join("a\u{1b}[2J")).unwrap();
    fs::remove_file(desk.folder().join("link")).unwrap();

    let note = "note\u{1b}]0;x\u{7}=red\u{1b}[31m\nand more";
    desk.run(&["publish", "scout", "v1", "--from", "folder", "--metadata", note]).ok();
    let shown = desk.run(&["show", "scout"]).ok();
    assert!(!shown.contains('\u{1b}') && shown.contains(r"red\u{1b}[31m\nand more"), "{shown:?}");
}

#[test]
fn what_is_known_against_a_version_is_told_by_every_command_that_names_it() {
    let desk = Desk::new();
    desk.publish("scout", "v1");
    desk.publish("scout", "v2");
    let known = |directory: &str, version: &str, note: &str| {
        let directory = desk.root().join("scout").join(directory);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(format!("{version}.json")), note).unwrap();
    };
    let checked = |ok| {
        let at = jiff::Timestamp::now() - std::time::Duration::from_hours(72);
        format!(r#"{{"at": "{at}", "ok": {ok}, "bytes": 7, "seconds": 0.5, "findings": 0}}"#)
    };
    known(".verified", "v2", &checked(true));
    let line = |listing: &str| listing.lines().nth(1).unwrap().to_owned();
    let shown = line(&desk.run(&["ls"]).ok());
    assert!(shown.ends_with("2  3d ago ok"), "{shown}");
    assert!(desk.run(&["show", "scout"]).ok().contains("  verified   3d ago ok\n"));

    known(".verified", "v2", &checked(false));
    assert!(line(&desk.run(&["ls"]).ok()).ends_with("3d ago CORRUPT"));
    let mark = r#"{"at": "2025-10-28T10:15:30Z", "by": "ada@host", "reason": "config.json\u001b[2J"}"#;
    known(".quarantine", "v1", mark);
    assert!(line(&desk.run(&["ls"]).ok()).starts_with("scout  v2  ⚠ 1 version quarantined"));
    known(".quarantine", "v2", mark);
    assert!(line(&desk.run(&["ls"]).ok()).starts_with("scout  v2  ⚠ quarantined"));
    let words = r"is quarantined since 2025-10-28T10:15:30Z by ada@host: config.json\u{1b}[2J";
    let shown = desk.run(&["show", "scout"]).ok();
    assert!(shown.contains(&format!("  ⚠ this version {words}\n")), "{shown}");
    let run = desk.run(&["path", "scout"]).ended(0);
    assert_eq!(run.stderr, format!("warning: scout/v2 {words}\n"));
    assert_eq!(run.stdout, format!("{}\n", desk.root().join("scout/versions/v2").display()));
    let json = desk.run(&["ls", "--json"]).json();
    assert_eq!(json["agents"][0]["quarantined"], serde_json::json!(["v1", "v2"]));
    assert_eq!(json["agents"][0]["verified"]["ok"], false);
    // Nobody goes there by accident.
    let output = desk.command(&["rollback", "scout"]).env("CLICOLOR_FORCE", "1").output().unwrap();
    let run = Run::of("rollback", &output).ended(6);
    assert!(run.stderr.contains("scout/v1 is quarantined"), "{}", run.stderr);
    assert!(!run.stderr.contains("\u{1b}[2J"), "{:?}", run.stderr);
}

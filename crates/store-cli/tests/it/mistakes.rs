//! What an operator can get wrong: each with its exit code and one clear message, and nothing left behind.

use crate::desk::Desk;

/// The arguments, the exit code, and what the message has to say.
const MISTAKES: &[(&[&str], i32, &[&str])] = &[
    (&["publish", "../x", "v1", "--from", "folder"], 2, &["\"../x\"", "begin with a letter"]),
    (&["publish", "scout", "v2.tmp", "--from", "folder"], 2, &["'.tmp'"]),
    (&["publish", "current", "v2", "--from", "folder"], 2, &["reserved"]),
    (&["publish", "scout", "v1", "--from", "folder"], 6, &["v1", "exists already", "another name"]),
    (&["publish", "scout", "v2", "--from", "nowhere"], 3, &["nowhere", "No such file"]),
    (&["publish", "new", "v2", "--from", "nowhere"], 3, &["nowhere", "No such file"]),
    (&["publish", "scout", "v2", "--from", "folder/config.json"], 2, &["a file, not a folder"]),
    (&["publish", "scout", "v2", "--from", "empty"], 6, &["nothing to publish"]),
    (&["publish", "scout", "v2"], 2, &["--from"]),
    (&["publish", "scout", "v2", "--from", "folder", "--metadata", "abc"], 2, &["KEY=VALUE"]),
    (&["publish", "scout", "v2", "--from", "folder", "--metadata", "=c"], 2, &["KEY=VALUE"]),
    (
        &["publish", "scout", "v2", "--from", "folder", "--metadata", "a=1", "--metadata", "a=2"],
        2,
        &["a=…", "twice"],
    ),
    (&["publish", "old", "v2", "--from", "folder"], 6, &["write to scout instead"]),
    (&["show", "scuot"], 3, &["no agent scuot", "did you mean scout?"]),
    (&["show", "scout", "v11"], 3, &["no version v11", "did you mean v1?"]),
    (&["show", "waiting"], 3, &["no current version", "v1"]),
    (&["path", "zebra"], 3, &["no agent zebra"]),
    (&["path", "scout", "--version", "w"], 3, &["no version w"]),
    (&["path", "scout", "champ"], 3, &["no version champ", "did you mean champion?"]),
    (&["path", "scout", "v1", "--version", "v1"], 2, &["cannot be used"]),
    (&["show", "scout", "champ"], 3, &["did you mean champion?"]),
    (&["verify", "scot"], 3, &["did you mean scout?"]),
    (&["verify", "scout", "v3"], 3, &["no version v3"]),
    (&["activate", "scuot", "v1"], 3, &["no agent scuot", "did you mean scout?"]),
    (&["activate", "scout", "v11"], 3, &["no version v11", "did you mean v1?"]),
    (&["activate", "scout", "champ"], 3, &["no version champ", "did you mean champion?"]),
    (&["activate", "old", "v1"], 6, &["write to scout instead"]),
    (&["activate", "scout", "../v1"], 2, &["\"../v1\""]),
    (&["activate", "scout"], 2, &["<VERSION>"]),
    (&["activate", "scout", "v1", "--wait", "long"], 2, &["--wait"]),
    (&["rollback", "scuot"], 3, &["did you mean scout?"]),
    (&["rollback", "scout"], 3, &["names no version that was current before"]),
    (&["rollback", "scout", "--to", "v11"], 3, &["did you mean v1?"]),
    (&["rollback", "old", "--to", "v1"], 6, &["write to scout instead"]),
    (&["tag", "scout", "v1", "v1"], 6, &["version of the name v1"]),
    (&["tag", "scout", "current", "v1"], 2, &["reserved"]),
    (&["tag", "scout", "candidate", "v11"], 3, &["did you mean v1?"]),
    (&["tag", "old", "candidate", "v1"], 6, &["write to scout instead"]),
    (&["untag", "scout", "champiom"], 3, &["no ref champiom", "did you mean champion?"]),
    (&["untag", "waiting", "champion"], 3, &["no ref champion"]),
    (&["refs", "scuot"], 3, &["did you mean scout?"]),
    (&["history", "scuot"], 3, &["did you mean scout?"]),
    (&["history", "scout", "--pointer", "heads/x"], 2, &["heads/x"]),
    (&["history", "scout", "--limit", "-1"], 2, &["-1"]),
    (&["verify", "scout", "champ"], 3, &["did you mean champion?"]),
    (&["verify", "--budget", "fast"], 2, &["200MB/s"]),
    (&["verify", "--budget", "0"], 2, &["nothing would ever be read"]),
    (&["verify", "--max-age", "30"], 2, &["30d"]),
    (&["repair", "scot"], 3, &["did you mean scout?"]),
    (&["repair", "scout", "v3"], 3, &["no version v3"]),
    (&["repair", "scout", "v1", "--wait", "-1"], 2, &["-1"]),
    (&["watch"], 2, &["<AGENT>"]),
    (&["watch", "scout", "--all"], 2, &["--all"]),
    (&["watch", "scout", "--interval", "0s"], 2, &["some time between"]),
    (&["watch", "../x"], 2, &["\"../x\""]),
    (&["metrics", "--output", "nowhere/x.prom"], 1, &["nowhere/x.prom", "No such file"]),
    (&["--store", "nowhere", "metrics"], 3, &["no model store at nowhere"]),
    (&["--store", "nowhere", "doctor"], 3, &["no model store at nowhere"]),
    (&["doctor", "scout"], 2, &["scout"]),
    (&["gc"], 2, &["<AGENT>"]),
    (&["gc", "scout", "--all"], 2, &["--all"]),
    (&["gc", "scuot"], 3, &["did you mean scout?"]),
    (&["gc", "scout", "scuot", "--dry-run"], 3, &["did you mean scout?"]),
    (&["gc", "scout", "--keep", "few"], 2, &["--keep"]),
    (&["gc", "scout", "--older-than", "30"], 2, &["30d"]),
    (&["gc", "scout", "--max-bytes", "much"], 2, &["200GB"]),
    (&["gc", "scout", "--grace=-5min"], 2, &["--grace"]),
    (&["man", "gcc"], 2, &["no command gcc"]),
    (&["man", "--dir", "folder/config.json"], 1, &["folder/config.json", "exists"]),
    (&["--store", "nowhere", "ls"], 3, &["no model store at nowhere", "mkdir -p"]),
    (&["--store", "folder/config.json", "ls"], 3, &["no model store at folder/config.json"]),
    (&["lss"], 2, &["unrecognized subcommand", "'ls'"]),
    (&["completions", "sh"], 2, &["possible values"]),
    (&[], 2, &["Usage"]),
];

#[test]
fn every_mistake_has_its_code_and_message() {
    for (arguments, code, parts) in MISTAKES {
        let desk = Desk::with_v1();
        desk.run(&["publish", "waiting", "v1", "--from", "folder", "--no-activate"]).ok();
        desk.store().add_alias(&crate::desk::agent("old"), &crate::desk::agent("scout")).unwrap();
        desk.run(&["tag", "scout", "champion", "v1"]).ok();
        std::fs::create_dir(desk.folder().join("../empty")).unwrap();
        let before = tree(&desk);
        let run = desk.run(arguments);
        assert_eq!(run.code, Some(*code), "{arguments:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{arguments:?}");
        for part in *parts {
            assert!(run.stderr.contains(part), "{arguments:?}: {part:?} is not in {:?}", run.stderr);
        }
        assert_eq!(run.stderr.matches("error:").count(), 1, "{}", run.stderr);
        assert_eq!(tree(&desk), before, "{arguments:?} changed the store");
    }
}

/// Every path of the store.
fn tree(desk: &Desk) -> Vec<std::path::PathBuf> {
    let mut found = vec![desk.root()];
    let mut next = 0;
    while next < found.len() {
        if found[next].is_dir() && !found[next].is_symlink() {
            let entries = std::fs::read_dir(&found[next]).unwrap();
            found.extend(entries.map(|entry| entry.unwrap().path()));
        }
        next += 1;
    }
    found.sort();
    found
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let output = Desk::new().command(&["ls", "--help"]).env("MODEL_STORE_ROOT", "").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let output =
        Desk::new().command(&["path", "no-such-agent"]).env("MODEL_STORE_ROOT", "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("/opt/justnews/models"), "{said}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let desk = Desk::with_v1();
    desk.run(&["tag", "scout", "champion", "v1"]).ok();
    for arguments in [
        "ls",
        "show scout",
        "show scout --json",
        "verify",
        "completions bash",
        "path scout",
        "history scout",
        "refs scout",
        "gc scout --dry-run",
        "gc scout",
        "repair scout",
        "metrics",
        "man gc",
        "activate scout v1",
    ] {
        let mut child = desk.command(&arguments.split(' ').collect::<Vec<_>>()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{arguments}");
    }
}

#[test]
fn a_reader_that_goes_away_does_not_hide_damage() {
    let desk = Desk::with_v1();
    std::fs::remove_file(desk.root().join("scout/versions/v1/config.json")).unwrap();
    for arguments in [&["verify"][..], &["verify", "--json"]] {
        let mut child = desk.command(arguments).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {output:?}");
    }
}

#[test]
fn sizes_that_are_made_up_stop_no_command() {
    let desk = Desk::with_v1();
    let path = desk.root().join("scout/versions/v1/manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for file in manifest["files"].as_array_mut().unwrap() {
        file["size"] = u64::MAX.into();
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, manifest.to_string()).unwrap();
    let huge = "18446744.1 TB";
    assert!(desk.run(&["ls"]).ok().contains("7 B"), "what is on the disk is told, not what is claimed");
    assert_eq!(desk.run(&["show", "scout"]).ok().matches(huge).count(), 3, "two files and the payload");
    assert_eq!(desk.run(&["verify"]).code, Some(4));
}

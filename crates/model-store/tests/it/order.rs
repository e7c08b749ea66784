//! What is on disk before what: the kernel's record of a publish, call by call.

use std::collections::BTreeSet;

use model_store::exit;

use crate::child::{Task, Work};
use crate::fixture::{Fixture, version};
use crate::torture::strike::{can_strike, strace};

/// The calls of a publish of `v2` that order what lasts: syncs with the path below the root, and renames with
/// both names.
fn order_of(work: Work, fixture: &Fixture) -> Vec<String> {
    let log = fixture.outside().join("strace.log");
    let task = Task { root: fixture.root().to_owned(), version: "v2".to_owned(), work };
    let calls = "trace=fsync,fdatasync,syncfs,renameat,renameat2";
    // -y: with the path of every open file.
    let outcome = task.run(&strace(&["-y", "-o", log.to_str().unwrap(), "-e", calls]));
    assert_eq!(outcome.code(), Some(exit::OK), "{outcome:?}");
    let log = std::fs::read_to_string(&log).unwrap();
    let root = fixture.root().canonicalize().unwrap();
    let calls = log.lines().filter_map(|line| {
        let (name, arguments) = line.split_once(char::is_whitespace)?.1.trim_start().split_once('(')?;
        assert!(arguments.contains("= 0"), "{line}");
        if name.starts_with("rename") {
            let mut quoted = arguments.split('"').skip(1).step_by(2);
            let (from, to) = (quoted.next()?, quoted.next()?);
            return Some(format!("{name} {} {to}", from.trim_end_matches(|c: char| c.is_ascii_digit())));
        }
        let path = arguments.split_once('<')?.1.split_once('>')?.0;
        Some(format!("{name} {}", path.strip_prefix(root.to_str()?)?.trim_start_matches('/')))
    });
    calls.collect()
}

/// From the rename that makes the version exist to the end, whatever was published. A history that is new
/// needs its name synced, too.
fn check_commit(row: &str, calls: &[String]) {
    let mut expected = vec!["renameat2 v2.tmp v2", "fsync scout/versions", "fsync scout/history.jsonl"];
    if row == "a new agent" {
        expected.push("fsync scout");
    }
    expected.push("renameat .current- current");
    let (last, before) = calls.split_last().unwrap();
    assert_eq!(before, expected, "{row}");
    // On btrfs a moved link takes more than its directory.
    assert!(["fsync scout", "syncfs scout"].contains(&last.as_str()), "{row}: {last}");
}

fn commit_point(calls: &[String]) -> usize {
    calls.iter().position(|call| call.starts_with("renameat2")).expect("the version is renamed into place")
}

#[test]
fn everything_lasts_before_what_depends_on_it() {
    if !can_strike() {
        return;
    }
    for (row, fixture) in [("a new agent", Fixture::new()), ("a second version", Fixture::with_v1())] {
        let calls = order_of(Work::Publish, &fixture);
        let (payload, commit) = calls.split_at(commit_point(&calls));
        let mut files = vec!["config.json", "manifest.json", "model.engine", "weights/a/b/model.bin"];
        let mut above = vec!["fsync scout"];
        if row == "a new agent" {
            above.push("fsync ");
        } else {
            files.push("weights/model.bin");
        }
        let (synced, rest) = payload.split_at(files.len());
        let staged = |path: &str| format!("fsync scout/versions/v2.tmp/{path}");
        let files: BTreeSet<_> = files.into_iter().map(staged).collect();
        assert_eq!(synced.iter().cloned().collect::<BTreeSet<_>>(), files, "{row}: the files");
        let mut dirs = ["weights/a/b", "weights/a", "weights"].map(staged).to_vec();
        dirs.push("fsync scout/versions/v2.tmp".to_owned());
        dirs.extend(above.into_iter().map(ToOwned::to_owned));
        assert_eq!(rest, dirs, "{row}: the directories, from the innermost out");
        check_commit(row, commit);
    }
}

#[test]
fn many_small_files_last_by_one_call() {
    if !can_strike() {
        return;
    }
    let calls = order_of(Work::PublishMany, &Fixture::with_v1());
    let (payload, commit) = calls.split_at(commit_point(&calls));
    assert_eq!(payload, ["syncfs scout/versions/v2.tmp", "fsync scout"]);
    check_commit("many files", commit);
}

#[test]
fn a_rename_elsewhere_does_not_fail_a_look_up() {
    if !can_strike() {
        return;
    }
    let fixture = Fixture::with_v1();
    let task = Task { root: fixture.root().to_owned(), version: "v2".to_owned(), work: Work::Publish };
    // What the kernel says when somebody renames anything while it follows a path with `..` in it.
    let inject = "inject=openat2:error=EAGAIN:when=1+2";
    let outcome = task.run(&strace(&["-o", "/dev/null", "-e", "trace=openat2", "-e", inject]));
    assert_eq!(outcome.code(), Some(exit::OK), "{outcome:?}");
    assert_eq!(fixture.current().version(), &version("v2"));
}

//! A publish cut at every call that changes the file system, and failed at every such call.
//!
//! The fault is the kernel's: strace kills the writer on its way into the N-th call, or makes that call fail.

use std::collections::BTreeMap;
use std::process::Command;

use model_store::{StoreError, exit};

use crate::child::{Task, Work};
use crate::fixture::{Fixture, has_program, scout, version};

/// Every call by which this crate can change the file system, or ask that it last.
const CALLS: &str = "mkdirat,openat,write,pwrite64,fchmod,fsync,fdatasync,syncfs,renameat,renameat2,symlinkat,\
                     linkat,unlinkat,ftruncate,ioctl,fchmodat";

/// What the writer finds when it begins.
#[derive(Clone, Copy, Debug)]
enum Scene {
    /// No agent yet.
    Empty,
    /// A version to replace and to share from, and the leftovers of a writer that died with its intent open.
    AfterACrash,
}

impl Scene {
    fn set(self) -> Fixture {
        match self {
            Self::Empty => Fixture::new(),
            Self::AfterACrash => {
                let fixture = Fixture::with_v1();
                let agent = fixture.agent_dir();
                std::fs::create_dir_all(agent.join("versions/v0.tmp/deep")).unwrap();
                std::fs::write(agent.join("versions/v0.tmp/deep/file"), b"x").unwrap();
                std::os::unix::fs::symlink("versions/v0", agent.join(".current-4711")).unwrap();
                let history = agent.join("history.jsonl");
                let mut text = std::fs::read_to_string(&history).unwrap();
                text.push_str(&text.clone().replace(r#""from":null,"to":"v1""#, r#""from":"v1","to":"v0""#));
                text.push_str("{\"torn");
                std::fs::write(&history, text).unwrap();
                fixture
            }
        }
    }
}

fn task(fixture: &Fixture) -> Task {
    Task { root: fixture.root().to_owned(), version: "v2".to_owned(), work: Work::Publish }
}

pub(crate) fn strace(arguments: &[&str]) -> Vec<String> {
    ["strace", "-f", "-qq"].iter().chain(arguments).map(ToString::to_string).collect()
}

/// Which calls the publishing thread makes: for each name the counts, from 1, at which it changes the store.
fn calls_of_a_publish(scene: Scene) -> BTreeMap<String, Vec<usize>> {
    let fixture = scene.set();
    let log = fixture.outside().join("strace.log");
    let trace = format!("trace={CALLS}");
    let wrapper = strace(&["-o", log.to_str().unwrap(), "-e", &trace]);
    let outcome = task(&fixture).run(&wrapper);
    assert_eq!(outcome.code(), Some(exit::OK), "without a fault it succeeds: {outcome:?}");
    let log = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<_> = log.lines().filter_map(|line| line.split_once(char::is_whitespace)).collect();
    let (publisher, _) = lines.iter().find(|(_, call)| call.contains("v2.tmp")).expect("a staging was made");
    let mut counts: BTreeMap<String, (usize, Vec<usize>)> = BTreeMap::new();
    let mut begun = false;
    for call in lines.iter().filter(|(thread, _)| thread == publisher).map(|(_, call)| call.trim_start()) {
        let Some((name, rest)) = call.split_once('(') else {
            continue;
        };
        // At its end a thread is inside a call that strace does not know the name of.
        if !CALLS.split(',').any(|known| known == name) {
            continue;
        }
        let (count, cuts) = counts.entry(name.to_owned()).or_default();
        *count += 1;
        begun |= rest.contains(".lock");
        // Opening to read changes nothing.
        if begun && (name != "openat" || rest.contains("O_CREAT")) {
            cuts.push(*count);
        }
    }
    counts.into_iter().map(|(name, (_, cuts))| (name, cuts)).filter(|(_, cuts)| !cuts.is_empty()).collect()
}

/// A reader finds the old version or the new one, complete; so does whoever asks for every version by name.
fn check_readers(row: &str, fixture: &Fixture, scene: Scene) {
    let current = fixture.store.get_current(&scout()).unwrap_or_else(|e| panic!("{row}: {e}"));
    match (&current, scene) {
        (None, Scene::Empty) => {}
        (Some(current), Scene::Empty) => assert_eq!(current.version().as_str(), "v2", "{row}"),
        (Some(current), Scene::AfterACrash) => {
            assert!(["v1", "v2"].contains(&current.version().as_str()), "{row}");
        }
        (None, Scene::AfterACrash) => panic!("{row}: nothing is current"),
    }
    match fixture.store.versions(&scout()) {
        Ok(versions) => {
            for version in versions {
                let report =
                    fixture.store.verify(&scout(), &version).unwrap_or_else(|e| panic!("{row}: {e}"));
                assert!(report.is_ok(), "{row}: {version}: {:?}", report.findings);
            }
        }
        Err(e) => assert!(matches!(e, StoreError::AgentNotFound { .. }), "{row}: {e}"),
    }
}

/// How far the writer came.
fn state_of(fixture: &Fixture) -> &'static str {
    let versions = fixture.agent_dir().join("versions");
    if fixture.store.get_current(&scout()).unwrap().is_some_and(|current| current.version() == &version("v2"))
    {
        "active"
    } else if versions.join("v2").exists() {
        "published"
    } else if versions.join("v2.tmp").exists() {
        "staged"
    } else {
        "untouched"
    }
}

/// The next mutation clears what is left, and the history tells the truth again.
fn check_recovery(row: &str, fixture: &Fixture) {
    fixture.publish("v3", &[("weights/model.bin", b"next")]).unwrap_or_else(|e| panic!("{row}: {e}"));
    assert!(fixture.leftovers().is_empty(), "{row}: {:?} left", fixture.leftovers());
    assert_eq!(fixture.current().version(), &version("v3"), "{row}");
    let history = fixture.history();
    assert_eq!(history.last().unwrap()["to"], "v3", "{row}");
    for pair in history.windows(2) {
        assert_eq!(pair[0]["to"], pair[1]["from"], "{row}: the history has a gap");
    }
}

pub(crate) fn can_inject() -> bool {
    if !has_program("strace", "-V") {
        return false;
    }
    let allowed =
        Command::new("strace").args(["-f", "-qq", "true"]).output().is_ok_and(|out| out.status.success());
    if !allowed {
        eprintln!("skipped: strace may not trace here");
    }
    allowed
}

#[test]
fn a_writer_killed_at_any_call_leaves_the_old_or_the_new() {
    if !can_inject() {
        return;
    }
    for scene in [Scene::Empty, Scene::AfterACrash] {
        let mut left: BTreeMap<&str, usize> = BTreeMap::new();
        for (call, counts) in calls_of_a_publish(scene) {
            for count in counts {
                let row = format!("{scene:?}, killed at {call} {count}");
                let fixture = scene.set();
                let inject = format!("inject={call}:signal=SIGKILL:when={count}");
                let trace = format!("trace={call}");
                let outcome = task(&fixture).run(&strace(&["-o", "/dev/null", "-e", &trace, "-e", &inject]));
                assert_ne!(outcome.code(), Some(exit::OK), "{row}: it lived");
                check_readers(&row, &fixture, scene);
                *left.entry(state_of(&fixture)).or_insert(0) += 1;
                check_recovery(&row, &fixture);
            }
        }
        eprintln!("{scene:?}: cuts by how far the writer came: {left:?}");
        // Every stage of the protocol was really cut.
        let stages: Vec<_> = left.keys().copied().collect();
        assert_eq!(stages, ["active", "published", "staged", "untouched"], "{scene:?}");
    }
}

#[test]
fn any_call_that_fails_is_reported_and_leaves_nothing() {
    if !can_inject() {
        return;
    }
    for scene in [Scene::Empty, Scene::AfterACrash] {
        let calls = calls_of_a_publish(scene);
        for (error, code) in
            [("ENOSPC", exit::ENVIRONMENT), ("EIO", exit::FAILURE), ("EROFS", exit::ENVIRONMENT)]
        {
            let mut faults = 0;
            for (call, counts) in &calls {
                for count in counts {
                    let row = format!("{scene:?}, {call} {count} fails with {error}");
                    let fixture = scene.set();
                    let inject = format!("inject={call}:error={error}:when={count}");
                    let trace = format!("trace={call}");
                    let outcome =
                        task(&fixture).run(&strace(&["-o", "/dev/null", "-e", &trace, "-e", &inject]));
                    check_readers(&row, &fixture, scene);
                    if outcome.code() == Some(exit::OK) {
                        // A leftover that could not be cleared, a note that could not be written: nothing of
                        // ours.
                        assert_eq!(fixture.current().version(), &version("v2"), "{row}");
                    } else {
                        check_refusal(&row, &fixture, &outcome, code);
                        faults += 1;
                    }
                    check_recovery(&row, &fixture);
                }
            }
            eprintln!("{scene:?}, {error}: {faults} faults reported");
            assert!(faults > 20, "{scene:?}, {error}: only {faults} faults were noticed");
        }
    }
}

/// A failed publish says which file it failed at and what the system said, and nothing of it is left.
fn check_refusal(row: &str, fixture: &Fixture, outcome: &crate::child::Outcome, code: u8) {
    let message = outcome.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    if message.contains("could not be confirmed") {
        assert_eq!(outcome.code(), Some(exit::FAILURE), "{row}: {outcome:?}");
        assert_eq!(fixture.current().version(), &version("v2"), "{row}");
        return;
    }
    assert_eq!(outcome.code(), Some(code), "{row}: {outcome:?}");
    assert!(message.contains("could not") && message.contains("/store"), "{row}: {message:?}");
    assert!(message.contains("os error"), "{row}: {message:?}");
    let left = fixture.leftovers();
    assert!(!left.contains(&"versions/v2.tmp".to_owned()), "{row}: {left:?} left");
    let versions = fixture.store.versions(&scout()).unwrap_or_default();
    assert!(!versions.contains(&version("v2")), "{row}: v2 stayed after {message:?}");
}

#[test]
fn a_rename_elsewhere_does_not_fail_a_look_up() {
    if !can_inject() {
        return;
    }
    let fixture = Scene::AfterACrash.set();
    // What the kernel says when somebody renames anything while it follows a path with `..` in it.
    let inject = "inject=openat2:error=EAGAIN:when=1+2";
    let outcome = task(&fixture).run(&strace(&["-o", "/dev/null", "-e", "trace=openat2", "-e", inject]));
    assert_eq!(outcome.code(), Some(exit::OK), "{outcome:?}");
    assert_eq!(fixture.current().version(), &version("v2"));
}

//! Several writers: one at a time, and the others are told who that is.

use std::time::{Duration, Instant};

use model_store::{FinalizeOptions, Policy, StoreError, exit};

use crate::child::{Task, Work};
use crate::fixture::{Fixture, payload, scout, version};

fn task(fixture: &Fixture, version: &str, work: Work) -> Task {
    Task { root: fixture.root().to_owned(), version: version.to_owned(), work }
}

#[test]
fn two_processes_with_the_same_version_one_wins() {
    for round in 0..5 {
        let fixture = Fixture::with_v1();
        let mut children = [0, 1].map(|_| task(&fixture, "v2", Work::PublishOnSignal).start());
        for child in &mut children {
            child.go();
        }
        let outcomes = children.map(crate::child::Running::end);
        let codes = [outcomes[0].code(), outcomes[1].code()];
        let won = codes.iter().filter(|code| **code == Some(exit::OK)).count();
        assert_eq!(won, 1, "round {round}: {outcomes:?}");
        let lost = outcomes.iter().find(|outcome| outcome.code() != Some(exit::OK)).unwrap();
        let clear = match lost.code() {
            Some(exit::REFUSED) => lost.stderr.contains("exists already"),
            Some(exit::BUSY) => lost.stderr.contains("is busy"),
            _ => false,
        };
        assert!(clear, "round {round}: {lost:?}");
        assert!(fixture.store.verify(&scout(), &version("v2")).unwrap().is_ok());
        assert_eq!(fixture.current().version(), &version("v2"));
        assert!(fixture.leftovers().is_empty(), "round {round}: {:?}", fixture.leftovers());
    }
}

#[test]
fn two_processes_with_different_versions_both_win() {
    for round in 0..5 {
        // Without an agent at first, so that they race for making it, too.
        let fixture = Fixture::new();
        let mut children = ["v2", "v3"].map(|name| task(&fixture, name, Work::PublishOnSignal).start());
        for child in &mut children {
            child.go();
        }
        for outcome in children.map(crate::child::Running::end) {
            assert_eq!(outcome.code(), Some(exit::OK), "round {round}: {outcome:?}");
        }
        for name in ["v2", "v3"] {
            assert!(fixture.store.verify(&scout(), &version(name)).unwrap().is_ok(), "round {round}: {name}");
        }
        let history = fixture.history();
        assert_eq!(history.len(), 2, "round {round}");
        assert_eq!(history[1]["from"], history[0]["to"], "round {round}: one after the other");
        assert_eq!(history[1]["to"], fixture.current().version().as_str(), "round {round}");
    }
}

#[test]
fn many_threads_publish_and_read_at_once() {
    let fixture = Fixture::with_v1();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let current = fixture.current();
                let report = fixture.store.verify(&scout(), current.version()).unwrap();
                assert!(report.is_ok(), "{report:?}");
                reads += 1;
            }
            reads
        });
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let fixture = &fixture;
                scope.spawn(move || {
                    for i in 0..5 {
                        fixture.publish(&format!("w{writer}-{i}"), &[("config.json", &[i; 10_000])]).unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
    });
    assert_eq!(fixture.store.versions(&scout()).unwrap().len(), 21);
    let history = fixture.history();
    for pair in history.windows(2) {
        assert_eq!(pair[0]["to"], pair[1]["from"], "the history has a gap");
    }
}

/// A child has every handle of its parent until it executes its program, and a lock lives as long as its handle
/// is open somewhere.
#[test]
fn a_lock_ends_with_its_holder_whatever_other_threads_fork_meanwhile() {
    let fixture = Fixture::with_v1();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    std::process::Command::new("true").status().unwrap();
                }
            });
        }
        let still_leased = (0..1000).find_map(|round| {
            drop(fixture.current().lease().unwrap());
            let plan = fixture.store.plan_gc(&[scout()], &Policy::default()).unwrap();
            let verdict = &plan.decisions[0].verdict;
            format!("{verdict:?}").contains("leased").then(|| format!("round {round}: {verdict:?}"))
        });
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(still_leased, None);
    });
}

#[test]
fn a_busy_agent_names_who_holds_its_lock() {
    let fixture = Fixture::with_v1();
    let mut child = task(&fixture, "v2", Work::HoldLock).start();
    child.await_word("holding");
    let patience = Duration::from_millis(300);
    let started = Instant::now();
    let error =
        fixture.store.clone().with_lock_patience(patience).stage_new(&scout(), &version("v3")).unwrap_err();
    let waited = started.elapsed();
    assert!(waited >= patience && waited < patience * 10, "waited {waited:?}");
    assert_eq!(error.exit_code(), exit::BUSY);
    let StoreError::Busy { holder: Some(holder), .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, child.pid());
    assert!(!holder.user.is_empty() && !holder.host.is_empty() && !holder.command.is_empty(), "{holder:?}");
    let message = error.to_string();
    assert!(message.contains("agent scout is busy"), "{message}");
    assert!(message.contains(&format!("process {}", child.pid())), "{message}");
    // Readers do not care.
    assert_eq!(fixture.current().version(), &version("v1"));

    let outcome = child.end();
    assert_eq!(outcome.code(), Some(exit::OK), "{outcome:?}");
    fixture.publish("v3", &[("x", b"x")]).unwrap();
}

#[test]
fn a_staging_in_use_names_who_uses_it() {
    let fixture = Fixture::with_v1();
    let mut child = task(&fixture, "v2", Work::HoldStaging).start();
    child.await_word("holding");
    let error = fixture.store.stage_new(&scout(), &version("v2")).unwrap_err();
    assert_eq!(error.exit_code(), exit::BUSY);
    let StoreError::Busy { holder: Some(holder), .. } = &error else { panic!("{error}") };
    assert_eq!(holder.pid, child.pid(), "{error}");
    // Another version is nobody's business, and recovery leaves the staging that is in use alone.
    fixture.publish("v3", &[("x", b"x")]).unwrap();
    assert_eq!(fixture.leftovers(), ["versions/v2.tmp"]);
    let stagings = fixture.store.stagings(&scout()).unwrap();
    assert_eq!(stagings.len(), 1);
    assert_eq!((&stagings[0].version, stagings[0].in_use), (&version("v2"), true));
    assert_eq!(child.end().code(), Some(exit::OK));
    assert!(fixture.store.verify(&scout(), &version("v2")).unwrap().is_ok());
    assert!(fixture.leftovers().is_empty());
}

#[test]
fn a_staging_given_up_does_not_disturb_the_one_beside_it() {
    let fixture = Fixture::new();
    let first = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    let second = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    drop(first);
    second.write(&payload("x"), b"x").unwrap();
    second.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(fixture.current().version(), &version("v2"));
}

//! Being told when `current` moved.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use model_store::{Change, MoveOptions, VersionName, exit};

use crate::fixture::{Fixture, agent, scout, version};

/// Long enough for any machine; a test that waits it out has failed.
const PATIENCE: Duration = Duration::from_mins(1);

fn names(change: &Change) -> (Option<&str>, Option<&str>) {
    let to = change.to.as_ref().map(|current| current.version().as_str());
    (change.from.as_ref().map(VersionName::as_str), to)
}

#[test]
fn the_first_look_reports_what_is_and_then_every_move() {
    let fixture = Fixture::new();
    let mut watch = fixture.store.watch(&scout());
    assert_eq!(names(&watch.poll().unwrap().unwrap()), (None, None), "nothing is there yet");
    assert!(watch.poll().unwrap().is_none());
    let published = fixture.publish("v1", &[("a", b"1")]).unwrap();
    let change = watch.poll().unwrap().unwrap();
    assert_eq!(names(&change), (None, Some("v1")));
    assert_eq!(change.to.unwrap().checksum(), published.checksum);
    assert!(watch.poll().unwrap().is_none());
    fixture.publish("v2", &[("a", b"2")]).unwrap();
    fixture.store.rollback(&scout(), None, &MoveOptions::default()).unwrap();
    assert!(watch.poll().unwrap().is_none(), "back where it was at the last look");
    fs::remove_file(fixture.agent_dir().join("current")).unwrap();
    assert_eq!(names(&watch.poll().unwrap().unwrap()), (Some("v1"), None));
}

#[test]
fn a_look_that_failed_is_no_look() {
    let fixture = Fixture::with_v1();
    let mut watch = fixture.store.watch(&scout());
    watch.poll().unwrap().unwrap();
    let versions = fixture.agent_dir().join("versions");
    fs::rename(versions.join("v1"), versions.join("elsewhere")).unwrap();
    assert_eq!(watch.poll().unwrap_err().exit_code(), exit::CORRUPT);
    fs::rename(versions.join("elsewhere"), versions.join("v1")).unwrap();
    assert!(watch.poll().unwrap().is_none(), "what was there before is there again");
}

#[test]
fn a_wait_ends_with_the_move_and_misses_none_that_lasts() {
    let fixture = Fixture::with_v1();
    fixture.publish("v2", &[("a", b"2")]).unwrap();
    // So long an interval that only the kernel's notice can be quick; without it the test still ends.
    let mut watch = fixture.store.watch(&scout()).with_interval(Duration::from_secs(5));
    watch.wait(PATIENCE).unwrap().unwrap();
    for round in 0..50 {
        let expected = if round % 2 == 0 { "v1" } else { "v2" };
        let change = std::thread::scope(|scope| {
            scope.spawn(|| {
                fixture.store.activate(&scout(), &version(expected), &MoveOptions::default()).unwrap();
            });
            watch.wait(PATIENCE).unwrap().unwrap()
        });
        assert_eq!(names(&change).1, Some(expected), "round {round}");
    }
    assert!(watch.wait(Duration::from_millis(20)).unwrap().is_none(), "nothing moves any more");
}

#[test]
fn an_agent_that_is_not_there_yet_is_waited_for() {
    let fixture = Fixture::new();
    let newcomer = agent("newcomer");
    let mut watch = fixture.store.watch(&newcomer).with_interval(Duration::from_millis(20));
    watch.poll().unwrap();
    let change = std::thread::scope(|scope| {
        scope.spawn(|| {
            let staging = fixture.store.stage_new(&newcomer, &version("v1")).unwrap();
            staging.write(&"a".parse().unwrap(), b"1").unwrap();
            staging.finalize(model_store::FinalizeOptions::default()).unwrap();
        });
        watch.wait(PATIENCE).unwrap().unwrap()
    });
    assert_eq!(names(&change), (None, Some("v1")));
}

#[test]
fn watching_does_not_keep_a_version() {
    let fixture = Fixture::with_v1();
    let mut watch = fixture.store.watch(&scout());
    drop(watch.poll().unwrap());
    let held: BTreeSet<_> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter(|path| path.starts_with(fixture.agent_dir().join("versions/v1")))
        .collect();
    assert!(held.is_empty(), "{held:?}");
}

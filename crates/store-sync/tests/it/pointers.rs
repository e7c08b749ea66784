//! The pointer goes forward, and nobody is fooled by an old one.

use std::fs;
use std::sync::Barrier;
use std::time::Duration;

use model_store::{MoveOptions, exit};
use store_sync::{ConditionalPuts, PullOptions, PushOptions, Step, SyncError};

use crate::world::{World, agent, assert_refused, current, publish, pull, push, push_with, version};

const POINTER: &str = "agents/scout/current.json";

fn step(world: &World, store: &model_store::ModelStore) -> Result<Step, SyncError> {
    world.remote().sync_agent(store, &agent("scout"), &PullOptions::default())
}

#[test]
fn an_old_pointer_is_refused_and_a_rollback_is_a_new_one() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    publish(&here, "scout/v1", &[("a", b"one")]);
    push(&remote, &here, "scout/v1").unwrap();
    let old = world.objects()[POINTER].clone();
    assert!(matches!(step(&world, &there), Ok(Step::Followed(_))));
    publish(&here, "scout/v2", &[("a", b"two")]);
    push(&remote, &here, "scout/v2").unwrap();
    let newer = world.objects()[POINTER].clone();
    assert!(matches!(step(&world, &there), Ok(Step::Followed(_))));
    assert!(matches!(step(&world, &there), Ok(Step::InStep { serial: 2 })));

    world.tamper(POINTER, |_| old.clone());
    assert_refused("replayed", pull(&remote, &there, "scout"), exit::REFUSED, "an old pointer came back");
    assert_refused("replayed", step(&world, &there), exit::REFUSED, "an old pointer came back");
    let seen = remote.seen(&there, &agent("scout")).unwrap();
    assert_eq!((seen.serial, seen.failures), (2, 1));
    assert!(seen.trouble.is_some_and(|trouble| trouble.contains("serial 1")));
    // Two writers that did not see each other.
    world.tamper(POINTER, |_| {
        String::from_utf8(old.clone()).unwrap().replace("\"serial\": 1", "\"serial\": 2").into_bytes()
    });
    assert!(String::from_utf8_lossy(&world.objects()[POINTER]).contains("\"serial\": 2"));
    assert_refused("twins", step(&world, &there), exit::REFUSED, "an old pointer came back");
    fs::remove_file(world.bucket().join(POINTER)).unwrap();
    assert_refused("gone", step(&world, &there), exit::NOT_FOUND, "seen serial 2");
    assert_eq!(current(&there, "scout").as_deref(), Some("v2"), "nothing of it moved anything");

    world.tamper("store.json", |store| store);
    fs::write(world.bucket().join(POINTER), newer).unwrap();
    let back = push(&remote, &here, "scout/v1").unwrap();
    assert_eq!(back.pointer.map(|pointer| pointer.serial), Some(3));
    assert!(matches!(step(&world, &there), Ok(Step::Followed(_))));
    assert_eq!(current(&there, "scout").as_deref(), Some("v1"));
    assert_eq!(remote.seen(&there, &agent("scout")).unwrap().trouble, None);
}

#[test]
fn what_is_activated_by_hand_stays_until_the_fleet_moves() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    for name in ["scout/v1", "scout/v2"] {
        publish(&here, name, &[("a", name.as_bytes())]);
        push(&remote, &here, name).unwrap();
        step(&world, &there).unwrap();
    }
    there.activate(&agent("scout"), &version("v1"), &MoveOptions::default()).unwrap();
    assert!(matches!(step(&world, &there), Ok(Step::InStep { serial: 2 })));
    assert_eq!(current(&there, "scout").as_deref(), Some("v1"));
    publish(&here, "scout/v3", &[("a", b"three")]);
    push(&remote, &here, "scout/v3").unwrap();
    let staged = PullOptions { stage_only: true, ..PullOptions::default() };
    remote.sync_agent(&there, &agent("scout"), &staged).unwrap();
    assert_eq!(current(&there, "scout").as_deref(), Some("v1"), "it was only staged");
    assert!(there.get_version(&agent("scout"), &version("v3")).unwrap().is_some());
}

#[test]
fn a_pointer_has_its_time() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    publish(&here, "scout/v1", &[("a", b"one")]);
    let expires = |milliseconds| PushOptions {
        expires: Some(Duration::from_millis(milliseconds)),
        ..PushOptions::default()
    };
    push_with(&remote, &here, "scout/v1", &expires(1)).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    assert_refused("expired", pull(&remote, &there, "scout"), exit::REFUSED, "expired at");
    assert_refused("expired", step(&world, &there), exit::REFUSED, "expired at");
    assert_eq!(current(&there, "scout"), None);
    let renewed = push_with(&remote, &here, "scout/v1", &expires(600_000)).unwrap();
    assert_eq!((renewed.moved, renewed.pointer.unwrap().serial), (true, 2));
    assert!(matches!(step(&world, &there), Ok(Step::Followed(_))));
}

#[test]
fn nobody_moves_what_he_has_not_seen() {
    let world = World::new();
    let (one, two) = (world.host("one"), world.host("two"));
    let remote = world.remote();
    for (store, name) in [(&one, "scout/v1"), (&two, "scout/v2")] {
        publish(store, name, &[("a", name.as_bytes())]);
    }
    push(&remote, &one, "scout/v1").unwrap();
    assert_refused("unseen", push(&remote, &two, "scout/v2"), exit::REFUSED, "which this host has not seen");
    assert_eq!(remote.pointer(&agent("scout")).unwrap().unwrap().serial, 1);
    let over = PushOptions { over: true, ..PushOptions::default() };
    push_with(&remote, &two, "scout/v2", &over).unwrap();
    // And now the first has not seen that: a pull shows it, and the next push goes.
    publish(&one, "scout/v3", &[("a", b"three")]);
    assert_refused("unseen", push(&remote, &one, "scout/v3"), exit::REFUSED, "v2 (serial 2");
    pull(&remote, &one, "scout").unwrap();
    push(&remote, &one, "scout/v3").unwrap();
    assert_eq!(remote.pointer(&agent("scout")).unwrap().unwrap().serial, 3);
}

/// Writers at the same moment: the serials are those of the moves that were said to be done, each once.
#[test]
fn of_writers_at_one_moment_each_is_told_what_became_of_it() {
    // What the folder can, and a server that keeps no condition at all.
    for puts in [None, Some(ConditionalPuts { create: false, update: false })] {
        let world = World::new();
        if let Some(puts) = puts {
            world.tamper("store.json", |json| {
                let mut file: store_sync::StoreFile = serde_json::from_slice(&json).unwrap();
                file.conditional_puts = puts;
                serde_json::to_vec(&file).unwrap()
            });
        }
        let hosts: Vec<_> = (0..4).map(|i| world.host(&format!("host-{i}"))).collect();
        for (i, host) in hosts.iter().enumerate() {
            publish(host, &format!("scout/v{i}"), &[("a", format!("{i}").as_bytes())]);
        }
        let barrier = Barrier::new(hosts.len());
        let push = |(i, host): (usize, &model_store::ModelStore)| {
            let remote = world.remote();
            let options = PushOptions { over: true, who: format!("host-{i}"), ..PushOptions::default() };
            barrier.wait();
            remote.push(host, &agent("scout"), &version(&format!("v{i}")), &options)
        };
        let push = &push;
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                hosts.iter().enumerate().map(|one| scope.spawn(move || push(one))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut serials = Vec::new();
        for outcome in outcomes {
            match outcome {
                Ok(pushed) => serials.push(pushed.pointer.unwrap().serial),
                Err(e) => assert_eq!(e.exit_code(), exit::BUSY, "{puts:?}: {e}"),
            }
        }
        serials.sort_unstable();
        let expected: Vec<_> = (1..=serials.len() as u64).collect();
        assert!(!serials.is_empty(), "{puts:?}: somebody gets through");
        assert_eq!(serials, expected, "{puts:?}");
        assert_eq!(world.remote().pointer(&agent("scout")).unwrap().unwrap().serial, serials.len() as u64);
        assert!(!world.bucket().join("agents/scout/lease.json").exists(), "{puts:?}");
    }
}

#[test]
fn a_dead_writers_lease_ends_by_itself() {
    let world = World::new();
    let here = world.host("here");
    publish(&here, "scout/v1", &[("a", b"one")]);
    let lease = |expires: &str| {
        let json = serde_json::json!(
            { "format": 1, "holder": "someone", "who": "ada@elsewhere", "expires": expires }
        );
        fs::create_dir_all(world.bucket().join("agents/scout")).unwrap();
        fs::write(world.bucket().join("agents/scout/lease.json"), json.to_string()).unwrap();
    };
    lease("2999-01-01T00:00:00Z");
    assert_refused("held", push(&world.remote(), &here, "scout/v1"), exit::BUSY, "ada@elsewhere has a lease");
    lease("2020-01-01T00:00:00Z");
    push(&world.remote(), &here, "scout/v1").unwrap();
}

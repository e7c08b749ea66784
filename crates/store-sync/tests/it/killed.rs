//! A pull that is killed: wherever it was, nothing wrong is published, and the next one goes on from there.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use model_store::exit;

use crate::child::{Task, Work};
use crate::proxy::{Fault, Proxy};
use crate::server::{REMOTE, Server, variables};
use crate::world::{World, agent, assert_sound, bytes, current, incoming, publish, pull, push, version};

/// Every call that can change a file system, or ask that it last.
const CALLS: [&str; 12] = [
    "mkdirat",
    "openat",
    "write",
    "pwrite64",
    "fallocate",
    "fchmod",
    "fsync",
    "renameat2",
    "renameat",
    "symlinkat",
    "linkat",
    "unlinkat",
];

fn can_strike() -> bool {
    let may = Command::new("strace").args(["-f", "-qq", "true"]).output();
    let may = may.is_ok_and(|out| out.status.success());
    if !may {
        eprintln!("skipped: strace is not here, or may not trace");
    }
    may
}

/// The old version or the new one, sound; whatever is there is what was published.
fn assert_old_or_new(row: &str, store: &model_store::ModelStore) {
    let now = current(store, "scout");
    assert!(matches!(now.as_deref(), Some("v1" | "v2")), "{row}: {now:?}");
    for name in store.versions(&agent("scout")).unwrap() {
        let report = store.verify(&agent("scout"), &name).unwrap();
        assert!(report.is_ok(), "{row}: {name}: {report:?}");
    }
}

/// A host with `v1`, and a folder with `v2` of a small file and one of several parts.
fn scene() -> World {
    let world = World::new();
    let here = world.host("here");
    for (name, seed) in [("scout/v1", 1), ("scout/v2", 2)] {
        publish(&here, name, &[("a", name.as_bytes()), ("b", &bytes(seed, 200_000)), ("c", b"same")]);
        push(&world.remote(), &here, name).unwrap();
        if seed == 1 {
            pull(&world.remote(), &world.host("there"), "scout").unwrap();
        }
    }
    world
}

#[test]
fn at_every_nth_system_call() {
    if !can_strike() {
        return;
    }
    // In full it is every call; otherwise a few of each kind.
    let is_full = std::env::var("TORTURE").is_ok_and(|size| size == "full");
    let (mut struck, mut whole) = (0, 0);
    for call in CALLS {
        let mut misses = 0;
        let mut count = 1;
        while misses < 2 && count < 400 {
            let world = scene();
            let there = world.host("there");
            let task = Task::new(
                world.address().to_string().as_str(),
                there.root().to_owned(),
                Work::Pull("scout".into()),
            );
            let log = world.path().join("strace.log");
            let strace = [
                "strace",
                "-f",
                "-qq",
                "-o",
                log.to_str().unwrap(),
                "-e",
                &format!("trace={call}"),
                "-e",
                &format!("inject={call}:signal=SIGKILL:when={count}"),
            ];
            let strace: Vec<_> = strace.iter().map(ToString::to_string).collect();
            let mut child = task.command(&strace, &BTreeMap::new()).spawn().unwrap();
            drop(child.stdin.take());
            let output = child.wait_with_output().unwrap();
            let row = format!("{call} {count}");
            assert_old_or_new(&row, &there);
            if output.status.success() {
                misses += 1;
                whole += 1;
            } else {
                misses = 0;
                struck += 1;
            }
            // The next pull goes on, and what it leaves is as if nothing had been.
            pull(&world.remote(), &there, "scout").unwrap_or_else(|e| panic!("{row}: {e}"));
            assert_eq!(current(&there, "scout").as_deref(), Some("v2"), "{row}");
            assert_sound(&row, &there, "scout/v2");
            count += if is_full { 1 } else { 1 + count };
        }
    }
    eprintln!("{struck} pulls were killed, {whole} came through");
    assert!(struck >= 20, "{struck} were struck, {whole} came through");
}

/// A disk that is full, or fails, at some call: an error, the old version, and the next pull works.
#[test]
fn a_failing_disk_ends_clearly() {
    if !can_strike() {
        return;
    }
    let rows = [
        ("fallocate", "ENOSPC", 1, Some(exit::ENVIRONMENT)),
        ("pwrite64", "ENOSPC", 2, Some(exit::ENVIRONMENT)),
        ("pwrite64", "EIO", 3, Some(exit::FAILURE)),
        ("fsync", "EIO", 1, Some(exit::FAILURE)),
        ("fsync", "ENOSPC", 2, Some(exit::ENVIRONMENT)),
        ("linkat", "ENOSPC", 1, Some(exit::ENVIRONMENT)),
        ("renameat2", "EIO", 1, Some(exit::FAILURE)),
    ];
    for (call, error, count, code) in rows {
        let world = scene();
        let there = world.host("there");
        let task = Task::new(
            world.address().to_string().as_str(),
            there.root().to_owned(),
            Work::Pull("scout".into()),
        );
        let inject = format!("inject={call}:error={error}:when={count}");
        let strace = [
            "strace",
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-o",
            "/dev/null",
            "-e",
            &format!("trace={call}"),
            "-e",
            &inject,
        ];
        let strace: Vec<_> = strace.iter().map(ToString::to_string).collect();
        let mut child = task.command(&strace, &BTreeMap::new()).spawn().unwrap();
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        let row = format!("{call} {count} {error}: {output:?}");
        assert_eq!(output.status.code(), code.map(i32::from), "{row}");
        assert_eq!(current(&there, "scout").as_deref(), Some("v1"), "{row}");
        assert_old_or_new(&row, &there);
        pull(&world.remote(), &there, "scout").unwrap_or_else(|e| panic!("{row}: {e}"));
        assert_sound(&row, &there, "scout/v2");
    }
}

#[test]
fn at_every_nth_received_part() {
    let Some(server) = Server::start() else { return };
    let proxy = Proxy::before(server.at);
    let variables = variables(proxy.at);
    let world = World::bare();
    let task = |root: &str, work| Task {
        retry_ms: 20_000,
        stall_ms: 20_000,
        ..Task::new(REMOTE, world.path().join(root), work)
    };
    task("here", Work::Init).run(&variables).answer("init");
    let here = world.host("here");
    let size = 5_000_000;
    publish(&here, "scout/v1", &[("a", b"one")]);
    task("here", Work::Push("scout/v1".into())).run(&variables).answer("push");
    task("there", Work::Pull("scout".into())).run(&variables).answer("pull");
    publish(&here, "scout/v2", &[("a", &bytes(2, size))]);
    task("here", Work::Push("scout/v2".into())).run(&variables).answer("push");
    let there = world.host("there");
    let before = proxy.blob_bytes();
    let mut kills = 0;
    let mut had = 0;
    for round in 1..=5 {
        // Slow enough to be caught at it: 64 KiB in a third of a second, several at a time.
        proxy.harm_blobs(Fault::Trickle(20_000), -1);
        let from = proxy.blob_bytes();
        let mut child = task("there", Work::Pull("scout".into())).start(&variables);
        let begun = Instant::now();
        while proxy.blob_bytes() < from + 300_000 && !child.has_ended() {
            assert!(begun.elapsed() < Duration::from_mins(1), "round {round}: nothing comes");
            std::thread::sleep(Duration::from_millis(10));
        }
        let has_ended = child.has_ended();
        child.kill();
        proxy.heal();
        if has_ended {
            break;
        }
        kills += 1;
        assert_old_or_new(&format!("round {round}"), &there);
        let on_its_way: u64 = incoming(&there, "scout")
            .iter()
            .map(|name| there.root().join("scout/.incoming").join(name).metadata().unwrap().len())
            .sum();
        assert!(on_its_way >= had, "round {round}: what was there is still there");
        had = on_its_way;
    }
    assert!(kills >= 3, "{kills} were killed");
    assert!(had > 500_000, "{had} bytes were kept over {kills} kills");
    let pulled = task("there", Work::Pull("scout".into())).run(&variables).answer("pull");
    assert_eq!(pulled["received_bytes"], size as u64 - had, "only the rest was fetched");
    assert_eq!(current(&there, "scout").as_deref(), Some("v2"));
    assert_sound("pulled", &there, "scout/v2");
    assert!(there.get_version(&agent("scout"), &version("v2")).unwrap().is_some());
    // Each kill costs what was under way, and no more.
    let came = proxy.blob_bytes() - before;
    assert!(came < size as u64 + 7 * 1_000_000, "{came} bytes for {size}");
}

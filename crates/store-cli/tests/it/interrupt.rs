//! Ctrl-C, and somebody else at work.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::process::{Child, Output};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use model_store::{MoveOptions, Progress};
use rustix::process::{Pid, Signal};

use crate::desk::{Desk, agent, version};

pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub(crate) fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let started = Instant::now();
    while !there() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn check_stopped(row: &str, output: &Output, undone: &str) {
    assert_eq!(output.status.code(), Some(130), "{row}: {output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("stopped; {undone}\n"), "{row}");
}

#[test]
fn ctrl_c_in_the_middle_of_a_publish_leaves_nothing() {
    for (row, sent) in [("Ctrl-C", Signal::INT), ("systemd's stop", Signal::TERM)] {
        let desk = Desk::new();
        // Takes longer to copy than the signal takes to come; little of it is ever written. A disk without room for it would
        // have it refused.
        let disk = rustix::fs::statvfs(desk.folder()).unwrap();
        let bytes = (disk.f_bavail * disk.f_frsize / 2).min(20_000_000_000);
        File::create(desk.folder().join("model.bin")).unwrap().set_len(bytes).unwrap();
        let child = desk.command(&["publish", "scout", "v1", "--from", "folder"]).spawn().unwrap();
        let copied = desk.root().join("scout/versions/v1.tmp/model.bin");
        wait_for("the copy to begin", || fs::metadata(&copied).is_ok_and(|meta| meta.len() > 0));
        signal(&child, sent);
        check_stopped(row, &child.wait_with_output().unwrap(), "nothing was published");
        assert_eq!(fs::read_dir(desk.root()).unwrap().count(), 0, "{row}: the agent was new");
    }
}

/// Runs `during` while this process holds the lock of `scout`.
fn while_locked(desk: &Desk, during: impl FnOnce()) {
    let (locked, is_locked) = mpsc::channel();
    let (done, is_done) = mpsc::channel::<()>();
    let is_done = std::sync::Mutex::new(Some(is_done));
    // Asked once the lock is taken, just before a pointer moves.
    let progress = Progress::new(move |_| {
        if let Some(is_done) = is_done.lock().unwrap().take() {
            locked.send(()).unwrap();
            let _ = is_done.recv();
        }
        ControlFlow::Continue(())
    });
    let store = desk.store().with_progress(progress);
    let name = "held".parse().unwrap();
    std::thread::scope(|scope| {
        let writer =
            scope.spawn(move || store.tag(&agent("scout"), &name, &version("v1"), &MoveOptions::default()));
        is_locked.recv().unwrap();
        during();
        drop(done);
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn a_busy_agent_names_its_writer() {
    let desk = Desk::with_v1();
    // One to retire, and one that is current.
    desk.publish("scout", "v2");
    desk.publish("scout", "v3");
    while_locked(&desk, || {
        for command in [
            "publish scout v4 --from folder",
            "activate scout v1",
            "rollback scout --to v1",
            "tag scout champion v1",
            "untag scout champion",
            "gc scout --keep 0 --grace 0s",
        ] {
            let mut arguments: Vec<_> = command.split(' ').collect();
            arguments.extend(["--wait", "0"]);
            let run = desk.run(&arguments);
            assert_eq!(run.code, Some(5), "{command}: {}", run.stderr);
            let this = format!("process {}", std::process::id());
            let named = run.stderr.contains("agent scout is busy") && run.stderr.contains(&this);
            assert!(named, "{command}: {}", run.stderr);
        }
        desk.run(&["verify"]).ok();
        assert!(desk.run(&["ls"]).ok().contains("scout  v3"), "a staging in use is nothing to warn of");
    });
}

#[test]
fn ctrl_c_ends_the_wait_for_a_lock() {
    let desk = Desk::with_v1();
    let rows = [
        ("publish scout v3 --from folder", "nothing was published"),
        ("rollback scout --to v1", "nothing was moved"),
        ("untag scout champion", "nothing was taken away"),
    ];
    while_locked(&desk, || {
        for (command, undone) in rows {
            let child = desk.command(&command.split(' ').collect::<Vec<_>>()).spawn().unwrap();
            // By then it asks for the lock, or is just about to: a signal before its handlers stand ends it as
            // well.
            std::thread::sleep(Duration::from_millis(500));
            signal(&child, Signal::INT);
            let asked = Instant::now();
            check_stopped(command, &child.wait_with_output().unwrap(), undone);
            assert!(asked.elapsed() < Duration::from_secs(5), "{command}: it went on waiting");
        }
    });
    assert!(desk.leftovers().is_empty());
    assert_eq!(desk.store().versions(&agent("scout")).unwrap(), [version("v1")]);
}

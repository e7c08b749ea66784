//! Ctrl-C, and somebody else at work.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::process::{Child, Output};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use model_store::{FinalizeOptions, Progress};
use rustix::process::{Pid, Signal};

use crate::desk::{Desk, agent, version};

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let started = Instant::now();
    while !there() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn check_stopped(row: &str, output: &Output) {
    assert_eq!(output.status.code(), Some(130), "{row}: {output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "stopped; nothing was published\n", "{row}");
}

#[test]
fn ctrl_c_in_the_middle_of_a_publish_leaves_nothing() {
    for (row, sent) in [("Ctrl-C", Signal::INT), ("systemd's stop", Signal::TERM)] {
        let desk = Desk::new();
        // Takes longer to copy than the signal takes to come; little of it is ever written.
        File::create(desk.folder().join("model.bin")).unwrap().set_len(20_000_000_000).unwrap();
        let child = desk.command(&["publish", "scout", "v1", "--from", "folder"]).spawn().unwrap();
        let copied = desk.root().join("scout/versions/v1.tmp/model.bin");
        wait_for("the copy to begin", || fs::metadata(&copied).is_ok_and(|meta| meta.len() > 0));
        signal(&child, sent);
        check_stopped(row, &child.wait_with_output().unwrap());
        assert_eq!(fs::read_dir(desk.root()).unwrap().count(), 0, "{row}: the agent was new");
    }
}

/// Runs `during` while this process holds the lock of `scout`.
fn while_locked(desk: &Desk, during: impl FnOnce()) {
    let (locked, is_locked) = mpsc::channel();
    let (done, is_done) = mpsc::channel::<()>();
    let is_done = std::sync::Mutex::new(Some(is_done));
    let progress = Progress::new(move |bytes| {
        // Bytes are hashed in a finalize only where somebody else wrote them, and then under the lock.
        if bytes > 0
            && let Some(is_done) = is_done.lock().unwrap().take()
        {
            locked.send(()).unwrap();
            let _ = is_done.recv();
        }
        ControlFlow::Continue(())
    });
    let store = desk.store().with_progress(progress);
    let staging = store.stage_new(&agent("scout"), &version("v2")).unwrap();
    fs::write(staging.path().join("foreign"), b"x").unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || staging.finalize(FinalizeOptions::default()));
        is_locked.recv().unwrap();
        during();
        drop(done);
        writer.join().unwrap().unwrap();
    });
}

#[test]
fn a_busy_agent_names_its_writer() {
    let desk = Desk::with_v1();
    while_locked(&desk, || {
        let run = desk.run(&["publish", "scout", "v3", "--from", "folder", "--wait", "0"]);
        assert_eq!(run.code, Some(5), "{}", run.stderr);
        let this = format!("process {}", std::process::id());
        assert!(run.stderr.contains("agent scout is busy") && run.stderr.contains(&this), "{}", run.stderr);
        desk.run(&["verify"]).ok();
        assert!(desk.run(&["ls"]).ok().contains("scout  v1"), "a staging in use is nothing to warn of");
    });
}

#[test]
fn ctrl_c_ends_the_wait_for_a_lock() {
    let desk = Desk::with_v1();
    while_locked(&desk, || {
        let child = desk.command(&["publish", "scout", "v3", "--from", "folder"]).spawn().unwrap();
        // By then it asks for the lock, or is just about to: a signal before its handlers stand ends it as
        // well.
        std::thread::sleep(Duration::from_millis(500));
        signal(&child, Signal::INT);
        let asked = Instant::now();
        check_stopped("waiting", &child.wait_with_output().unwrap());
        assert!(asked.elapsed() < Duration::from_secs(5), "it went on waiting");
    });
    assert!(desk.leftovers().is_empty());
    assert_eq!(desk.store().versions(&agent("scout")).unwrap(), [version("v1"), version("v2")]);
}

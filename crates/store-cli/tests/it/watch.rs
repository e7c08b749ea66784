//! Being told when `current` moves.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout};

use rustix::process::Signal;
use serde_json::Value;

use crate::desk::{Desk, text};
use crate::interrupt::{signal, wait_for};

/// A watch, and the lines it prints.
struct Watching {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watching {
    fn begin(desk: &Desk, arguments: &[&str]) -> Self {
        let arguments = [&["watch", "--interval", "20ms"], arguments].concat();
        let mut child = desk.command(&arguments).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn json(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    fn stop(self) {
        signal(&self.child, Signal::INT);
        let output = self.child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
    }
}

#[test]
fn a_line_a_change_until_ctrl_c() {
    let desk = Desk::with_v1();
    let mut watching = Watching::begin(&desk, &["scout"]);
    let checksum = |version: &str| {
        let found = desk.store().get_version(&"scout".parse().unwrap(), &version.parse().unwrap());
        found.unwrap().unwrap().checksum().to_string()
    };
    let first = watching.line();
    assert!(first.ends_with(&format!("  scout: v1 is current   checksum {}\n", checksum("v1"))), "{first}");
    desk.publish("scout", "v2");
    let moved = watching.line();
    assert!(moved.ends_with(&format!("  scout: v1 → v2   checksum {}\n", checksum("v2"))), "{moved}");
    desk.run(&["rollback", "scout"]).ok();
    assert!(watching.line().contains("scout: v2 → v1"));
    watching.stop();
}

#[test]
fn all_agents_are_watched_new_ones_too() {
    let desk = Desk::with_v1();
    let mut watching = Watching::begin(&desk, &["--all", "--json"]);
    let first = watching.json();
    assert_eq!(
        (&first["agent"], &first["to"], &first["first"]),
        (&"scout".into(), &"v1".into(), &true.into())
    );
    desk.publish("memory", "v7");
    let new = watching.json();
    assert_eq!((&new["agent"], &new["to"], &new["first"]), (&"memory".into(), &"v7".into(), &false.into()));
    assert_eq!(new["from"], Value::Null);
    assert_eq!(new["checksum"].as_str().unwrap().len(), 64);
    assert_eq!(new["path"], text(&desk.root().join("memory/versions/v7")));
    watching.stop();
}

#[test]
fn a_command_is_run_with_what_is_current() {
    let desk = Desk::with_v1();
    let told = desk.folder().join("../told");
    let command = format!(
        "echo \"$MODEL_STORE_AGENT $MODEL_STORE_VERSION $MODEL_STORE_CHECKSUM $MODEL_STORE_PATH\" >> '{}'",
        text(&told)
    );
    let mut watching = Watching::begin(&desk, &["scout", "--exec", &command, "--json", "--once"]);
    assert_eq!(watching.json()["first"], true);
    desk.publish("scout", "v2");
    let moved = watching.json();
    // --once: it ends by itself, once the command has ended.
    let output = watching.child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    let (checksum, path) = (moved["checksum"].as_str().unwrap(), moved["path"].as_str().unwrap());
    assert_eq!(fs::read_to_string(&told).unwrap(), format!("scout v2 {checksum} {path}\n"));

    let mut watching = Watching::begin(&desk, &["scout", "--exec", "exit 3", "--once"]);
    watching.line();
    desk.run(&["rollback", "scout"]).ok();
    let output = watching.child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        String::from_utf8_lossy(&output.stderr).starts_with("warning: \"exit 3\" ended with"),
        "{output:?}"
    );
}

#[test]
fn an_agent_that_is_not_there_is_waited_for_and_ctrl_c_ends_that() {
    let desk = Desk::new();
    let mut watching = Watching::begin(&desk, &["scout"]);
    // It has looked once it has handlers for signals; what is published later is a change or what is first.
    let handlers = format!("/proc/{}/status", watching.child.id());
    wait_for("its handlers", || {
        let status = fs::read_to_string(&handlers).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(caught.trim(), 16).unwrap() & (1 << (Signal::INT.as_raw() - 1)) != 0
    });
    desk.publish("scout", "v1");
    let line = watching.line();
    assert!(line.contains("scout → v1") || line.contains("scout: v1 is current"), "{line}");
    watching.stop();
}

#[test]
fn a_reader_that_goes_away_ends_the_watch() {
    let desk = Desk::with_v1();
    let mut watching = Watching::begin(&desk, &["scout"]);
    watching.line();
    drop(watching.lines);
    desk.publish("scout", "v2");
    let output = watching.child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

//! What Prometheus is told.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use crate::desk::{Desk, text};

fn value(metrics: &str, name: &str) -> Option<f64> {
    let line =
        metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next().unwrap().parse().ok()
}

/// A store in which there is something of everything.
fn lively() -> Desk {
    let desk = Desk::new();
    for version in ["v1", "v2"] {
        desk.publish("scout", version);
    }
    desk.publish("memory", "v7");
    desk.run(&["verify", "scout", "v2"]).ok();
    desk.flip_a_bit("scout/versions/v1/config.json");
    desk.run(&["repair", "scout", "v1"]).ended(4);
    desk.run(&["publish", "memory", "v8", "--from", "folder", "--no-activate"]).ok();
    fs::create_dir(desk.root().join("scout/versions/v9.tmp")).unwrap();
    desk
}

#[test]
fn metrics_tell_what_there_is() {
    let desk = lively();
    let metrics = desk.run(&["metrics"]).ok();
    let rows = [
        ("model_store_agent_readable{agent=\"scout\"}", 1.0),
        ("model_store_versions{agent=\"scout\"}", 2.0),
        ("model_store_versions{agent=\"memory\"}", 2.0),
        ("model_store_current_info{agent=\"scout\",version=\"v2\"}", 1.0),
        ("model_store_current_verified_ok{agent=\"scout\"}", 1.0),
        ("model_store_unverified_versions{agent=\"scout\"}", 0.0),
        ("model_store_unverified_versions{agent=\"memory\"}", 2.0),
        ("model_store_corrupt_versions{agent=\"scout\"}", 1.0),
        ("model_store_quarantined_versions{agent=\"scout\"}", 1.0),
        ("model_store_stale_stagings{agent=\"scout\"}", 1.0),
        ("model_store_gc_candidates{agent=\"scout\"}", 0.0),
        ("model_store_history_records_total{agent=\"scout\",action=\"publish\"}", 2.0),
        ("model_store_history_records_total{agent=\"scout\",action=\"quarantine\"}", 1.0),
    ];
    for (name, expected) in rows {
        assert_eq!(value(&metrics, name), Some(expected), "{name} in\n{metrics}");
    }
    let free = value(&metrics, "model_store_filesystem_free_bytes").unwrap();
    let growth = value(&metrics, "model_store_growth_bytes").unwrap();
    assert!(free > 0.0 && growth > 0.0, "{metrics}");
    // A store that is an hour old is looked at as if that were a day's growth.
    let until_full = value(&metrics, "model_store_until_full_seconds").unwrap();
    assert!((until_full / (free / growth * 86_400.0) - 1.0).abs() < 0.01, "{metrics}");
    assert_eq!(value(&metrics, "model_store_current_verified_ok{agent=\"memory\"}"), None, "{metrics}");

    let json = desk.run(&["metrics", "--json"]).json();
    let versions = json.as_array().unwrap().iter().find(|family| family["name"] == "model_store_versions");
    assert_eq!(versions.unwrap()["samples"][1]["value"], 2.0);
    // Nothing grows where there is nothing.
    let empty = Desk::new().run(&["metrics"]).ok();
    assert!(!empty.contains("until_full") && !empty.contains("agent="), "{empty}");
}

#[test]
fn promtool_has_nothing_to_complain_of() {
    for (row, desk) in [("empty", Desk::new()), ("lively", lively())] {
        let metrics = desk.run(&["metrics"]).ok();
        let child = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(e) => return eprintln!("skipped: no promtool on this machine: {e}"),
        };
        child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success() && said.is_empty(), "{row}: {}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn a_file_is_replaced_as_a_whole() {
    let desk = lively();
    let dir = desk.folder().join("textfile");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("model_store.prom");
    fs::write(&path, "old").unwrap();
    let command =
        format!("umask 077; exec '{}' metrics --output '{}'", env!("CARGO_BIN_EXE_model-store"), text(&path));
    let output =
        Command::new("sh").args(["-c", &command]).env("MODEL_STORE_ROOT", desk.root()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b""[..]), "{output:?}");
    let written = fs::read_to_string(&path).unwrap();
    assert!(written.starts_with("# HELP ") && written.ends_with('\n'), "{written}");
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o644, "the collector may read it");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left beside it");
    // What cannot be put there leaves nothing either.
    fs::create_dir(dir.join("taken.prom")).unwrap();
    desk.run(&["metrics", "--output", text(&dir.join("taken.prom"))]).ended(1);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
}

#[test]
fn an_agent_that_cannot_be_read_does_not_hide_the_others() {
    let desk = Desk::with_v1();
    desk.publish("zebra", "v1");
    let link = desk.root().join("scout/current");
    fs::remove_file(&link).unwrap();
    symlink("versions/v9", &link).unwrap();
    let run = desk.run(&["metrics"]).ended(0);
    assert!(run.stderr.starts_with("warning: ") && run.stderr.contains("scout/current"), "{}", run.stderr);
    assert_eq!(value(&run.stdout, "model_store_agent_readable{agent=\"scout\"}"), Some(0.0));
    assert_eq!(value(&run.stdout, "model_store_agent_readable{agent=\"zebra\"}"), Some(1.0));
    assert_eq!(value(&run.stdout, "model_store_versions{agent=\"zebra\"}"), Some(1.0));
}

//! Ctrl-C, and children and parents that are killed while an engine is built.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use toy_store::Kind;
use trt_compiler::engine::WORKER_ARGUMENT;

use crate::support::{Bench, shown, text};

/// The builder that `parent` started, once it runs its own program: between fork and exec it is still the parent's.
fn builder_of(parent: &Child) -> u32 {
    let deadline = Instant::now() + Duration::from_mins(2);
    // Of every thread: the kernel lists a child with the one that started it.
    let threads = format!("/proc/{}/task", parent.id());
    loop {
        for thread in fs::read_dir(&threads).into_iter().flatten().flatten() {
            let pids = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            for pid in pids.split_whitespace() {
                let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if command.contains(WORKER_ARGUMENT) {
                    return pid.parse().unwrap();
                }
            }
        }
        assert!(Instant::now() < deadline, "no engine builder was started");
        sleep(Duration::from_millis(1));
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

/// Runs the main job until its engine builder is up, does `then` to parent and builder, and waits for the end.
fn cut_short(bench: &Bench, folder: &Path, then: impl FnOnce(u32, u32)) -> (Output, u32) {
    let child = bench
        .command(&["--agent", "analyst", "--source", folder.to_str().unwrap(), "--output-version", "v1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let builder = builder_of(&child);
    then(child.id(), builder);
    (child.wait_with_output().unwrap(), builder)
}

fn is_gone(pid: u32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Path::new(&format!("/proc/{pid}/exe")).exists() {
        if Instant::now() > deadline {
            return false;
        }
        sleep(Duration::from_millis(10));
    }
    true
}

fn versions(bench: &Bench) -> Vec<String> {
    bench.contents().into_iter().filter(|path| path.starts_with("analyst/versions/")).collect()
}

#[test]
fn ctrl_c_stops_the_build_and_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Analyst);
    let (output, builder) = cut_short(&bench, &folder, |parent, _| signal(parent, "INT"));
    assert_eq!(output.status.code(), Some(130), "{}", shown(&output));
    assert_eq!(text(&output.stderr).trim(), "stopped; nothing was published");
    assert!(is_gone(builder), "the builder outlived the command");
    assert_eq!(versions(&bench), Vec::<String>::new());
}

#[test]
fn a_killed_builder_is_reported_and_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Analyst);
    let (output, _) = cut_short(&bench, &folder, |_, builder| signal(builder, "KILL"));
    assert_eq!(output.status.code(), Some(7), "{}", shown(&output));
    for part in ["killed by signal 9", "when memory runs out", "build on a larger host"] {
        assert!(text(&output.stderr).contains(part), "{part}: {}", shown(&output));
    }
    assert_eq!(versions(&bench), Vec::<String>::new());
}

/// The engine is built while the graph is checked; nobody wants that of a graph which the gate refuses.
#[test]
fn a_graph_that_is_refused_stops_the_builder_that_is_at_it() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Analyst);
    let child = bench
        .command(&["--agent", "analyst", "--source", folder.to_str().unwrap(), "--max-abs", "1e-12"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let builder = builder_of(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", shown(&output));
    assert!(is_gone(builder), "the builder outlived the command");
    assert_eq!(versions(&bench), Vec::<String>::new());
}

/// Not at its start, where little has happened: when it holds the weights and compiles.
#[test]
fn a_builder_killed_in_the_middle_is_reported_and_leaves_nothing() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Analyst);
    let (output, _) = cut_short(&bench, &folder, |_, builder| {
        let deadline = Instant::now() + Duration::from_mins(1);
        while resident_mib(builder).is_some_and(|mib| mib < 120) {
            assert!(Instant::now() < deadline, "the builder never grew");
            sleep(Duration::from_millis(1));
        }
        signal(builder, "KILL");
    });
    assert_eq!(output.status.code(), Some(7), "{}", shown(&output));
    assert!(text(&output.stderr).contains("killed by signal 9"), "{}", shown(&output));
    assert_eq!(versions(&bench), Vec::<String>::new());
}

fn resident_mib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? >> 10)
}

#[test]
fn a_killed_command_takes_its_builder_with_it_and_the_next_one_clears_up() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Analyst);
    let (_, builder) = cut_short(&bench, &folder, |parent, _| signal(parent, "KILL"));
    assert!(is_gone(builder), "the builder outlived the command");
    assert!(bench.store().get_current(&"analyst".parse().unwrap()).unwrap().is_none());
    let again = bench.run(&[
        "--agent",
        "analyst",
        "--source",
        folder.to_str().unwrap(),
        "--output-version",
        "v1",
        "--no-engine",
    ]);
    assert!(again.status.success(), "{}", shown(&again));
    assert!(versions(&bench).iter().all(|path| !path.contains(".tmp")), "{:?}", versions(&bench));
}

#[test]
fn a_build_that_takes_too_long_is_stopped() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Analyst);
    let child = bench
        .command(&["--agent", "analyst", "--source", folder.to_str().unwrap(), "--build-timeout", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A builder that is stopped dead cannot finish in time.
    let builder = builder_of(&child);
    signal(builder, "STOP");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
    assert!(text(&output.stderr).contains("--build-timeout"), "{}", shown(&output));
    assert!(is_gone(builder), "the builder outlived the command");
    assert_eq!(versions(&bench), Vec::<String>::new());
}

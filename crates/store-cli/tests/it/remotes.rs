//! `push`, `pull`, `sync` and `remote`, over a folder.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::desk::{Desk, Run};

/// A desk with `scout/v1`, and a remote that is made.
fn desk() -> Desk {
    let desk = Desk::with_v1();
    let made = desk.run(&["remote", "init", "--remote", "bucket"]).ok();
    assert!(made.starts_with("made file://"), "{made}");
    assert!(made.contains("take turns by a lease"), "{made}");
    desk
}

/// Runs a command on another host, whose store is of its own.
fn elsewhere(desk: &Desk, arguments: &[&str]) -> Run {
    let root = desk.folder().with_file_name("elsewhere");
    fs::create_dir_all(&root).unwrap();
    let output = desk
        .command(arguments)
        .env("MODEL_STORE_ROOT", root)
        .env("MODEL_STORE_REMOTE", "bucket")
        .output()
        .unwrap();
    Run::of(&format!("elsewhere {arguments:?}"), &output)
}

#[test]
fn a_version_goes_from_host_to_host() {
    let desk = desk();
    let pushed = desk.run(&["push", "scout", "--remote", "bucket"]).ok();
    assert!(pushed.contains("pushed scout/v1") && pushed.contains("(serial 1)"), "{pushed}");
    let pulled = elsewhere(&desk, &["pull", "scout"]).ok();
    assert!(pulled.contains("scout → v1   serial 1") && pulled.contains("7 B came"), "{pulled}");
    assert!(elsewhere(&desk, &["verify"]).ok().contains("ok"));
    let listed = elsewhere(&desk, &["remote", "ls"]).ok();
    assert!(listed.contains("scout") && listed.contains("serial 1"), "{listed}");
    assert!(elsewhere(&desk, &["remote", "check"]).ok().contains("all is well"));
    assert!(elsewhere(&desk, &["remote", "verify"]).ok().contains("7 B read"));
    assert!(elsewhere(&desk, &["remote", "gc"]).ok().contains("0 blobs went"));

    desk.publish("scout", "v2");
    let pushed = desk.run(&["push", "scout", "--remote", "bucket", "--json"]).json();
    assert_eq!((&pushed[0]["sent_blobs"], &pushed[0]["pointer"]["serial"]), (&1.into(), &2.into()));
    let step = elsewhere(&desk, &["sync", "--all", "--json"]).json();
    assert_eq!(
        (&step["step"], &step["version"], &step["previous"]),
        (&"followed".into(), &"v2".into(), &"v1".into())
    );
    let step = elsewhere(&desk, &["sync", "--agent", "scout"]).ok();
    assert!(step.contains("scout is in step   serial 2"), "{step}");
    let metrics = elsewhere(&desk, &["metrics"]).ok();
    for (name, expected) in [("lag_serials", "0"), ("lag_seconds", "0"), ("ok", "1"), ("failures_total", "0")]
    {
        let line = metrics.lines().find(|line| line.starts_with(&format!("model_store_sync_{name}{{")));
        assert!(line.is_some_and(|line| line.ends_with(&format!(" {expected}"))), "{name} in\n{metrics}");
    }
}

#[test]
fn a_policy_that_warns_is_heard_when_a_version_comes() {
    let desk = desk();
    desk.run(&["push", "scout", "--remote", "bucket"]).ok();
    elsewhere(&desk, &["policy", "set", "warn"]).ok();
    let heard = |run: &Run| {
        assert!(
            run.stderr.contains("warning") && run.stderr.contains("scout/v1 is not signed"),
            "{}",
            run.stderr
        );
    };
    let pulled = elsewhere(&desk, &["pull", "scout"]).ended(0);
    assert!(pulled.stdout.contains("scout → v1"), "{}", pulled.stdout);
    heard(&pulled);
    let pulled = elsewhere(&desk, &["pull", "scout", "--json"]).ended(0);
    heard(&pulled);
    let pulled: serde_json::Value = serde_json::from_str(&pulled.stdout).unwrap();
    assert!(pulled[0]["caution"].as_str().unwrap().contains("is not signed"), "{pulled}");
    desk.publish("scout", "v2");
    desk.run(&["push", "scout", "--remote", "bucket"]).ok();
    let followed = elsewhere(&desk, &["sync", "--all"]).ended(0);
    assert!(followed.stderr.contains("scout/v2 is not signed"), "{}", followed.stderr);
}

#[test]
fn mistakes_have_their_codes() {
    let desk = desk();
    let rows: [(&[&str], i32, &str); 9] = [
        (&["push", "scout"], 2, "--remote"),
        (&["push", "--remote", "bucket"], 2, "AGENT"),
        (&["push", "scout", "--remote", "s3://key:hunter2@models"], 2, "must not contain a name or password"),
        (&["push", "scout", "--remote", "nowhere"], 3, "remote init"),
        (&["push", "scot", "--remote", "bucket"], 3, "did you mean scout"),
        (&["push", "scout", "--remote", "http://127.0.0.1:1/x"], 2, "for reading only"),
        (&["pull", "scout", "--remote", "bucket"], 3, "has no agent scout"),
        (
            &["pull", "scout", "--remote", "http://127.0.0.1:1/x", "--patience", "200ms"],
            8,
            "could not read store.json",
        ),
        (&["sync", "--remote", "bucket"], 2, "--agent"),
    ];
    for (arguments, code, says) in rows {
        let run = desk.run(arguments).ended(code);
        assert!(run.stderr.contains(says), "{arguments:?}: {}", run.stderr);
        assert!(!run.stderr.contains("hunter2"), "{arguments:?}: {}", run.stderr);
    }
}

#[test]
fn a_service_says_how_it_is() {
    let desk = desk();
    desk.run(&["push", "scout", "--remote", "bucket"]).ok();
    let socket = desk.folder().with_file_name("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let listener = std::thread::spawn(move || {
        let (mut said, mut message) = (String::new(), [0; 4096]);
        while !said.contains("STOPPING=1") {
            let length = manager.recv(&mut message).unwrap();
            said.push_str(&String::from_utf8_lossy(&message[..length]));
            said.push('\n');
        }
        said
    });
    let root = desk.folder().with_file_name("elsewhere");
    fs::create_dir_all(&root).unwrap();
    let mut service = desk
        .command(&["sync", "--all", "--follow", "100ms", "--json"])
        .env("MODEL_STORE_ROOT", &root)
        .env("MODEL_STORE_REMOTE", "bucket")
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "200000")
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(service.stdout.take().unwrap()).lines();
    let mut line = || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let first = line();
    assert_eq!((&first["step"], &first["version"]), (&"followed".into(), &"v1".into()));
    desk.publish("scout", "v2");
    desk.run(&["push", "scout", "--remote", "bucket"]).ok();
    let second = line();
    assert_eq!((&second["version"], &second["activated"]), (&"v2".into(), &true.into()));
    // The remote goes away, is missed once, and comes back.
    let bucket = desk.folder().with_file_name("bucket");
    fs::rename(&bucket, bucket.with_file_name("gone")).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    fs::rename(bucket.with_file_name("gone"), &bucket).unwrap();
    desk.publish("scout", "v3");
    desk.run(&["push", "scout", "--remote", "bucket"]).ok();
    let begun = Instant::now();
    while line()["version"] != "v3" {
        assert!(begun.elapsed() < Duration::from_mins(1));
    }
    let pid = rustix::process::Pid::from_raw(service.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(service.wait().unwrap().code(), Some(0));
    let said = listener.join().unwrap();
    for word in [
        "READY=1",
        "WATCHDOG=1",
        "STATUS=in step with file://",
        "STATUS=there is no model store at",
        "STOPPING=1",
    ] {
        assert!(said.contains(word), "{word} in {said}");
    }
}

#[test]
fn a_backup_is_a_push_of_everything() {
    let desk = desk();
    desk.publish("scout", "v2");
    desk.publish("memory", "v7");
    desk.run(&["publish", "memory", "v8", "--from", "folder", "--no-activate"]).ok();
    desk.run(&["publish", "memory", "old", "--from", "folder", "--no-activate", "--checksum", "legacy"]).ok();
    let backup = ["push", "--all", "--every-version", "--remote", "bucket"];
    let pushed = desk.run(&backup).ended(6);
    assert!(pushed.stderr.contains("memory/old cannot be pushed"), "{}", pushed.stderr);
    assert_eq!(pushed.stdout.matches("pushed ").count(), 4, "{}", pushed.stdout);
    let pulled = elsewhere(&desk, &["pull", "--all", "--every-version"]).ok();
    for line in [
        "scout/v1 is here",
        "scout/v2 is here",
        "memory/v7 is here",
        "memory/v8 is here",
        "scout → v2",
        "memory → v7",
    ] {
        assert!(pulled.contains(line), "{line} in {pulled}");
    }
    elsewhere(&desk, &["verify"]).ok();
    // An older version of the fleet is a push like any other, and what is behind says so.
    desk.run(&["push", "scout", "v1", "--remote", "bucket"]).ok();
    elsewhere(&desk, &["sync", "--agent", "scout"]).ok();
    assert_eq!(elsewhere(&desk, &["path", "scout"]).ok().trim().rsplit('/').next(), Some("v1"));
}

#[test]
fn a_server_that_says_nothing_is_left_on_request() {
    let desk = desk();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("http://{}/x", silent.local_addr().unwrap());
    let mut pulling = desk.command(&["pull", "scout", "--remote", &remote]).spawn().unwrap();
    // It has asked, and waits.
    let _client = silent.accept().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let pid = rustix::process::Pid::from_raw(pulling.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let begun = Instant::now();
    assert_eq!(pulling.wait().unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(5));
    let mut said = String::new();
    std::io::Read::read_to_string(&mut pulling.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("stopped; what has come so far is kept"), "{said}");
}

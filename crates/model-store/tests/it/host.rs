//! A host that does not let us write: read-only, full, or somebody else's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use model_store::{FinalizeOptions, ModelStore, exit};

use crate::child::{Task, Work};
use crate::fixture::{Fixture, full_message, payload, scout, version};

/// A mount that goes away with this value.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Runs `mount`; `None`, with the reason said, where this process may not.
    pub(crate) fn new(arguments: &[&str], at: &Path) -> Option<Self> {
        run_mount(arguments, at).then(|| Self(at.to_owned()))
    }
}

fn run_mount(arguments: &[&str], at: &Path) -> bool {
    match Command::new("mount").args(arguments).arg(at).output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => eprintln!("skipped: cannot mount: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(e) => eprintln!("skipped: no mount program: {e}"),
    }
    false
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_read_only_store_is_read_and_says_so_to_writers() {
    let fixture = Fixture::with_v1();
    let at = fixture.outside();
    let Some(_mount) = Mount::new(&["--bind", fixture.root().to_str().unwrap()], &at) else {
        return;
    };
    assert!(run_mount(&["-o", "remount,ro,bind"], &at), "what was mounted can be mounted read-only");
    let store = ModelStore::open(&at).unwrap();
    let current = store.require_current(&scout()).unwrap();
    assert_eq!(current.version(), &version("v1"));
    let _lease = current.lease().unwrap();
    assert!(store.verify(&scout(), &version("v1")).unwrap().is_ok());
    for agent in ["scout", "newcomer"] {
        let error = store.stage_new(&agent.parse().unwrap(), &version("v2")).unwrap_err();
        assert_eq!(error.exit_code(), exit::ENVIRONMENT, "{error}");
        assert!(error.to_string().contains("mounted read-only"), "{error}");
    }
    let error = store.add_alias(&"alias".parse().unwrap(), &scout()).unwrap_err();
    assert_eq!(error.exit_code(), exit::ENVIRONMENT, "{error}");
}

#[test]
fn a_full_file_system_publishes_nothing() {
    let fixture = Fixture::new();
    let at = fixture.outside();
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=2m", "tmpfs"], &at) else {
        return;
    };
    let store = ModelStore::open(&at).unwrap();
    let publish = |name: &str, bytes: usize| {
        let staging = store.stage_new(&scout(), &version(name))?;
        staging.write(&payload("model.bin"), &vec![1; bytes])?;
        staging.finalize(FinalizeOptions::default())
    };
    publish("v1", 500_000).unwrap();
    let error = publish("v2", 3_000_000).unwrap_err();
    assert_eq!(error.exit_code(), exit::ENVIRONMENT, "{error}");
    let message = full_message(&error);
    assert!(message.contains("model.bin") && message.contains("no space is left"), "{message}");
    assert!(!at.join("scout/versions/v2.tmp").exists());
    assert_eq!(store.require_current(&scout()).unwrap().version(), &version("v1"));
    // A process that another test is just starting has this one's files open until it is another program.
    let begun = Instant::now();
    while let Err(error) = publish("v2", 500_000) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{error}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_group_shares_a_store_whatever_the_umask() {
    const GROUP: u32 = 54_321;
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let fixture = Fixture::with_v1();
    fs::set_permissions(fixture.root().parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let chgrp = Command::new("chgrp").args(["-R", &GROUP.to_string()]).arg(fixture.root()).status();
    assert!(chgrp.is_ok_and(|status| status.success()), "root may change groups");
    // Both would keep everything to themselves; the second replaces and shares what the first published.
    let umask = ["sh", "-c", "umask 077; exec \"$@\"", "sh"].map(String::from);
    for (user, name) in [(65_001, "v2"), (65_002, "v3")] {
        let task = Task { root: fixture.root().to_owned(), version: name.to_owned(), work: Work::Publish };
        let output = task.command(&umask).uid(user).gid(GROUP).current_dir("/").output().unwrap();
        if matches!(output.status.code(), Some(126 | 127)) {
            eprintln!("skipped: the test binary cannot be run by another user");
            return;
        }
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(exit::OK.into()), "{name}: {message}");
        assert!(fixture.store.verify(&scout(), &version(name)).unwrap().is_ok(), "{name}");
        let dir = fixture.agent_dir().join("versions").join(name);
        let mode = |path: &str| fs::metadata(dir.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode("") & 0o070, 0o070, "{name}: the group may retire it");
        for file in ["manifest.json", "weights/model.bin", "model.engine"] {
            assert_eq!(mode(file) & 0o440, 0o440, "{name}: the group may read {file}");
            assert_eq!(mode(file) & 0o222, 0, "{name}: nobody may write {file}");
        }
    }
    assert_eq!(fixture.history().len(), 3);
}

#[test]
fn a_store_of_somebody_elses_says_so() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let fixture = Fixture::with_v1();
    // Everybody may look: it is the writing that is refused.
    for dir in fixture.root().ancestors().take(2) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let task = Task { root: fixture.root().to_owned(), version: "v2".to_owned(), work: Work::Publish };
    let mut command = task.command(&[]);
    let output = match command.uid(65534).gid(65534).current_dir("/").output() {
        Ok(output) => output,
        Err(e) => {
            eprintln!("skipped: the test binary cannot be run by another user: {e}");
            return;
        }
    };
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit::ENVIRONMENT.into()), "{message}");
    assert!(message.contains("not permitted") && message.contains("scout"), "{message}");
    assert_eq!(fixture.current().version(), &version("v1"));
    assert!(fixture.leftovers().is_empty());
}

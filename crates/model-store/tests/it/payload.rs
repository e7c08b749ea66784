//! What no version may contain is refused by name, before anything is published.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use model_store::{FinalizeOptions, ImportOptions, StoreError, exit};

use crate::fixture::{Fixture, paths, payload, scout, version};

type Plant = fn(&Path);

/// Everything hostile that a foreign writer could leave in a staging: what, how, the path named, the reason
/// given.
const HOSTILE: &[(&str, Plant, &str, &str)] = &[
    ("a newline", |d| put(d, b"a\nb"), "a\nb", "control"),
    ("a backslash", |d| put(d, b"a\\b"), "a\\b", "backslash"),
    ("not UTF-8", |d| put(d, b"a\xff"), "a\u{fffd}", "UTF-8"),
    ("an option", |d| put(d, b"-rf"), "-rf", "'-'"),
    ("a manifest", |d| put(d, b"manifest.json"), "manifest.json", "store's own"),
    ("a linked manifest", |d| link("ok", d, "manifest.json"), "manifest.json", "store's own"),
    (
        "a manifest directory",
        |d| fs::create_dir(d.join("manifest.json")).unwrap(),
        "manifest.json",
        "store's own",
    ),
    ("a bad directory", |d| put_in(d, "x\ty"), "x\ty", "control"),
    ("an absolute link", |d| link("/etc/passwd", d, "l"), "l", "leaves the version"),
    (
        "an absolute link to itself",
        |d| link(d.join("ok").to_str().unwrap(), d, "l"),
        "l",
        "leaves the version",
    ),
    ("a link that climbs", |d| link("../../../x", d, "l"), "l", "leaves the version"),
    ("a link to the version beside", |d| link("../v1/config.json", d, "l"), "l", "leaves the version"),
    (
        "a link through a link",
        |d| {
            link("..", d, "up");
            link("up/v1", d, "z");
        },
        "up",
        "leaves the version",
    ),
    ("a link that leaves and returns", |d| link("../v2.tmp/ok", d, "l"), "l", "leaves the version"),
    ("a link to nothing", |d| link("missing", d, "l"), "l", "to nothing"),
    (
        "a link in a circle",
        |d| {
            link("b", d, "a");
            link("a", d, "b");
        },
        "a",
        "circle",
    ),
    ("a link to a special file", |d| link("/proc/self/fd/0", d, "l"), "l", "leaves the version"),
    (
        "a link to what is not UTF-8",
        |d| symlink(OsStr::from_bytes(b"o\xff"), d.join("l")).unwrap(),
        "l",
        "target is not UTF-8",
    ),
    ("a named pipe", |d| mknod(d, "p", rustix::fs::FileType::Fifo), "p", "named pipe"),
    ("a socket", |d| drop(UnixListener::bind(d.join("s")).unwrap()), "s", "socket"),
    ("setuid", |d| put_mode(d, 0o4755), "m", "setuid"),
    ("setgid", |d| put_mode(d, 0o2755), "m", "setuid or setgid"),
    (
        "deep down",
        |d| {
            fs::create_dir_all(d.join("a/b")).unwrap();
            link("/", &d.join("a/b"), "l");
        },
        "a/b/l",
        "leaves",
    ),
];

fn put(dir: &Path, name: &[u8]) {
    fs::write(dir.join(OsStr::from_bytes(name)), b"x").unwrap();
}

fn put_in(dir: &Path, name: &str) {
    fs::create_dir(dir.join(name)).unwrap();
    put(&dir.join(name), b"x");
}

fn put_mode(dir: &Path, mode: u32) {
    put(dir, b"m");
    fs::set_permissions(dir.join("m"), fs::Permissions::from_mode(mode)).unwrap();
}

fn link(target: &str, dir: &Path, name: &str) {
    symlink(target, dir.join(name)).unwrap();
}

fn mknod(dir: &Path, name: &str, kind: rustix::fs::FileType) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, dir.join(name), kind, mode, 0).unwrap();
}

#[test]
fn hostile_payload_is_refused_by_name() {
    for (row, plant, path, reason) in HOSTILE {
        let fixture = Fixture::with_v1();
        let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
        staging.write(&payload("ok"), b"x").unwrap();
        plant(staging.path());
        let error = staging.finalize(FinalizeOptions::default()).err();
        let error = error.unwrap_or_else(|| panic!("{row}: it was published"));
        let StoreError::PayloadRefused { problems, .. } = &error else { panic!("{row}: {error}") };
        assert_eq!(problems[0].path(), *path, "{row}");
        assert!(problems[0].reason().contains(reason), "{row}: {error}");
        assert_eq!(error.exit_code(), exit::REFUSED, "{row}");
        assert!(!error.to_string().contains(|c: char| c.is_control()), "{row}: {error:?}");
        assert_eq!(fixture.current().version(), &version("v1"), "{row}");
        assert_eq!(fixture.store.versions(&scout()).unwrap(), [version("v1")], "{row}");
        assert!(fixture.leftovers().is_empty(), "{row}: {:?}", fixture.leftovers());
    }
}

#[test]
fn a_hostile_folder_is_not_imported() {
    for (row, plant, path, reason) in HOSTILE {
        let fixture = Fixture::with_v1();
        let folder = fixture.outside();
        put(&folder, b"ok");
        plant(&folder);
        let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
        let error = staging.import_tree(&folder, ImportOptions::default()).err();
        let error = error.unwrap_or_else(|| panic!("{row}: it was imported"));
        let StoreError::ImportRefused { problems, .. } = &error else { panic!("{row}: {error}") };
        // Beside a folder elsewhere there is no version for a link to lead to.
        assert_eq!(problems[0].path(), *path, "{row}");
        assert!(problems[0].reason().contains(reason), "{row}: {error}");
        assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0, "{row}: something was imported");
    }
}

#[test]
fn many_problems_are_counted() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    for i in 0..10 {
        put(staging.path(), format!("bad\t{i}").as_bytes());
    }
    let error = staging.finalize(FinalizeOptions::default()).unwrap_err();
    assert!(error.to_string().ends_with("and 7 more"), "{error}");
}

#[test]
fn an_empty_payload_is_refused() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    fs::create_dir(staging.path().join("empty")).unwrap();
    let error = staging.finalize(FinalizeOptions::default()).unwrap_err();
    assert!(error.to_string().contains("nothing to publish"), "{error}");
    assert_eq!(fs::read_dir(fixture.root()).unwrap().count(), 0);
}

#[test]
fn links_within_a_version_are_published() {
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    staging.write(&payload("blobs/abc"), b"weights").unwrap();
    let snapshot = staging.path().join("snapshots/main");
    fs::create_dir_all(&snapshot).unwrap();
    link("../../blobs/abc", &snapshot, "model.bin");
    link("blobs", staging.path(), "again");
    staging.finalize(FinalizeOptions::default()).unwrap();

    let current = fixture.current();
    assert_eq!(paths(&current.manifest().files), ["blobs/abc"]);
    assert_eq!(current.manifest().links.len(), 2);
    assert_eq!(current.open(&payload("snapshots/main/model.bin")).unwrap().metadata().unwrap().len(), 7);
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
}

#[test]
fn reading_never_leaves_the_version() {
    let fixture = Fixture::with_v1();
    let dir = fixture.agent_dir().join("versions/v1");
    link("/etc/passwd", &dir, "absolute");
    link("../../current/config.json", &dir, "climbing");
    for name in ["absolute", "climbing", "missing", "weights"] {
        let error = fixture.current().open(&payload(name)).err();
        assert!(error.is_some(), "{name} was opened");
    }
    assert!(fixture.current().open(&payload("weights/model.bin")).is_ok());
}

//! What was published is what is loaded: checksums before the first use, remembered, and no way out of a version.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use model_loader::{
    LoadError, LoadOptions, Loaded, ResolveOptions, Source, Strictness, TextClassifier, Verify, load_resolved,
};
use model_store::exit;

use crate::shelf::{Shelf, classifier, name};
use crate::support::check_error;

/// Changes one byte where it lies, and neither size nor time: only reading finds it.
fn rot(path: &Path) {
    let before = fs::metadata(path).unwrap();
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, before.permissions()).unwrap();
    fs::File::open(path).unwrap().set_modified(before.modified().unwrap()).unwrap();
}

fn load(shelf: &Shelf, verify: Verify) -> Result<(), LoadError> {
    let options = ResolveOptions { verify, strictness: Strictness::Strict, ..shelf.options() };
    Loaded::<TextClassifier>::load("analyst", &options, &LoadOptions::default()).map(drop)
}

#[test]
fn a_version_is_verified_once_and_the_store_remembers() {
    let shelf = Shelf::new();
    let path = shelf.publish("analyst", "v1", classifier(None).path());
    let checked = || shelf.store.last_check(&name("analyst"), &"v1".parse().unwrap()).unwrap();
    assert_eq!(checked(), None);
    load(&shelf, Verify::Never).unwrap();
    assert_eq!(checked(), None, "never is never");
    load(&shelf, Verify::Once).unwrap();
    let first = checked().expect("the store remembers");
    assert!(first.ok && first.bytes > 100_000, "{first:?}");
    load(&shelf, Verify::Once).unwrap();
    assert_eq!(checked(), Some(first.clone()), "it was not read again");
    load(&shelf, Verify::Always).unwrap();
    assert!(checked().unwrap().at >= first.at);

    // Rot that leaves size and time alone is found by whoever reads: always, and not once.
    rot(&path.join("model.safetensors"));
    load(&shelf, Verify::Once).unwrap();
    let parts = ["analyst/v1", "model.safetensors has other bytes", "model-store repair analyst v1"];
    check_error("always", &load(&shelf, Verify::Always).unwrap_err(), exit::CORRUPT, &parts);
    assert!(!checked().unwrap().ok);
    // Now it is known.
    check_error("once, after that", &load(&shelf, Verify::Once).unwrap_err(), exit::CORRUPT, &parts);
    load(&shelf, Verify::Never).unwrap();
}

#[test]
fn what_changed_since_is_verified_again() {
    let check = |row: &str, change: &dyn Fn(&Path), parts: &[&str]| {
        let shelf = Shelf::new();
        let path = shelf.publish("analyst", "v1", classifier(None).path());
        load(&shelf, Verify::Once).unwrap();
        change(&path);
        check_error(
            row,
            &load(&shelf, Verify::Once).unwrap_err(),
            exit::CORRUPT,
            &[&["analyst/v1"], parts].concat(),
        );
    };
    let replace = |path: &Path, bytes: &[u8]| {
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    };
    check("another size", &|path| replace(&path.join("config.json"), b"{}"), &["config.json has 2 bytes"]);
    let written = |path: &Path| {
        let path = path.join("tokenizer.json");
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] = b' ';
        replace(&path, &bytes);
        // Two clocks: that of files lags a little.
        fs::File::open(&path).unwrap().set_modified(SystemTime::now()).unwrap();
    };
    check("written since", &written, &["tokenizer.json has other bytes"]);
    check(
        "gone",
        &|path| fs::remove_file(path.join("tokenizer.json")).unwrap(),
        &["tokenizer.json is missing"],
    );
    // Names were looked at when all was read, and never again: what was put there later was loaded.
    let old = |path: &Path| {
        let file = fs::File::open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
    };
    let planted = |name: &'static str| {
        move |path: &Path| {
            fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
            fs::write(path.join(name), "[]").unwrap();
            old(&path.join(name));
            old(path);
        }
    };
    check("planted", &planted("modules.json"), &["modules.json is not in the manifest"]);
    check("planted below", &planted("1_Pooling/config.json"), &["1_Pooling/config.json is not in"]);
    let link = |path: &Path| {
        symlink("tokenizer.json", path.join("vocab.txt")).unwrap();
        old(path);
    };
    check("a link", &link, &["vocab.txt is a symbolic link that is not in the manifest"]);
    let replaced = |path: &Path| {
        let mut bytes = fs::read(path.join("tokenizer.json")).unwrap();
        bytes[0] = b' ';
        replace(&path.join("tokenizer.json"), &bytes);
        old(&path.join("tokenizer.json"));
        fs::File::open(path).unwrap().set_modified(SystemTime::now()).unwrap();
    };
    check("another file with an old time", &replaced, &["tokenizer.json has other bytes"]);
}

/// A note that says "not as published" for a mode had every process read all of it again.
#[test]
fn a_wrong_mode_is_no_reason_to_read_it_all_again() {
    let shelf = Shelf::new();
    let path = shelf.publish("analyst", "v1", classifier(None).path());
    let weights = path.join("model.safetensors");
    fs::set_permissions(&weights, Permissions::from_mode(0o666)).unwrap();
    // As another process would.
    let report = shelf.store.verify(&name("analyst"), &"v1".parse().unwrap()).unwrap();
    assert!(!report.is_ok());
    shelf.store.note_check(&report, 0.0).unwrap();
    let noted = shelf.store.last_check(&name("analyst"), &"v1".parse().unwrap()).unwrap();
    rot(&weights);
    load(&shelf, Verify::Once).expect("the store remembers the bytes");
    assert_eq!(shelf.store.last_check(&name("analyst"), &"v1".parse().unwrap()).unwrap(), noted);
    load(&shelf, Verify::Always).unwrap_err();
}

/// A file that only this process may not read made a sound version "not what was published".
#[test]
fn what_this_process_may_not_read_is_no_damage() {
    let shelf = Shelf::new();
    let path = shelf.publish("analyst", "v1", classifier(None).path());
    let weights = path.join("model.safetensors");
    fs::set_permissions(&weights, Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&weights).is_ok() {
        return eprintln!("skipped: whoever runs the tests may read everything");
    }
    let error = load(&shelf, Verify::Once).unwrap_err();
    check_error("denied", &error, exit::FAILURE, &["cannot read", "model.safetensors", "denied"]);
    assert_eq!(shelf.store.last_check(&name("analyst"), &"v1".parse().unwrap()).unwrap(), None);
}

/// A file that was put into a version later is read like any other, so it is damage, too.
#[test]
fn a_file_that_nobody_published_is_refused() {
    let shelf = Shelf::new();
    let path = shelf.publish("analyst", "v1", classifier(None).path());
    fs::write(path.join("modules.json"), "[]").unwrap();
    let parts = ["analyst/v1", "modules.json is not in the manifest"];
    check_error("unlisted", &load(&shelf, Verify::Once).unwrap_err(), exit::CORRUPT, &parts);
}

/// An agent that may not write to the store verifies for itself, once a process.
#[test]
fn a_store_that_cannot_be_written_is_remembered_by_the_process() {
    let shelf = Shelf::new();
    let path = shelf.publish("analyst", "v1", classifier(None).path());
    // A file where the directory would be: nobody can write a note, not even root.
    fs::write(shelf.store.root().join("analyst/.verified"), "").unwrap();
    load(&shelf, Verify::Once).unwrap();
    rot(&path.join("model.safetensors"));
    load(&shelf, Verify::Once).expect("it is remembered");
    load(&shelf, Verify::Always).unwrap_err();
}

#[test]
fn damage_is_passed_over_unless_only_the_store_may_serve() {
    let shelf = Shelf::new();
    let path = shelf.publish("analyst", "v1", classifier(None).path());
    rot(&path.join("model.safetensors"));
    let folder = classifier(None);
    let options = ResolveOptions { folder: Some(folder.path().to_owned()), ..shelf.options() };
    let found = Loaded::<TextClassifier>::load("analyst", &options, &LoadOptions::default()).unwrap();
    assert_eq!(found.resolved().source(), &Source::Folder);
    let strict = ResolveOptions { strictness: Strictness::Strict, ..options };
    let error = Loaded::<TextClassifier>::load("analyst", &strict, &LoadOptions::default()).unwrap_err();
    check_error("strict", &error, exit::CORRUPT, &["analyst/v1", "model.safetensors"]);
}

/// A link that was planted in a version may lead to any file of the host, also where nothing is verified.
#[test]
fn a_link_that_leads_out_of_its_version_is_refused() {
    let outside = classifier(None);
    let check = |row: &str, name: &str, target: &Path| {
        let shelf = Shelf::new();
        let path = shelf.publish("analyst", "v1", classifier(None).path());
        let _ = fs::remove_file(path.join(name));
        symlink(target, path.join(name)).unwrap();
        let error = load(&shelf, Verify::Never).unwrap_err();
        check_error(row, &error, exit::CORRUPT, &[name, "leads to", "analyst/versions/v1"]);
    };
    check("weights", "model.safetensors", &outside.path().join("model.safetensors"));
    check("configuration", "config.json", &outside.path().join("config.json"));
    check("a folder", "1_Pooling", outside.path());
    check("the host's", "vocab.txt", Path::new("/etc/passwd"));
    check("beside the version", "tokenizer.json", Path::new("../../.lock"));

    // So deep nobody looked.
    let shelf = Shelf::new();
    let deep = shelf.publish("analyst", "v1", classifier(None).path()).join("d/".repeat(20));
    fs::create_dir_all(&deep).unwrap();
    symlink("/etc/passwd", deep.join("vocab.txt")).unwrap();
    let error = load(&shelf, Verify::Never).unwrap_err();
    check_error("deep", &error, exit::CORRUPT, &["analyst/versions/v1/d", "folders deep"]);

    // Within a version links are legitimate, as the Hub cache makes them.
    let shelf = Shelf::new();
    let hub = tempfile::tempdir().unwrap();
    let below = hub.path().join("models--org--name/blobs");
    fs::create_dir_all(&below).unwrap();
    let snapshot = hub.path().join("models--org--name/snapshots/0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(&snapshot).unwrap();
    for entry in fs::read_dir(outside.path()).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, below.join(from.file_name().unwrap())).unwrap();
        symlink(
            Path::new("../../blobs").join(from.file_name().unwrap()),
            snapshot.join(from.file_name().unwrap()),
        )
        .unwrap();
    }
    let refs = hub.path().join("models--org--name/refs");
    fs::create_dir_all(&refs).unwrap();
    fs::write(refs.join("main"), "0123456789abcdef0123456789abcdef01234567").unwrap();
    shelf.publish("analyst", "v1", hub.path());
    let hub_id = ResolveOptions { model_id: Some("org/name".into()), ..shelf.options() };
    let run = |options: &ResolveOptions, agent: &str| {
        load_resolved(agent, options, |found| TextClassifier::from_dir(found.path())).map(|(_, found)| found)
    };
    assert!(run(&hub_id, "analyst").unwrap().version().is_some());
    // And in the cache itself, up to the model's own folder.
    let cached = ResolveOptions { hub_cache: Some(hub.path().to_owned()), ..hub_id };
    assert!(matches!(run(&cached, "nobody").unwrap().source(), Source::HubCache { .. }));
    fs::remove_file(snapshot.join("config.json")).unwrap();
    symlink(outside.path().join("config.json"), snapshot.join("config.json")).unwrap();
    check_error(
        "out of the cache",
        &run(&cached, "nobody").unwrap_err(),
        exit::CORRUPT,
        &["config.json", "leads to"],
    );
}

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use model_store::{FinalizeOptions, Finding};

use crate::fixture::{Fixture, payload, scout, version};

type Damage = fn(&Path);

fn overwrite(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

fn edit_manifest(dir: &Path, from: &str, to: &str) {
    let path = dir.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "the manifest has no {from}");
    overwrite(&path, text.replace(from, to).as_bytes());
}

/// How a version can rot, and what is said about it.
const DAMAGE: &[(&str, Damage, &[&str])] = &[
    ("one bit", |d| overwrite(&d.join("a"), b"onf"), &["a has other bytes", "the checksum is"]),
    ("cut off", |d| overwrite(&d.join("a"), b"on"), &["a has 2 bytes, published were 3", "the checksum is"]),
    (
        "missing",
        |d| fs::remove_file(d.join("a")).unwrap(),
        &["a is missing", "\"l\" is a symbolic link to nothing", "the checksum is"],
    ),
    (
        "one more",
        |d| fs::write(d.join("extra"), b"").unwrap(),
        &["extra is not in the manifest", "the checksum is"],
    ),
    ("another link", |d| relink(d, "b"), &["l is not the symbolic link"]),
    ("a link gone", |d| fs::remove_file(d.join("l")).unwrap(), &["l is not the symbolic link"]),
    ("a link out", |d| relink(d, "/etc/passwd"), &["\"l\" is a symbolic link that leaves the version"]),
    (
        "a file made a link",
        |d| {
            fs::remove_file(d.join("a")).unwrap();
            symlink("b", d.join("a")).unwrap();
        },
        &["a is missing", "the checksum is"],
    ),
    (
        "anybody may write",
        |d| fs::set_permissions(d.join("a"), fs::Permissions::from_mode(0o666)).unwrap(),
        &["a has mode 666"],
    ),
    (
        "a closed directory",
        |d| fs::set_permissions(d, fs::Permissions::from_mode(0o700)).unwrap(),
        &[". has mode 700"],
    ),
    (
        "another version's",
        |d| edit_manifest(d, r#""version": "v1""#, r#""version": "v9""#),
        &["manifest.json is of version v9"],
    ),
    (
        "another agent's",
        |d| edit_manifest(d, r#""agent": "scout""#, r#""agent": "spy""#),
        &["manifest.json is of agent spy"],
    ),
    (
        "a size edited",
        |d| edit_manifest(d, r#""size": 3"#, r#""size": 4"#),
        &["a has 3 bytes, published were 4"],
    ),
];

fn relink(dir: &Path, target: &str) {
    fs::remove_file(dir.join("l")).unwrap();
    symlink(target, dir.join("l")).unwrap();
}

#[test]
fn every_damage_is_found_and_named() {
    for (row, damage, expected) in DAMAGE {
        let fixture = Fixture::new();
        let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
        staging.write(&payload("a"), b"one").unwrap();
        staging.write(&payload("b"), b"four").unwrap();
        symlink("a", staging.path().join("l")).unwrap();
        staging.finalize(FinalizeOptions::default()).unwrap();
        assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok(), "{row}: before");
        damage(&fixture.agent_dir().join("versions/v1"));
        let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
        assert!(!report.is_ok(), "{row}: nothing was found");
        let said: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), expected.len(), "{row}: {said:?}");
        for (said, expected) in said.iter().zip(*expected) {
            assert!(said.contains(expected), "{row}: {said:?} lacks {expected:?}");
        }
    }
}

#[test]
fn a_forged_list_does_not_add_up() {
    let fixture = Fixture::with_v1();
    let dir = fixture.agent_dir().join("versions/v1");
    overwrite(&dir.join("config.json"), b"[]");
    let (old, new) = (model_store::Digest::of(b"{}").to_string(), model_store::Digest::of(b"[]").to_string());
    edit_manifest(&dir, &old, &new);
    let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
    assert!(
        matches!(report.findings[..], [Finding::Manifest { .. }, Finding::Checksum { .. }]),
        "{report:?}"
    );
}

#[test]
fn a_sound_version_is_counted() {
    let fixture = Fixture::with_v1();
    let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
    assert_eq!((report.files_checked, report.bytes), (2, 5));
    assert_eq!(Some(report.checksum), report.expected_checksum);
}

/// A core that reads two files at once lost one whenever the first of them ended before the second.
#[test]
fn no_file_is_left_out_however_their_lengths_differ() {
    const CHUNK_BYTES: usize = 256 * 1024;
    for threads in 1..=3 {
        let fixture = Fixture::new();
        let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
        let lengths = [5, 3, 3, 2, 2, 1, 1, 0];
        for (i, chunks) in lengths.into_iter().enumerate() {
            // Somebody else's files, which the store has to read.
            fs::write(staging.path().join(i.to_string()), vec![7; chunks * CHUNK_BYTES]).unwrap();
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let published = staging.finalize(FinalizeOptions::default()).unwrap();
            assert_eq!(published.files, lengths.len(), "{threads} threads: published");
            let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
            assert_eq!(report.files_checked, lengths.len(), "{threads} threads: {:?}", report.findings);
        });
    }
}

//! Bytes that come from another store: kept when their writer dies, and never trusted.

use std::fs;
use std::time::{Duration, SystemTime};

use model_store::{Digest, FinalizeOptions, MANIFEST_FILE, Manifest, MoveOptions, StoreError, exit};

use crate::fixture::{Fixture, full_message, payload, scout, version};

const BYTES: &[u8] = b"bytes that came from elsewhere";

/// The manifest of a version of one file, as another store wrote it.
fn manifest() -> Manifest {
    let elsewhere = Fixture::new();
    let published = elsewhere.publish("v2", &[("model.bin", BYTES)]).unwrap();
    Manifest::from_json(&fs::read(published.path.join(MANIFEST_FILE)).unwrap()).unwrap()
}

#[test]
fn a_manifest_of_another_store_is_taken_as_it_is_or_not_at_all() {
    type Change = fn(&mut Manifest);
    let rows: [(&str, Change, Option<&str>); 8] = [
        ("as it is", |_| {}, None),
        ("with keys of its own", |m| drop(m.extra.insert("by".to_owned(), "ada".into())), None),
        ("of another agent", |m| m.agent = Some("memory".parse().unwrap()), Some("is of memory/v2")),
        ("of another version", |m| m.version = version("v3"), Some("is of scout/v3")),
        ("with another checksum", |m| m.checksum = Digest::of(b"x"), Some("says checksum")),
        ("with another digest", |m| m.files[0].sha256 = Digest::of(b"x"), Some("lists other files")),
        ("without the file", |m| m.files.clear(), Some("lists other files")),
        ("of another format", |m| m.format = Some(2), Some("of another format")),
    ];
    for (row, change, refused) in rows {
        let fixture = Fixture::with_v1();
        let mut manifest = manifest();
        change(&mut manifest);
        // Not the text that this program would write.
        let json = serde_json::to_vec(&manifest).unwrap();
        let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
        staging.write(&payload("model.bin"), BYTES).unwrap();
        let published = staging.finalize_as(&json, FinalizeOptions::default());
        match (published, refused) {
            (Ok(published), None) => {
                assert_eq!(fs::read(published.path.join(MANIFEST_FILE)).unwrap(), json, "{row}");
                assert!(fixture.store.verify(&scout(), &version("v2")).unwrap().is_ok(), "{row}");
                assert_eq!(fixture.current().version(), &version("v2"), "{row}");
            }
            (Err(e), Some(says)) => {
                assert!(full_message(&e).contains(says), "{row}: {e}");
                assert_eq!(e.exit_code(), exit::REFUSED, "{row}: {e}");
                assert_eq!(fixture.current().version(), &version("v1"), "{row}");
            }
            (other, _) => panic!("{row}: {other:?}"),
        }
        assert_eq!(fixture.leftovers(), Vec::<String>::new(), "{row}");
    }
}

#[test]
fn what_came_outlives_its_writer_and_only_the_whole_is_adopted() {
    let fixture = Fixture::new();
    let digest = Digest::of(BYTES);
    let stage = || fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    let size = BYTES.len() as u64;
    {
        let staging = stage();
        let incoming = staging.incoming().unwrap();
        let busy = staging.incoming().expect_err("one process brings files in at a time");
        assert!(matches!(busy, StoreError::Busy { .. }), "{busy}");
        let mut file = incoming.file(digest, size).unwrap();
        file.write(&BYTES[..10]).unwrap();
        let early = staging.adopt(file, &payload("model.bin")).expect_err("it is not whole");
        assert_eq!(early.exit_code(), exit::CORRUPT, "{early}");
    }
    let staging = stage();
    let incoming = staging.incoming().unwrap();
    assert_eq!(incoming.have(&digest), 10);
    let mut file = incoming.file(digest, size).unwrap();
    assert_eq!((file.have(), file.is_inherited()), (10, true));
    assert!(file.write(&[0; 100]).is_err(), "no more than the whole");
    file.write(&BYTES[10..]).unwrap();
    staging.adopt(file, &payload("model.bin")).unwrap();
    let published = staging.finalize(FinalizeOptions::default()).unwrap();
    incoming.keep_only(&std::collections::HashSet::new()).unwrap();
    assert_eq!(fs::read(published.path.join("model.bin")).unwrap(), BYTES);
    assert!(fixture.store.verify(&scout(), &version("v2")).unwrap().is_ok());
    let grown = fixture.history().last().unwrap()["bytes"].as_u64();
    assert_eq!(grown, Some(size), "they count as the version's own");
}

#[test]
fn what_nobody_asks_for_any_more_is_cleared() {
    let fixture = Fixture::with_v1();
    let dir = fixture.agent_dir().join(".incoming");
    fs::create_dir(&dir).unwrap();
    let file = |name: &str, days: u64| {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        let at = SystemTime::now() - Duration::from_hours(24 * days);
        fs::File::options().append(true).open(&path).unwrap().set_modified(at).unwrap();
    };
    file("young", 1);
    file("old", 8);
    fs::hard_link(fixture.agent_dir().join("versions/v1/config.json"), dir.join("adopted")).unwrap();
    fixture.store.activate(&scout(), &version("v1"), &MoveOptions::default()).unwrap();
    let left: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left, ["young"]);

    // An agent of which nothing came is none.
    let staging = fixture.store.stage_new(&"memory".parse().unwrap(), &version("v1")).unwrap();
    drop(staging.incoming().unwrap());
    drop(staging);
    assert!(!fixture.root().join("memory").exists());
}

/// Shared is what has the digest, whatever it is called, and what is rotten is passed over.
#[test]
fn files_of_a_manifest_are_shared_by_their_digest() {
    let fixture = Fixture::new();
    let files: [(&str, &[u8]); 2] = [("one", b"same bytes"), ("rotten", b"sound bytes")];
    fixture.publish("v1", &files).unwrap();
    let rotten = fixture.agent_dir().join("versions/v1/rotten");
    fs::remove_file(&rotten).unwrap();
    fs::write(&rotten, b"SOUND bytes").unwrap();
    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    let entry = |path: &str, bytes: &[u8]| model_store::FileEntry {
        path: payload(path),
        size: bytes.len() as u64,
        sha256: Digest::of(bytes),
    };
    let wanted =
        [entry("deep/under/other", b"same bytes"), entry("new", b"never seen"), entry("rot", b"sound bytes")];
    let shared = staging.share_published(&wanted).unwrap();
    assert_eq!(shared, wanted[..1]);
    let published = staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!((published.files, published.bytes), (1, 10));
    assert!(fixture.store.verify(&scout(), &version("v2")).unwrap().is_ok());
}

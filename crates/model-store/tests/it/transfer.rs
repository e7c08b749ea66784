//! Bringing files in: from outside by copy, from another version by sharing.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use model_store::{Digest, FinalizeOptions, ImportOptions, Links, StoreError, exit};

use crate::fixture::{Fixture, payload, scout, version};

#[test]
fn an_import_is_a_copy() {
    let fixture = Fixture::new();
    let source = fixture.outside().join("model.bin");
    fs::write(&source, vec![7; 1_000_000]).unwrap();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    let entry = staging.import(&source, &payload("a/model.bin")).unwrap();
    assert_eq!((entry.size, entry.sha256), (1_000_000, Digest::of(&vec![7; 1_000_000])));
    staging.finalize(FinalizeOptions::default()).unwrap();
    fs::write(&source, b"changed later").unwrap();
    let (ours, theirs) = (fixture.current().path().join("a/model.bin"), source.metadata().unwrap());
    assert_ne!(ours.metadata().unwrap().ino(), theirs.ino());
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
}

#[test]
fn a_shared_file_takes_no_space() {
    let fixture = Fixture::with_v1();
    let v1 = fixture.current();
    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    let entry = staging.share(&v1, &payload("weights/model.bin")).unwrap();
    assert_eq!(Some(&entry), v1.manifest().file(&payload("weights/model.bin")));
    staging.write(&payload("config.json"), b"new").unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    for name in ["v1", "v2"] {
        assert!(fixture.store.verify(&scout(), &version(name)).unwrap().is_ok(), "{name}");
    }
    let inode = |name: &str| {
        fs::metadata(fixture.agent_dir().join("versions").join(name).join("weights/model.bin")).unwrap()
    };
    let (one, two) = (inode("v1"), inode("v2"));
    // One inode, or blocks shared by a file system that can: then the link count stays one.
    assert!(one.ino() == two.ino() || one.nlink() == 1);
    fs::remove_dir_all(fixture.agent_dir().join("versions/v1")).unwrap();
    assert!(fixture.store.verify(&scout(), &version("v2")).unwrap().is_ok(), "after v1 has gone");
}

#[test]
fn a_rotten_file_is_not_shared() {
    let fixture = Fixture::with_v1();
    let v1 = fixture.current();
    let path = v1.path().join("weights/model.bin");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, b"0ne").unwrap();
    for mode in [0o644, 0o444] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
        let error = staging.share(&v1, &payload("weights/model.bin")).unwrap_err();
        assert_eq!(error.exit_code(), exit::CORRUPT, "{error}");
        assert!(!staging.path().join("weights/model.bin").exists(), "mode {mode:o}");
    }
}

#[test]
fn what_is_still_writable_is_not_hard_linked() {
    let fixture = Fixture::with_v1();
    let v1 = fixture.current();
    let path = v1.path().join("config.json");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    staging.share(&v1, &payload("config.json")).unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    fs::write(&path, b"{\"changed\": true}").unwrap();
    assert!(fixture.store.verify(&scout(), &version("v2")).unwrap().is_ok());
}

#[test]
fn a_foreign_hard_link_is_cut() {
    let fixture = Fixture::new();
    let outside = fixture.outside().join("model.bin");
    fs::write(&outside, b"before").unwrap();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    fs::hard_link(&outside, staging.path().join("model.bin")).unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    fs::write(&outside, b"after!").unwrap();
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
    assert_eq!(fs::read(fixture.current().path().join("model.bin")).unwrap(), b"before");
}

#[test]
fn a_file_that_is_not_there_is_not_brought_in() {
    let fixture = Fixture::with_v1();
    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    let missing = fixture.outside().join("missing");
    let rows = [
        ("import", staging.import(&missing, &payload("x")).unwrap_err()),
        ("share", staging.share(&fixture.current(), &payload("missing")).unwrap_err()),
    ];
    for (row, error) in rows {
        assert_eq!(error.exit_code(), exit::NOT_FOUND, "{row}: {error}");
        assert!(error.to_string().contains("missing"), "{row}: {error}");
    }
    let directory = staging.import(&fixture.outside(), &payload("x")).unwrap_err();
    assert!(matches!(directory, StoreError::Io { .. }), "{directory}");
    assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_is_imported_with_its_links() {
    let fixture = Fixture::with_v1();
    let folder = fixture.outside();
    fs::create_dir_all(folder.join("blobs")).unwrap();
    fs::create_dir_all(folder.join("snapshot/1_Pooling")).unwrap();
    fs::write(folder.join("blobs/abc"), b"weights").unwrap();
    fs::write(folder.join("snapshot/1_Pooling/config.json"), b"{}").unwrap();
    symlink("../blobs/abc", folder.join("snapshot/model.bin")).unwrap();
    symlink("model.bin", folder.join("snapshot/same.bin")).unwrap();
    // A version of a store, copied to elsewhere, brings its manifest along; the new one gets its own.
    fs::copy(fixture.current().path().join("manifest.json"), folder.join("snapshot/manifest.json")).unwrap();

    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    let refused = staging.import_tree(&folder.join("snapshot"), ImportOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("leaves"), "{refused}");
    let follow = ImportOptions { links: Links::Follow, ..ImportOptions::default() };
    let entries = staging.import_tree(&folder.join("snapshot"), follow).unwrap().entries;
    assert_eq!(crate::fixture::paths(&entries), ["1_Pooling/config.json", "model.bin", "same.bin"]);
    staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(fs::read(fixture.current().path().join("same.bin")).unwrap(), b"weights");

    let staging = fixture.store.stage_new(&scout(), &version("v3")).unwrap();
    symlink("blobs/abc", folder.join("inside")).unwrap();
    fs::remove_dir_all(folder.join("snapshot")).unwrap();
    staging.import_tree(&folder, ImportOptions::default()).unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(fixture.current().manifest().links[0].target, "blobs/abc");
    assert!(fixture.store.verify(&scout(), &version("v3")).unwrap().is_ok());
}

#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let fixture = Fixture::with_v1();
    let pipe = fixture.outside().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    let error = staging.import(&pipe, &payload("x")).unwrap_err();
    let message = crate::fixture::full_message(&error);
    assert!(message.contains("pipe") && message.contains("not a regular file"), "{message}");
    assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0);
}

//! A whole folder on its way in: what the store has is shared, and nothing rotten spreads.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use model_store::{
    FinalizeOptions, ImportOptions, Imported, Links, ModelStore, Progress, StoreError, Transfer, exit,
};

use crate::fixture::{Fixture, agent, full_message, payload, scout, version};
use crate::host::Mount;

/// Bytes that do not repeat.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

pub(crate) fn by(transfer: Transfer) -> ImportOptions {
    ImportOptions { links: Links::Keep, transfer }
}

/// Publishes a folder for an agent and checks the version against its manifest.
pub(crate) fn publish_folder(
    store: &ModelStore,
    to: (&str, &str),
    from: &Path,
    options: ImportOptions,
) -> Result<Imported, StoreError> {
    let (agent, version) = (agent(to.0), version(to.1));
    let staging = store.stage_new(&agent, &version)?;
    let imported = staging.import_tree(from, options)?;
    let published = staging.finalize(FinalizeOptions::default())?;
    let report = store.verify(&agent, &version)?;
    assert!(report.is_ok(), "{}/{}: {:?}", to.0, to.1, report.findings);
    assert_eq!(
        published.bytes,
        imported.shared_bytes + imported.copied_bytes + imported.linked_bytes + imported.reflinked_bytes,
        "every file is counted once"
    );
    Ok(imported)
}

fn inode(fixture: &Fixture, path: &str) -> u64 {
    fs::metadata(fixture.root().join(path)).unwrap().ino()
}

#[test]
fn what_any_agent_has_is_shared() {
    let fixture = Fixture::new();
    let folder = fixture.outside();
    fs::create_dir(folder.join("sub")).unwrap();
    fs::write(folder.join("model.bin"), noise(1, 3_000_000)).unwrap();
    fs::write(folder.join("sub/vocab.txt"), b"words").unwrap();
    fs::write(folder.join("empty"), b"").unwrap();
    let first = publish_folder(&fixture.store, ("scout", "v1"), &folder, by(Transfer::Auto)).unwrap();
    if first.reflinked_bytes > 0 {
        eprintln!("skipped: the temporary directory's file system shares blocks, which shows in no inode");
        return;
    }
    assert_eq!((first.shared_bytes, first.copied_bytes), (0, 3_000_005));
    fs::write(folder.join("config.json"), b"{}").unwrap();
    let second = publish_folder(&fixture.store, ("memory", "v9"), &folder, by(Transfer::Auto)).unwrap();
    assert_eq!((second.shared_bytes, second.copied_bytes), (3_000_005, 2));
    for file in ["model.bin", "sub/vocab.txt"] {
        let of = |version: &str| inode(&fixture, &format!("{version}/{file}"));
        assert_eq!(of("scout/versions/v1"), of("memory/versions/v9"), "{file}");
    }
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
    let third = publish_folder(&fixture.store, ("memory", "v10"), &folder, by(Transfer::Copy)).unwrap();
    assert_eq!((third.shared_bytes, third.copied_bytes), (0, 3_000_007), "a copy shares nothing");
}

#[test]
fn what_is_doubtful_is_not_shared() {
    type Spoil = fn(&Path);
    let rows: &[(&str, Spoil)] = &[
        ("rotten", |version| {
            let path = version.join("model.bin");
            let mut bytes = fs::read(&path).unwrap();
            bytes[1_000_000] ^= 1;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        }),
        ("still writable", |version| {
            fs::set_permissions(version.join("model.bin"), fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("executable", |version| {
            fs::set_permissions(version.join("model.bin"), fs::Permissions::from_mode(0o555)).unwrap();
        }),
        ("for fewer readers", |version| {
            fs::set_permissions(version.join("model.bin"), fs::Permissions::from_mode(0o440)).unwrap();
        }),
        ("gone", |version| fs::remove_file(version.join("model.bin")).unwrap()),
        ("quarantined", |version| {
            let quarantine = version.join("../../.quarantine");
            fs::create_dir(&quarantine).unwrap();
            let note = r#"{"at": "2025-09-12T08:30:00Z", "by": "somebody", "reason": "damaged"}"#;
            fs::write(quarantine.join("v1.json"), note).unwrap();
        }),
        ("of a newer format", |version| {
            let path = version.join("manifest.json");
            let newer = fs::read_to_string(&path).unwrap().replace("\"format\": 1", "\"format\": 2");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(&path, newer).unwrap();
        }),
        ("without a manifest", |version| fs::remove_file(version.join("manifest.json")).unwrap()),
    ];
    for (row, spoil) in rows {
        let fixture = Fixture::new();
        let folder = fixture.outside();
        fs::write(folder.join("model.bin"), noise(1, 2_000_000)).unwrap();
        let first = publish_folder(&fixture.store, ("scout", "v1"), &folder, by(Transfer::Auto)).unwrap();
        let v1 = fixture.agent_dir().join("versions/v1");
        spoil(&v1);
        let second = publish_folder(&fixture.store, ("memory", "v1"), &folder, by(Transfer::Auto)).unwrap();
        let may_reflink = first.reflinked_bytes > 0;
        assert!(may_reflink || second.shared_bytes == 0, "{row}: it was shared");
        let path = fixture.root().join("memory/versions/v1/model.bin");
        assert_eq!(fs::read(&path).unwrap(), noise(1, 2_000_000), "{row}");
        assert_eq!(path.metadata().unwrap().mode() & 0o7111, 0, "{row}");
        assert_eq!(path.metadata().unwrap().nlink(), 1, "{row}");
    }
}

#[test]
fn of_two_places_the_sound_one_is_taken() {
    let fixture = Fixture::new();
    let folder = fixture.outside();
    fs::write(folder.join("model.bin"), noise(1, 2_000_000)).unwrap();
    for name in ["v1", "v2"] {
        publish_folder(&fixture.store, ("scout", name), &folder, by(Transfer::Copy)).unwrap();
    }
    // The newest is looked at first.
    let newest = fixture.agent_dir().join("versions/v2/model.bin");
    fs::set_permissions(&newest, fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = fs::read(&newest).unwrap();
    bytes[500_000] ^= 1;
    fs::write(&newest, bytes).unwrap();
    fs::set_permissions(&newest, fs::Permissions::from_mode(0o444)).unwrap();
    let third = publish_folder(&fixture.store, ("scout", "v3"), &folder, by(Transfer::Auto)).unwrap();
    assert_eq!(third.shared_bytes, 2_000_000);
    assert_eq!(fs::read(fixture.current().path().join("model.bin")).unwrap(), noise(1, 2_000_000));
}

#[test]
fn a_file_of_the_same_size_is_another_file() {
    let fixture = Fixture::new();
    let folder = fixture.outside();
    let mut bytes = noise(1, 2_000_000);
    fs::write(folder.join("model.bin"), &bytes).unwrap();
    publish_folder(&fixture.store, ("scout", "v1"), &folder, by(Transfer::Auto)).unwrap();
    for (name, at) in [("v2", 0), ("v3", 700_000), ("v4", 1_999_999)] {
        bytes[at] ^= 1;
        fs::write(folder.join("model.bin"), &bytes).unwrap();
        let imported = publish_folder(&fixture.store, ("scout", name), &folder, by(Transfer::Auto)).unwrap();
        assert_eq!(imported.shared_bytes, 0, "{name}");
        assert_eq!(fs::read(fixture.current().path().join("model.bin")).unwrap(), bytes, "{name}");
    }
}

#[test]
fn big_and_small_files_come_in_whole() {
    let fixture = Fixture::new();
    let folder = fixture.outside();
    // One is big enough to be written by a thread of its own, others end in the middle of a chunk or block.
    for (name, size) in [("big", 17_000_001), ("one", 1), ("chunk", 65_536), ("more", 65_537), ("none", 0)] {
        fs::write(folder.join(name), noise(size as u64, size)).unwrap();
    }
    for i in 0..300 {
        fs::create_dir_all(folder.join(format!("many/{}", i % 7))).unwrap();
        fs::write(folder.join(format!("many/{}/{i}", i % 7)), noise(i, 4096)).unwrap();
    }
    fs::set_permissions(folder.join("one"), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, transfer) in [("v1", Transfer::Copy), ("v2", Transfer::Auto)] {
        publish_folder(&fixture.store, ("scout", name), &folder, by(transfer)).unwrap();
        let dir = fixture.agent_dir().join("versions").join(name);
        for file in ["big", "one", "chunk", "more", "none", "many/3/10"] {
            let (ours, theirs) = (fs::read(dir.join(file)).unwrap(), fs::read(folder.join(file)).unwrap());
            assert!(ours == theirs, "{name}: {file} has other bytes");
        }
        assert_eq!(dir.join("one").metadata().unwrap().mode() & 0o7777, 0o555, "{name}");
        assert_eq!(dir.join("big").metadata().unwrap().mode() & 0o7777, 0o444, "{name}");
    }
}

#[test]
fn a_stopped_import_leaves_no_half_file() {
    let fixture = Fixture::new();
    let folder = fixture.outside();
    for i in 0..4 {
        fs::write(folder.join(format!("model-{i}.bin")), noise(i, 1_000_000)).unwrap();
    }
    let stop =
        Progress::new(|bytes| if bytes > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) });
    for transfer in [Transfer::Auto, Transfer::Copy] {
        let store = fixture.store.clone().with_progress(stop.clone());
        let staging = store.stage_new(&scout(), &version("v1")).unwrap();
        let error = staging.import_tree(&folder, by(transfer)).unwrap_err();
        assert!(matches!(error, StoreError::Interrupted), "{error}");
        assert_eq!(fs::read_dir(staging.path()).unwrap().count(), 0, "{transfer:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let fixture = Fixture::new();
    let folder = fixture.outside();
    fs::write(folder.join("a"), b"x").unwrap();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    staging.write(&payload("a"), b"taken").unwrap();
    let error = staging.import_tree(&folder, ImportOptions::default()).unwrap_err();
    assert!(full_message(&error).contains("v1.tmp/a"), "{}", full_message(&error));
    assert_eq!(fs::read(staging.path().join("a")).unwrap(), b"taken");
}

/// A file system in an image, mounted; `None`, with the reason said, where that is impossible.
fn mounted_image(fixture: &Fixture, mkfs: &[&str]) -> Option<(Mount, std::path::PathBuf)> {
    let image = fixture.outside().join("image");
    fs::File::create(&image).unwrap().set_len(400 * 1024 * 1024).unwrap();
    let made = Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no {}", mkfs[0]);
        return None;
    }
    let at = fixture.outside().join("mount");
    fs::create_dir(&at).unwrap();
    Some((Mount::new(&["-o", "loop", image.to_str().unwrap()], &at)?, at))
}

#[test]
fn blocks_are_shared_where_the_file_system_can() {
    for mkfs in [&["mkfs.xfs", "-q", "-m", "reflink=1"][..], &["mkfs.btrfs", "-q"]] {
        let row = mkfs[0];
        let fixture = Fixture::new();
        let Some((_mount, at)) = mounted_image(&fixture, mkfs) else { continue };
        let store = ModelStore::create(at.join("store")).unwrap();
        let folder = at.join("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("model.bin"), noise(1, 3_000_000)).unwrap();
        fs::set_permissions(folder.join("model.bin"), fs::Permissions::from_mode(0o755)).unwrap();
        let first = publish_folder(&store, ("scout", "v1"), &folder, by(Transfer::Auto)).unwrap();
        assert_eq!((first.reflinked_bytes, first.copied_bytes), (3_000_000, 0), "{row}");
        let second = publish_folder(&store, ("scout", "v2"), &folder, by(Transfer::Auto)).unwrap();
        assert_eq!((second.shared_bytes, second.copied_bytes), (3_000_000, 0), "{row}");
        let third = publish_folder(&store, ("scout", "v3"), &folder, by(Transfer::Reflink)).unwrap();
        assert_eq!(third.reflinked_bytes, 3_000_000, "{row}");
        let meta = fs::metadata(at.join("store/scout/versions/v2/model.bin")).unwrap();
        assert_eq!((meta.nlink(), meta.mode() & 0o7777), (1, 0o555), "{row}: its own inode and mode");
        fs::write(folder.join("model.bin"), noise(2, 3_000_000)).unwrap();
        for version in ["v1", "v2", "v3"] {
            assert!(store.verify(&scout(), &version.parse().unwrap()).unwrap().is_ok(), "{row}: {version}");
        }
    }
}

#[test]
fn a_reflink_asked_for_is_one_or_refused() {
    let fixture = Fixture::new();
    let at = fixture.outside().join("elsewhere");
    fs::create_dir(&at).unwrap();
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=2m", "tmpfs"], &at) else { return };
    fs::write(at.join("model.bin"), b"weights").unwrap();
    let error = publish_folder(&fixture.store, ("scout", "v1"), &at, by(Transfer::Reflink)).unwrap_err();
    assert_eq!(error.exit_code(), exit::ENVIRONMENT, "{error}");
    let message = full_message(&error);
    assert!(message.contains("model.bin") && message.contains("copy it instead"), "{message}");
    assert!(fixture.leftovers().is_empty());
}

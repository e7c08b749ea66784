//! What is pushed is what is pulled, and nothing is moved twice.

use std::fs;
use std::os::unix::fs::MetadataExt;

use model_store::{MANIFEST_FILE, exit};
use store_sync::{PullOptions, Remote};

use crate::world::{
    World, agent, assert_refused, assert_sound, bytes, current, publish, publish_lively, pull, push,
};

#[test]
fn a_version_arrives_as_it_was_published() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    publish_lively(&here, "scout/v1", 1);
    let pushed = push(&remote, &here, "scout/v1").unwrap();
    // config, weights, one vocabulary, one empty file.
    assert_eq!((pushed.blobs, pushed.sent_blobs), (4, 4));
    assert_eq!(pushed.sent_bytes, 13 + 700_000 + 200_000);
    assert_eq!(pushed.pointer.as_ref().map(|pointer| pointer.serial), Some(1));

    let pulled = pull(&remote, &there, "scout").unwrap();
    assert_eq!((pulled.received_bytes, pulled.shared_bytes), (900_013, 0));
    assert!(pulled.new && pulled.activated);
    assert_eq!(current(&there, "scout").as_deref(), Some("v1"));
    assert_sound("pulled", &there, "scout/v1");
    let manifest = |store: &model_store::ModelStore| {
        fs::read(store.root().join("scout/versions/v1").join(MANIFEST_FILE)).unwrap()
    };
    assert_eq!(manifest(&here), manifest(&there), "the manifest is the same to the byte");
    assert_eq!(world.objects()["agents/scout/versions/v1.json"], manifest(&here));
    let link = fs::read_link(there.root().join("scout/versions/v1/tokenizer.txt")).unwrap();
    assert_eq!(link.to_str(), Some("tokenizer/vocab.txt"));

    // What is done is done.
    let again = push(&remote, &here, "scout/v1").unwrap();
    assert_eq!((again.sent_blobs, again.new, again.moved), (0, false, false));
    let again = pull(&remote, &there, "scout").unwrap();
    assert_eq!((again.received_bytes, again.new, again.activated), (0, false, false));
    let remarks = there.history(&agent("scout")).unwrap();
    assert!(
        remarks.iter().any(|record| record.reason.as_deref().is_some_and(|why| why.contains("serial 1")))
    );
}

#[test]
fn only_what_changed_is_moved() {
    let world = World::new();
    let (here, there) = (world.host("here"), world.host("there"));
    let remote = world.remote();
    let files: Vec<_> = (0..10).map(|i| (format!("part-{i}.bin"), bytes(i, 100_000))).collect();
    let of = |changed: &[u8], name: &'static str| {
        let mut files: Vec<(&str, &[u8])> =
            files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
        files[3] = ("part-3.bin", changed);
        // The same content under another name is no change either.
        files[5].0 = name;
        files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect::<Vec<_>>()
    };
    for (number, (name, renamed, moved)) in
        [("scout/v1", "part-5.bin", 1_000_000), ("scout/v2", "renamed.bin", 100_000)].into_iter().enumerate()
    {
        let changed = bytes(100 + number as u64, 100_000);
        let files = of(&changed, renamed);
        let files: Vec<_> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
        publish(&here, name, &files);
        assert_eq!(push(&remote, &here, name).unwrap().sent_bytes, moved, "{name}");
        let pulled = pull(&remote, &there, "scout").unwrap();
        assert_eq!((pulled.received_bytes, pulled.shared_bytes), (moved, 1_000_000 - moved), "{name}");
        assert_sound(name, &there, name);
    }
    let inode = |path: &str| fs::metadata(there.root().join("scout/versions").join(path)).unwrap();
    let (old, new) = (inode("v1/part-0.bin"), inode("v2/part-0.bin"));
    // By hard link, or by reflink where the file system can.
    assert!(old.ino() == new.ino() || new.nlink() == 1);
}

#[test]
fn a_backup_brings_everything_back() {
    let world = World::new();
    let here = world.host("here");
    let remote = world.remote();
    for (name, seed) in [("scout/v1", 1), ("scout/v2", 2), ("memory/v7", 3)] {
        publish_lively(&here, name, seed);
        push(&remote, &here, name).unwrap();
    }
    let fresh = world.host("fresh");
    assert_eq!(remote.agents().unwrap(), [agent("memory"), agent("scout")]);
    for of in remote.agents().unwrap() {
        for version in remote.versions(&of).unwrap() {
            let options = PullOptions { stage_only: true, ..PullOptions::default() };
            remote.pull_version(&fresh, &of, &version, &options).unwrap();
        }
        remote.pull(&fresh, &of, &PullOptions::default()).unwrap();
    }
    for name in ["scout/v1", "scout/v2", "memory/v7"] {
        assert_sound(name, &fresh, name);
    }
    assert_eq!((current(&fresh, "scout"), current(&fresh, "memory")), (Some("v2".into()), Some("v7".into())));
}

#[test]
fn what_cannot_go_is_refused() {
    let world = World::new();
    let (here, other) = (world.host("here"), world.host("other"));
    let remote = world.remote();
    publish(&here, "scout/v1", &[("a", b"one")]);
    push(&remote, &here, "scout/v1").unwrap();
    publish(&other, "scout/v1", &[("a", b"two")]);
    let before = world.objects();
    assert_refused(
        "another v1",
        push(&remote, &other, "scout/v1"),
        exit::REFUSED,
        "another version of that name",
    );
    assert_refused(
        "another v1",
        pull(&remote, &other, "scout"),
        exit::REFUSED,
        "another version of that name",
    );
    assert_refused("no version", push(&remote, &here, "scout/v9"), exit::NOT_FOUND, "no version v9");
    assert_refused("no agent", push(&remote, &here, "scot/v1"), exit::NOT_FOUND, "scot");
    assert_refused("no agent", pull(&remote, &here, "memory"), exit::NOT_FOUND, "memory");
    assert_eq!(current(&other, "scout").as_deref(), Some("v1"));

    // A file that rotted on this disk.
    publish(&here, "scout/v2", &[("a", b"three"), ("b", &bytes(4, 300_000))]);
    let path = here.root().join("scout/versions/v2/b");
    let mut rotten = fs::read(&path).unwrap();
    rotten[150_000] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, rotten).unwrap();
    assert_refused("rotten", push(&remote, &here, "scout/v2"), exit::CORRUPT, "was not sent");
    let mut after = world.objects();
    after.retain(|path, bytes| !path.starts_with("blobs/") || bytes != b"three");
    assert_eq!(after, before, "nothing of a rotten file is there, no manifest, and the pointer stays");

    let empty = World::bare();
    fs::create_dir(empty.bucket()).unwrap();
    assert_refused("no remote", push(&empty.remote(), &here, "scout/v1"), exit::NOT_FOUND, "remote init");
    assert_refused("no remote", pull(&empty.remote(), &here, "scout"), exit::NOT_FOUND, "remote init");
    fs::remove_dir(empty.bucket()).unwrap();
    let opened = Remote::open(empty.address(), crate::world::options());
    assert_refused("no folder", opened, exit::NOT_FOUND, "remote init");
}

/// The way of the seed: the whole store, copied by rsync while nobody publishes.
#[test]
fn a_store_copied_by_rsync_is_a_store() {
    let world = World::new();
    let here = world.host("here");
    for (name, seed) in [("scout/v1", 1), ("scout/v2", 2)] {
        publish_lively(&here, name, seed);
    }
    let copy = world.path().join("copy");
    let copied = std::process::Command::new("rsync")
        .args(["-aH"])
        .arg(format!("{}/", here.root().display()))
        .arg(&copy)
        .output();
    match copied {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(e) => return eprintln!("skipped: rsync is not here: {e}"),
    }
    let restored = model_store::ModelStore::open(&copy).unwrap();
    for name in ["scout/v1", "scout/v2"] {
        assert_sound(name, &restored, name);
    }
    assert_eq!(current(&restored, "scout").as_deref(), Some("v2"));
    push(&world.remote(), &restored, "scout/v2").unwrap();
    publish(&restored, "scout/v3", &[("a", b"it goes on")]);
    assert_sound("v3", &restored, "scout/v3");
}

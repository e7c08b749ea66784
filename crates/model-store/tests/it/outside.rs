//! Files outside that the store takes over: hard-linked or moved. Nothing is lost, whatever fails.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use model_store::{FinalizeOptions, ImportOptions, Links, Transfer};

use crate::fixture::{Fixture, full_message, payload, scout, version};
use crate::host::Mount;
use crate::import::{by, publish_folder};

/// A folder with a file at the top, one below, a link and a mode of its own.
fn folder_in(place: &Path) -> PathBuf {
    let folder = place.join("folder");
    fs::create_dir_all(folder.join("a/b")).unwrap();
    fs::write(folder.join("model.bin"), b"weights").unwrap();
    fs::write(folder.join("a/b/tool"), b"a tool").unwrap();
    symlink("../model.bin", folder.join("a/link")).unwrap();
    fs::set_permissions(folder.join("a/b/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(folder.join("model.bin"), fs::Permissions::from_mode(0o640)).unwrap();
    folder
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().mode() & 0o7777
}

#[test]
fn a_link_is_the_file_itself() {
    let fixture = Fixture::new();
    let folder = folder_in(&fixture.outside());
    let imported = publish_folder(&fixture.store, ("scout", "v1"), &folder, by(Transfer::Link)).unwrap();
    assert_eq!((imported.linked_bytes, imported.copied_bytes), (13, 0));
    let ours = fixture.current().path().join("a/b/tool");
    assert_eq!(ours.metadata().unwrap().ino(), folder.join("a/b/tool").metadata().unwrap().ino());
    assert_eq!(mode(&ours), 0o555);
}

#[test]
fn a_link_to_another_file_system_is_refused() {
    let fixture = Fixture::new();
    let at = fixture.outside();
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=2m", "tmpfs"], &at) else { return };
    let folder = folder_in(&at);
    let error = publish_folder(&fixture.store, ("scout", "v1"), &folder, by(Transfer::Link)).unwrap_err();
    let message = full_message(&error);
    assert!(message.contains("hard-link") && message.contains("another file system"), "{message}");
    assert!(fixture.leftovers().is_empty());
    assert_eq!(mode(&folder.join("model.bin")), 0o640);
}

#[test]
fn a_moved_folder_is_gone_once_its_version_is_there() {
    let fixture = Fixture::new();
    let folder = folder_in(&fixture.outside());
    let inode = folder.join("model.bin").metadata().unwrap().ino();
    let imported = publish_folder(&fixture.store, ("scout", "v1"), &folder, by(Transfer::Move)).unwrap();
    assert_eq!((imported.linked_bytes, imported.copied_bytes), (13, 0));
    let dir = fixture.current().path().to_owned();
    let model = dir.join("model.bin").metadata().unwrap();
    assert_eq!((model.ino(), model.nlink(), model.mode() & 0o7777), (inode, 1, 0o440));
    assert_eq!(fs::read_link(dir.join("a/link")).unwrap(), Path::new("../model.bin"));
    assert!(!folder.exists(), "the folder is still there");
}

#[test]
fn a_folder_on_another_file_system_is_copied_and_then_gone() {
    let fixture = Fixture::new();
    let at = fixture.outside();
    let Some(_mount) = Mount::new(&["-t", "tmpfs", "-o", "size=2m", "tmpfs"], &at) else { return };
    let folder = folder_in(&at);
    let imported = publish_folder(&fixture.store, ("scout", "v1"), &folder, by(Transfer::Move)).unwrap();
    assert_eq!((imported.linked_bytes, imported.copied_bytes), (0, 13));
    assert_eq!(mode(&fixture.current().path().join("a/b/tool")), 0o555);
    assert!(!folder.exists(), "the folder is still there");
}

#[test]
fn a_failed_publish_gives_everything_back() {
    for transfer in [Transfer::Move, Transfer::Link] {
        let fixture = Fixture::new();
        let folder = folder_in(&fixture.outside());
        let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
        staging.import_tree(&folder, by(transfer)).unwrap();
        assert_eq!(mode(&folder.join("model.bin")), 0o440, "{transfer:?}: what will be published is sealed");
        // Refused at the last moment.
        symlink("/etc/passwd", staging.path().join("outside")).unwrap();
        staging.finalize(FinalizeOptions::default()).unwrap_err();
        assert_eq!(fs::read(folder.join("model.bin")).unwrap(), b"weights", "{transfer:?}");
        assert_eq!(mode(&folder.join("model.bin")), 0o640, "{transfer:?}");
        assert_eq!(mode(&folder.join("a/b/tool")), 0o755, "{transfer:?}");
        assert_eq!(folder.join("a/b/tool").metadata().unwrap().nlink(), 1, "{transfer:?}");
        assert!(folder.join("a/link").is_symlink(), "{transfer:?}");
    }
}

#[test]
fn what_changed_since_it_was_taken_stays() {
    let fixture = Fixture::new();
    let folder = folder_in(&fixture.outside());
    // A second name, under which somebody may write: it is copied.
    fs::hard_link(folder.join("model.bin"), fixture.outside().join("second")).unwrap();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    let imported = staging.import_tree(&folder, by(Transfer::Move)).unwrap();
    assert_eq!((imported.linked_bytes, imported.copied_bytes), (6, 7));
    fs::write(fixture.outside().join("second"), b"changed").unwrap();
    let published = staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(published.left_outside, [folder.join("model.bin")]);
    assert_eq!(fs::read(folder.join("model.bin")).unwrap(), b"changed");
    assert_eq!(fs::read(fixture.current().path().join("model.bin")).unwrap(), b"weights");
    assert!(!folder.join("a").exists(), "what could go is gone");
}

#[test]
fn what_was_taken_out_of_the_staging_is_not_taken_away() {
    let fixture = Fixture::new();
    let folder = folder_in(&fixture.outside());
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    staging.import_tree(&folder, by(Transfer::Move)).unwrap();
    fs::remove_file(staging.path().join("a/b/tool")).unwrap();
    let published = staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(published.left_outside, [folder.join("a/b/tool")]);
    assert_eq!(fs::read(folder.join("a/b/tool")).unwrap(), b"a tool");
}

#[test]
fn the_store_does_not_move_what_is_its_own() {
    let fixture = Fixture::with_v1();
    let v1 = fixture.current().path().to_owned();
    let error = publish_folder(&fixture.store, ("scout", "v2"), &v1, by(Transfer::Move)).unwrap_err();
    assert!(full_message(&error).contains("the store itself is there"), "{}", full_message(&error));
    // Nor the folder that the store is in, with all its versions.
    for transfer in [Transfer::Move, Transfer::Link] {
        let above = fixture.root().parent().unwrap();
        let error = publish_folder(&fixture.store, ("scout", "v2"), above, by(transfer)).unwrap_err();
        assert!(full_message(&error).contains("the store itself is there"), "{}", full_message(&error));
    }
    let followed = ImportOptions { links: Links::Follow, transfer: Transfer::Move };
    let folder = folder_in(&fixture.outside());
    let error = publish_folder(&fixture.store, ("scout", "v2"), &folder, followed).unwrap_err();
    assert!(full_message(&error).contains("cannot be moved"), "{}", full_message(&error));
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
    assert!(fixture.current().open(&payload("config.json")).is_ok());
}

#[test]
fn what_is_moved_is_of_the_stores_group() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may give files away");
        return;
    }
    let fixture = Fixture::new();
    std::os::unix::fs::chown(fixture.root(), None, Some(54_321)).unwrap();
    let folder = folder_in(&fixture.outside());
    publish_folder(&fixture.store, ("scout", "v1"), &folder, by(Transfer::Move)).unwrap();
    assert!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
    // What another user owns is copied: he could make it writable again.
    let folder = folder_in(&fixture.outside());
    std::os::unix::fs::chown(folder.join("a/b/tool"), Some(65_001), None).unwrap();
    publish_folder(&fixture.store, ("scout", "v2"), &folder, by(Transfer::Move)).unwrap();
    let in_version = |name: &str| fixture.agent_dir().join("versions").join(name).join("a/b/tool");
    let owner = |path: &std::path::Path| std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).unwrap());
    assert_eq!(owner(&in_version("v2")), owner(&in_version("v1")));
    assert!(!folder.join("a/b/tool").exists());
}

#[test]
fn what_was_linked_from_outside_is_linked_no_further() {
    let fixture = Fixture::new();
    let folder = folder_in(&fixture.outside());
    publish_folder(&fixture.store, ("scout", "v1"), &folder, by(Transfer::Link)).unwrap();
    publish_folder(&fixture.store, ("scout", "v2"), &folder, by(Transfer::Auto)).unwrap();
    let inode = |path: std::path::PathBuf| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    assert_ne!(inode(fixture.agent_dir().join("versions/v2/a/b/tool")), inode(folder.join("a/b/tool")));
}

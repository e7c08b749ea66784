//! Damage that is mended from elsewhere in the store, and damage that is not.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use model_store::{
    Action, Digest, FinalizeOptions, Finding, Mended, MoveOptions, RepairOptions, Repaired, StoreError, exit,
};

use crate::fixture::{Fixture, agent, payload, scout, version};

/// `scout` has v1 and v2, and `analyst` has v1; all have the same weights, each on an inode of its own.
fn with_copies() -> Fixture {
    let fixture = Fixture::new();
    for (agent_name, name) in [("scout", "v1"), ("scout", "v2"), ("analyst", "v1")] {
        let staging = fixture.store.stage_new(&agent(agent_name), &version(name)).unwrap();
        staging.write(&payload("config.json"), format!("{agent_name} {name}").as_bytes()).unwrap();
        staging.write(&payload("weights/model.bin"), &vec![42; 100_000]).unwrap();
        std::os::unix::fs::symlink("config.json", staging.path().join("link")).unwrap();
        staging.finalize(FinalizeOptions::default()).unwrap();
    }
    fixture
}

fn path(fixture: &Fixture, name: &str, file: &str) -> PathBuf {
    fixture.agent_dir().join("versions").join(name).join(file)
}

/// Flips a bit, as a disk does: neither size, nor mode, nor time of the file tell.
fn flip_a_bit(path: &Path) {
    let times = fs::metadata(path).unwrap().modified().unwrap();
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 4).unwrap();
    file.set_modified(times).unwrap();
}

fn repair(fixture: &Fixture, name: &str) -> Repaired {
    repair_with(fixture, name, &RepairOptions::default())
}

fn repair_with(fixture: &Fixture, name: &str, options: &RepairOptions) -> Repaired {
    fixture.store.repair(&scout(), &version(name), options).unwrap()
}

fn mended(repaired: &Repaired) -> Vec<(&str, &Mended)> {
    repaired.repairs.iter().map(|repair| (repair.path.as_str(), &repair.how)).collect()
}

#[test]
fn a_flipped_bit_is_mended_from_another_version() {
    let fixture = with_copies();
    let weights = path(&fixture, "v1", "weights/model.bin");
    flip_a_bit(&weights);
    assert!(!fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok());
    let repaired = repair(&fixture, "v1");
    assert!(!repaired.before.is_ok() && repaired.after.is_ok(), "{repaired:?}");
    let [("weights/model.bin", Mended::Bytes { from_agent, from_version, .. })] = mended(&repaired)[..]
    else {
        panic!("{repaired:?}")
    };
    assert_eq!((from_agent, from_version), (&scout(), &version("v2")));
    assert_eq!(Digest::of(&fs::read(&weights).unwrap()), Digest::of(&vec![42; 100_000]));
    assert_eq!(fs::metadata(&weights).unwrap().permissions().mode() & 0o222, 0);
    assert!(!repaired.quarantined && !repaired.released);
    let records = fixture.store.history(&scout()).unwrap();
    assert_eq!(records.last().unwrap().action, Action::Repair);
    assert!(repair(&fixture, "v1").repairs.is_empty(), "nothing is left to mend");
}

#[test]
fn a_hard_link_shares_its_rot() {
    let fixture = Fixture::new();
    fixture.publish("v1", &[("model.bin", &[7; 5000])]).unwrap();
    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    let first = fixture.store.require_version(&scout(), &version("v1")).unwrap();
    fs::hard_link(first.path().join("model.bin"), fixture.outside().join("kept")).unwrap();
    staging.share(&first, &payload("model.bin")).unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    let inode = |name: &str| fs::metadata(path(&fixture, name, "model.bin")).unwrap().ino();
    if inode("v1") != inode("v2") {
        eprintln!("skipped: this file system shares by reflinks, which do not rot together");
        return;
    }
    flip_a_bit(&path(&fixture, "v2", "model.bin"));
    let repaired = repair(&fixture, "v1");
    assert!(
        repaired.repairs.is_empty() && repaired.quarantined,
        "the other name is the same inode: {repaired:?}"
    );
    assert!(repaired.problems[0].contains("no other version holds a sound copy"), "{:?}", repaired.problems);
    // A sound copy comes: both are mended, and neither is a link to what was rotten.
    fixture.publish("v3", &[("model.bin", &[7; 5000])]).unwrap();
    for name in ["v1", "v2"] {
        let repaired = repair(&fixture, name);
        assert!(repaired.after.is_ok() && !repaired.quarantined, "{name}: {repaired:?}");
    }
    assert_ne!(inode("v1"), inode("v2"));
}

#[test]
fn rot_does_not_spread() {
    let fixture = with_copies();
    for file in ["v1", "v2"] {
        flip_a_bit(&path(&fixture, file, "weights/model.bin"));
    }
    let repaired = repair(&fixture, "v1");
    assert!(
        matches!(mended(&repaired)[..], [(_, Mended::Bytes { from_agent, .. })] if from_agent.as_str() == "analyst")
    );
    assert!(repaired.after.is_ok());
}

#[test]
fn what_cannot_be_mended_is_quarantined_and_released() {
    let fixture = with_copies();
    let config = path(&fixture, "v1", "config.json");
    let sound = fs::read(&config).unwrap();
    flip_a_bit(&config);
    let repaired = repair(&fixture, "v1");
    assert!(repaired.quarantined && !repaired.after.is_ok());
    let current = fixture.store.require_version(&scout(), &version("v1")).unwrap();
    let quarantine = current.quarantine().unwrap().unwrap();
    assert!(quarantine.reason.contains("config.json has other bytes"), "{quarantine:?}");
    // No pointer is moved to it.
    let moves = [
        fixture.store.activate(&scout(), &version("v1"), &MoveOptions::default()),
        fixture.store.rollback(&scout(), None, &MoveOptions::default()),
        fixture.store.tag(&scout(), &"x".parse().unwrap(), &version("v1"), &MoveOptions::default()),
    ];
    for moved in moves {
        let error = moved.unwrap_err();
        assert!(matches!(error, StoreError::Quarantined { .. }), "{error}");
        assert_eq!(error.exit_code(), exit::REFUSED);
        assert!(error.to_string().contains("model-store repair scout v1"), "{error}");
    }
    assert!(repair(&fixture, "v1").quarantined, "twice is no other than once");
    // Somebody restores the file from a backup.
    fs::remove_file(&config).unwrap();
    fs::write(&config, sound).unwrap();
    let repaired = repair(&fixture, "v1");
    assert!(repaired.after.is_ok() && repaired.released && !repaired.quarantined, "{repaired:?}");
    assert_eq!(mended(&repaired), [("config.json", &Mended::Mode)]);
    fixture.store.rollback(&scout(), None, &MoveOptions::default()).unwrap();
    let actions: Vec<_> =
        fixture.store.history(&scout()).unwrap().iter().map(|record| record.action).collect();
    assert_eq!(actions[2..], [Action::Quarantine, Action::Repair, Action::Release, Action::Rollback]);
}

#[test]
fn lost_files_links_modes_and_what_should_not_be_there() {
    let fixture = with_copies();
    fs::remove_dir_all(path(&fixture, "v2", "weights")).unwrap();
    fs::remove_file(path(&fixture, "v2", "link")).unwrap();
    symlink("weights/model.bin", path(&fixture, "v2", "link")).unwrap();
    fs::set_permissions(path(&fixture, "v2", "config.json"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(path(&fixture, "v2", ""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path(&fixture, "v2", "extra"), b"x").unwrap();
    fs::set_permissions(path(&fixture, "v2", "extra"), fs::Permissions::from_mode(0o444)).unwrap();

    let repaired = repair(&fixture, "v2");
    let left: Vec<_> = repaired.after.findings.iter().map(ToString::to_string).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(left[0], "extra is not in the manifest");
    assert!(!repaired.quarantined, "what lies beside the listed files is no damage to them");
    let paths: Vec<_> = mended(&repaired).iter().map(|(path, _)| *path).collect();
    assert_eq!(paths, ["link", "weights/model.bin", "config.json", "."]);

    let options = RepairOptions { remove_unlisted: true, ..RepairOptions::default() };
    let repaired = repair_with(&fixture, "v2", &options);
    assert_eq!(mended(&repaired), [("extra", &Mended::Removed)]);
    assert!(repaired.after.is_ok(), "{repaired:?}");
}

#[test]
fn what_lies_beside_the_listed_files_is_no_damage_to_them() {
    let fixture = with_copies();
    symlink("nowhere", path(&fixture, "v1", "stray")).unwrap();
    let repaired = repair(&fixture, "v1");
    assert!(!repaired.after.is_ok() && !repaired.quarantined, "{repaired:?}");
    let options = RepairOptions { remove_unlisted: true, ..RepairOptions::default() };
    let repaired = repair_with(&fixture, "v1", &options);
    assert_eq!(mended(&repaired), [("stray", &Mended::Removed)]);
    assert!(repaired.after.is_ok(), "{repaired:?}");
}

#[test]
fn a_file_of_another_group_is_found_and_mended() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root may give files away");
        return;
    }
    let fixture = with_copies();
    let config = path(&fixture, "v1", "config.json");
    std::os::unix::fs::chown(&config, None, Some(54_321)).unwrap();
    let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
    assert!(matches!(&report.findings[..], [Finding::WrongGroup { group: 54_321, .. }]), "{report:?}");
    assert!(repair(&fixture, "v1").after.is_ok());
}

#[test]
fn a_legacy_version_is_neither_mended_nor_quarantined() {
    let fixture = with_copies();
    let manifest = path(&fixture, "v1", "manifest.json");
    fs::remove_file(&manifest).unwrap();
    let text = serde_json::json!({"version": "v1", "checksum": Digest::of(b"x"), "metadata": {}});
    fs::write(&manifest, text.to_string()).unwrap();
    let repaired = repair(&fixture, "v1");
    assert!(!repaired.after.is_ok() && !repaired.quarantined && repaired.repairs.is_empty(), "{repaired:?}");
}

//! Stores of the old Python helper and its toy script.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use model_store::{AgentEntry, ChecksumKind, Digest, FinalizeOptions, Generation, StoreError, exit};
use serde_json::json;

use crate::fixture::{Fixture, agent, has_program, payload, scout, version};

/// The old definition, in the language it was written in: what our own walk has to agree with.
const PYTHON_CHECKSUM: &str = r"
import hashlib, os, sys
top = sys.argv[1]
total = hashlib.sha256()
for here, _, names in os.walk(top):
    for name in sorted(n for n in names if n != 'manifest.json'):
        path = os.path.join(here, name)
        total.update(os.path.relpath(path, top).encode())
        total.update(open(path, 'rb').read())
print(total.hexdigest())
";

fn write_manifest(dir: &Path, checksum: &str) {
    let name = dir.file_name().unwrap().to_str().unwrap();
    let manifest = json!({"version": name, "checksum": checksum, "metadata": {"author": "Ada"}});
    fs::write(dir.join("manifest.json"), serde_json::to_string_pretty(&manifest).unwrap()).unwrap();
}

#[test]
fn a_legacy_checksum_is_recognised_and_checked() {
    let fixture = Fixture::new();
    let dir = fixture.agent_dir().join("versions/v1");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("b.bin"), b"bee").unwrap();
    fs::write(dir.join("a.bin"), b"ay").unwrap();
    fs::write(dir.join("sub/c.bin"), b"sea").unwrap();
    fs::write(dir.join("sub/manifest.json"), b"left out at any depth").unwrap();
    write_manifest(&dir, &Digest::of(b"a.binayb.binbeesub/c.binsea").to_string());
    symlink("versions/v1", fixture.agent_dir().join("current")).unwrap();

    let current = fixture.current();
    assert_eq!(current.manifest().generation(), Generation::Legacy);
    assert_eq!(current.manifest().metadata["author"], "Ada");
    let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
    assert!(report.is_ok() && report.legacy, "{report:?}");
    assert_eq!((report.files_checked, report.bytes), (3, 8));

    fs::write(dir.join("sub/c.bin"), b"see").unwrap();
    let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
    assert!(!report.is_ok());
}

#[test]
fn a_legacy_checksum_agrees_with_python() {
    if !has_program("python3", "--version") {
        return;
    }
    let fixture = Fixture::new();
    let dir = fixture.agent_dir().join("versions/v1");
    for i in 0..40 {
        let sub = dir.join(format!("d{}/e{i}", i % 13));
        fs::create_dir_all(&sub).unwrap();
        fs::write(sub.join(format!("f{i}")), format!("file {i}")).unwrap();
        fs::write(dir.join(format!("Größe{i}")), b"top").unwrap();
    }
    symlink("Größe1", dir.join("link")).unwrap();
    symlink("../../Größe2", dir.join("d1/e1/up")).unwrap();
    let output = Command::new("python3").args(["-c", PYTHON_CHECKSUM]).arg(&dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    write_manifest(&dir, String::from_utf8(output.stdout).unwrap().trim());
    let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
    assert!(report.is_ok(), "{report:?}");
}

#[test]
fn a_version_is_published_for_pythons_readers() {
    if !has_program("python3", "--version") {
        return;
    }
    let fixture = Fixture::new();
    let staging = fixture.store.stage_new(&scout(), &version("v1")).unwrap();
    for i in 0..300 {
        staging.write(&payload(&format!("d{}/e{i}/f", i % 90)), format!("file {i}").as_bytes()).unwrap();
    }
    let options = FinalizeOptions { checksum: ChecksumKind::Legacy, ..FinalizeOptions::default() };
    let published = staging.finalize(options).unwrap();
    assert_eq!(published.files, 300);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(published.path.join("manifest.json")).unwrap()).unwrap();
    let keys: Vec<_> = manifest.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["version", "checksum", "metadata"]);
    let output = Command::new("python3").args(["-c", PYTHON_CHECKSUM]).arg(&published.path).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), published.checksum.to_string());
    let report = fixture.store.verify(&scout(), &version("v1")).unwrap();
    assert!(report.is_ok() && report.legacy, "{report:?}");
}

/// `<agent>/v1` without `versions/`, and an absolute `current`.
fn toy(fixture: &Fixture, with_manifest: bool) {
    let dir = fixture.agent_dir().join("v1");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("model.bin"), b"toy").unwrap();
    if with_manifest {
        write_manifest(&dir, &Digest::of(b"model.bintoy").to_string());
    }
    symlink(&dir, fixture.agent_dir().join("current")).unwrap();
}

#[test]
fn a_toy_store_of_the_old_script_is_read() {
    for with_manifest in [true, false] {
        let fixture = Fixture::new();
        toy(&fixture, with_manifest);
        assert_eq!(fixture.store.agents().unwrap(), [AgentEntry::Agent(scout())]);
        assert_eq!(fixture.store.versions(&scout()).unwrap(), [version("v1")]);
        let current = fixture.current();
        assert!(current.is_legacy_layout());
        assert_eq!(current.path(), fixture.agent_dir().join("v1"));
        assert_eq!(current.open(&payload("model.bin")).unwrap().metadata().unwrap().len(), 3);
        assert_eq!(fixture.store.verify(&scout(), &version("v1")).unwrap().is_ok(), with_manifest);

        let error = fixture.publish("v1", &[("x", b"x")]).unwrap_err();
        assert!(matches!(error, StoreError::VersionExists { .. }), "{error}");
        let published = fixture.publish("v2", &[("x", b"x")]).unwrap();
        assert_eq!(published.previous, Some(version("v1")));
        assert_eq!(fs::read_link(fixture.agent_dir().join("current")).unwrap().to_str(), Some("versions/v2"));
        assert_eq!(fixture.store.versions(&scout()).unwrap(), [version("v1"), version("v2")]);
    }
}

#[test]
fn a_legacy_version_is_shared_by_copy() {
    let fixture = Fixture::new();
    toy(&fixture, true);
    let old = fixture.current();
    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    staging.share(&old, &payload("model.bin")).unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    fs::write(old.path().join("model.bin"), b"written to, as the old script allowed").unwrap();
    assert!(fixture.store.verify(&scout(), &version("v2")).unwrap().is_ok());
}

#[test]
fn pointers_that_lead_nowhere_good() {
    let rows = [
        ("nothing", "versions/v9", "not there"),
        ("another agent", "../spy/versions/v1", "outside this agent"),
        ("deeper", "versions/v1/sub", "outside this agent"),
        ("no version name", "versions/..", "not a version"),
        ("staging", "versions/v1.tmp", "not a version"),
        ("elsewhere", "/usr/bin", "outside this agent"),
        ("an old mount", "/no/such/place/v1", "not there"),
    ];
    for (row, target, why) in rows {
        let fixture = Fixture::with_v1();
        let link = fixture.agent_dir().join("current");
        fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
        let error =
            fixture.store.get_current(&scout()).err().unwrap_or_else(|| panic!("{row}: it was followed"));
        assert_eq!(error.exit_code(), exit::CORRUPT, "{row}: {error}");
        let message = error.to_string();
        assert!(message.contains(why) && message.contains("scout/current"), "{row}: {message}");
    }
    let fixture = Fixture::with_v1();
    let link = fixture.agent_dir().join("current");
    fs::remove_file(&link).unwrap();
    fs::create_dir(&link).unwrap();
    assert_eq!(fixture.store.get_current(&scout()).unwrap_err().exit_code(), exit::CORRUPT);
    // Made absolute by somebody, it still leads to this agent.
    fs::remove_dir(&link).unwrap();
    symlink(fixture.agent_dir().join("versions/v1"), &link).unwrap();
    assert_eq!(fixture.current().version(), &version("v1"));
}

#[test]
fn aliases_are_followed_by_readers_and_refused_to_writers() {
    let fixture = Fixture::with_v1();
    let alias = agent("old-scout");
    fixture.store.add_alias(&alias, &scout()).unwrap();
    fixture.store.add_alias(&alias, &scout()).unwrap();
    assert_eq!(fs::read_link(fixture.root().join("old-scout")).unwrap().to_str(), Some("scout"));
    let entries = fixture.store.agents().unwrap();
    assert_eq!(
        entries,
        [AgentEntry::Alias { alias: alias.clone(), target: scout() }, AgentEntry::Agent(scout())]
    );
    let current = fixture.store.get_current(&alias).unwrap().unwrap();
    assert_eq!(current.agent(), &scout());
    assert_eq!(current.path(), fixture.root().join("scout/versions/v1"));
    assert!(fixture.store.verify(&alias, &version("v1")).unwrap().is_ok());

    let error = fixture.store.stage_new(&alias, &version("v2")).unwrap_err();
    assert!(error.to_string().contains("write to scout instead"), "{error}");
    assert_eq!(error.exit_code(), exit::REFUSED);
    // An alias of an alias leads on to the agent itself, and is named so.
    fixture.store.add_alias(&agent("older"), &alias).unwrap();
    assert_eq!(fs::read_link(fixture.root().join("older")).unwrap().to_str(), Some("scout"));
    assert!(fixture.store.add_alias(&agent("x"), &agent("nobody")).is_err());
    assert!(fixture.store.add_alias(&scout(), &scout()).is_err());
}

#[test]
fn aliases_that_lead_nowhere_good() {
    let fixture = Fixture::with_v1();
    let rows = [
        ("outside", "/etc"),
        ("climbing", "../elsewhere"),
        ("deeper", "scout/versions"),
        ("circle", "circle"),
    ];
    for (name, target) in rows {
        symlink(target, fixture.root().join(name)).unwrap();
        let error =
            fixture.store.get_current(&agent(name)).err().unwrap_or_else(|| panic!("{name} was followed"));
        assert_eq!(error.exit_code(), exit::CORRUPT, "{name}: {error}");
        assert!(fixture.store.stage_new(&agent(name), &version("v1")).is_err(), "{name} was written to");
    }
    symlink("nobody", fixture.root().join("ghost")).unwrap();
    let error = fixture.store.require_current(&agent("ghost")).unwrap_err();
    assert!(error.to_string().contains("is an alias of nobody, which is not there"), "{error}");
    symlink(fixture.root().join("scout"), fixture.root().join("absolute")).unwrap();
    assert_eq!(fixture.store.get_current(&agent("absolute")).unwrap().unwrap().agent(), &scout());
}

//! What a dead writer left is cleared by the next one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use model_store::FinalizeOptions;

use crate::child::{Task, Work};
use crate::fixture::{Fixture, payload, scout, version};

#[test]
fn a_killed_writers_staging_is_cleared() {
    let fixture = Fixture::with_v1();
    let task = Task { root: fixture.root().to_owned(), version: "v2".to_owned(), work: Work::HoldStaging };
    let mut child = task.start();
    child.await_word("holding");
    child.kill();
    assert_eq!(fixture.leftovers(), ["versions/v2.tmp"]);
    let stagings = fixture.store.stagings(&scout()).unwrap();
    assert_eq!((&stagings[0].version, stagings[0].in_use), (&version("v2"), false));
    assert_eq!(fixture.store.versions(&scout()).unwrap(), [version("v1")], "a staging is no version");
    // The very version that the dead writer was at.
    fixture.publish("v2", &[("x", b"x")]).unwrap();
    assert!(fixture.leftovers().is_empty());
    assert!(fixture.store.verify(&scout(), &version("v2")).unwrap().is_ok());
}

#[test]
fn every_kind_of_leftover_is_cleared() {
    let fixture = Fixture::with_v1();
    let agent = fixture.agent_dir();
    fs::create_dir_all(agent.join("versions/v9.tmp/deep")).unwrap();
    fs::write(agent.join("versions/v9.tmp/deep/file"), b"x").unwrap();
    symlink("/etc", agent.join("versions/v9.tmp/link")).unwrap();
    fs::create_dir_all(agent.join(".trash/v0")).unwrap();
    fs::write(agent.join(".trash/v0/file"), b"x").unwrap();
    symlink("versions/v9", agent.join(".current-4711")).unwrap();
    drop(fixture.store.stage_new(&scout(), &version("v2")).unwrap());
    assert_eq!(fixture.leftovers(), [".trash"]);
    assert_eq!(fs::read_dir(agent.join(".trash")).unwrap().count(), 0);
    assert_eq!(fixture.current().version(), &version("v1"));
    assert!(std::path::Path::new("/etc/passwd").exists());
}

#[test]
fn an_intent_that_was_not_carried_out_is_closed() {
    let fixture = Fixture::with_v1();
    let path = fixture.agent_dir().join("history.jsonl");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str(&text.clone().replace(r#""from":null,"to":"v1""#, r#""from":"v1","to":"v2""#));
    // Its writer died in the middle of the next line.
    text.push_str(r#"{"at":"2026-11-2"#);
    fs::write(&path, text).unwrap();
    drop(fixture.store.stage_new(&scout(), &version("v3")).unwrap());
    let history = fixture.history();
    assert_eq!(history.len(), 3);
    assert_eq!(history[2]["action"], "reconcile");
    assert_eq!((&history[2]["from"], &history[2]["to"]), (&"v2".into(), &"v1".into()));
    // Nothing to say twice.
    drop(fixture.store.stage_new(&scout(), &version("v3")).unwrap());
    assert_eq!(fixture.history().len(), 3);
    fixture.publish("v3", &[("x", b"x")]).unwrap();
    assert_eq!(fixture.history()[3]["from"], "v1");
}

#[test]
fn a_foreign_line_in_the_history_stops_nobody() {
    let fixture = Fixture::with_v1();
    let path = fixture.agent_dir().join("history.jsonl");
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("{\"a note\": \"by hand\"}\n");
    fs::write(&path, text).unwrap();
    let staging = fixture.store.stage_new(&scout(), &version("v2")).unwrap();
    staging.write(&payload("x"), b"x").unwrap();
    staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(fixture.history().len(), 3);
}

#[test]
fn a_directory_whose_maker_died_before_it_got_its_mode_gets_it() {
    let fixture = Fixture::new();
    let versions = fixture.agent_dir().join("versions");
    fs::create_dir_all(&versions).unwrap();
    for dir in [&fixture.agent_dir(), &versions] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fixture.publish("v1", &[("x", b"x")]).unwrap();
    for dir in [&fixture.agent_dir(), &versions] {
        let mode = fs::metadata(dir).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o2775, "{} has mode {mode:o}", dir.display());
    }
}

#[test]
fn a_record_of_a_newer_program_is_no_reason_to_reconcile() {
    let fixture = Fixture::with_v1();
    let path = fixture.agent_dir().join("history.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    // Somebody went to v0 and came back by ways that this program does not know.
    let to =
        |to: &str| text.replace("publish", "rollback").replace(r#""to":"v1""#, &format!(r#""to":"{to}""#));
    fs::write(&path, format!("{text}{}", to("v0"))).unwrap();
    drop(fixture.store.stage_new(&scout(), &version("v2")).unwrap());
    assert_eq!(fixture.history().len(), 3, "v0 is not current: that is said");
    fs::write(&path, format!("{text}{}{}", to("v0"), to("v1"))).unwrap();
    drop(fixture.store.stage_new(&scout(), &version("v2")).unwrap());
    assert_eq!(fixture.history().len(), 3, "v1 is current");
}

#[test]
fn a_long_reason_is_read_to_its_beginning() {
    let fixture = Fixture::with_v1();
    for (name, length) in [("v2", 70_000), ("v3", 400_000)] {
        let options =
            FinalizeOptions { reason: Some("why ".repeat(length / 4)), ..FinalizeOptions::default() };
        fixture.publish_with(name, &[("x", b"x")], options).unwrap();
    }
    let path = fixture.agent_dir().join("history.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    // A long line that its writer did not end.
    fs::write(&path, format!("{whole}{}", &whole[whole.len() / 2..whole.len() - 1])).unwrap();
    drop(fixture.store.stage_new(&scout(), &version("v4")).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), whole);
}

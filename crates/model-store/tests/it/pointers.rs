//! Moving pointers: activate, rollback, refs, and what the history says of it.

use std::fs;
use std::os::unix::fs::symlink;

use model_store::{
    Action, Activation, FinalizeOptions, MoveOptions, PointerName, RefName, Selector, StoreError, exit,
};

use crate::fixture::{Fixture, agent, payload, scout, version};

fn name(name: &str) -> RefName {
    name.parse().unwrap()
}

fn why(reason: &str) -> MoveOptions {
    MoveOptions { actor: None, reason: Some(reason.to_owned()) }
}

fn with_versions(names: &[&str]) -> Fixture {
    let fixture = Fixture::new();
    for name in names {
        fixture.publish(name, &[("config.json", name.as_bytes())]).unwrap();
    }
    fixture
}

/// The store and its history agree on what is current.
fn check_current(row: &str, fixture: &Fixture, expected: &str) {
    assert_eq!(fixture.current().version(), &version(expected), "{row}");
    let records = fixture.store.history(&scout()).unwrap();
    let last = records.iter().rfind(|record| record.pointer == PointerName::Current).unwrap();
    assert_eq!(last.to, Some(version(expected)), "{row}: the history");
    assert_eq!(last.checksum, Some(fixture.current().checksum()), "{row}: the checksum in the history");
}

#[test]
fn a_rollback_leads_back_and_forth() {
    let fixture = with_versions(&["v1", "v2", "v3"]);
    for (row, expected) in [("back", "v2"), ("forth", "v3"), ("back again", "v2")] {
        let before = fixture.current().version().clone();
        let moved = fixture.store.rollback(&scout(), None, &why(row)).unwrap();
        assert_eq!((moved.from, moved.to), (Some(before), Some(version(expected))), "{row}");
        check_current(row, &fixture, expected);
    }
    let moved = fixture.store.rollback(&scout(), Some(&version("v1")), &why("named")).unwrap();
    assert_eq!(moved.to, Some(version("v1")));
    check_current("named", &fixture, "v1");
    let records = fixture.store.history(&scout()).unwrap();
    let last = records.last().unwrap();
    assert_eq!((last.action, last.reason.as_deref()), (Action::Rollback, Some("named")));
    assert!(last.by.contains('@'), "{last:?}");
}

#[test]
fn a_version_whose_activation_never_happened_is_no_way_back() {
    let fixture = with_versions(&["v1", "v2"]);
    let path = fixture.agent_dir().join("history.jsonl");
    // The writer of v3 died between its record and the move; v3 exists.
    let text = fs::read_to_string(&path).unwrap();
    let intent = text.lines().last().unwrap().replace(r#""from":"v1","to":"v2""#, r#""from":"v2","to":"v3""#);
    fs::write(&path, format!("{text}{intent}\n")).unwrap();
    let keep = FinalizeOptions { activation: Activation::Keep, ..FinalizeOptions::default() };
    fixture.publish_with("v3", &[("x", b"x")], keep).unwrap();
    let moved = fixture.store.rollback(&scout(), None, &MoveOptions::default()).unwrap();
    assert_eq!(moved.to, Some(version("v1")));
}

#[test]
fn without_a_way_back_the_error_names_the_versions() {
    let fixture = with_versions(&["v1"]);
    let keep = FinalizeOptions { activation: Activation::Keep, ..FinalizeOptions::default() };
    fixture.publish_with("v2", &[("x", b"x")], keep).unwrap();
    let error = fixture.store.rollback(&scout(), None, &MoveOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    assert!(error.to_string().contains("--to: v2"), "{error}");

    let fixture = with_versions(&["v1", "v2", "v3"]);
    fs::remove_dir_all(fixture.agent_dir().join("versions/v2")).unwrap();
    let error = fixture.store.rollback(&scout(), None, &MoveOptions::default()).unwrap_err();
    assert!(error.to_string().contains("v2 was current before, and is retired"), "{error}");
    assert!(error.to_string().contains("--to: v1"), "{error}");
}

#[test]
fn a_move_to_where_it_is_does_nothing() {
    let fixture = with_versions(&["v1", "v2"]);
    let before = fixture.history();
    let moved = fixture.store.activate(&scout(), &version("v2"), &MoveOptions::default()).unwrap();
    assert_eq!(moved.from, moved.to);
    assert_eq!(fixture.history(), before);
}

#[test]
fn a_dangling_current_is_mended_by_activating() {
    let fixture = with_versions(&["v1", "v2"]);
    fs::remove_dir_all(fixture.agent_dir().join("versions/v2")).unwrap();
    let error = fixture.store.get_current(&scout()).unwrap_err();
    assert!(error.to_string().contains("model-store activate"), "{error}");
    fixture.store.activate(&scout(), &version("v1"), &MoveOptions::default()).unwrap();
    check_current("mended", &fixture, "v1");
}

#[test]
fn refs_are_made_moved_and_taken_away() {
    let fixture = with_versions(&["v1", "v2"]);
    let (store, candidate) = (&fixture.store, name("candidate"));
    let moved = store.tag(&scout(), &candidate, &version("v2"), &why("looks good")).unwrap();
    assert_eq!((moved.from, moved.to), (None, Some(version("v2"))));
    let link = fs::read_link(fixture.agent_dir().join("refs/candidate")).unwrap();
    assert_eq!(link.to_str(), Some("../versions/v2"));
    // Promotion: one ref is pointed at what the other points at.
    let promoted = store.select(&scout(), &Selector::Named(version("candidate"))).unwrap();
    store.tag(&scout(), &name("champion"), promoted.version(), &MoveOptions::default()).unwrap();
    let moved = store.tag(&scout(), &candidate, &version("v1"), &MoveOptions::default()).unwrap();
    assert_eq!((moved.from, moved.to), (Some(version("v2")), Some(version("v1"))));
    let refs = store.refs(&scout()).unwrap();
    let refs: Vec<_> = refs.iter().map(|r| (r.name.as_str(), r.version.as_str(), r.dangling)).collect();
    assert_eq!(refs, [("candidate", "v1", false), ("champion", "v2", false)]);
    store.untag(&scout(), &candidate, &MoveOptions::default()).unwrap();
    assert!(store.get_ref(&scout(), &candidate).unwrap().is_none());
    let error = store.untag(&scout(), &name("champian"), &MoveOptions::default()).unwrap_err();
    assert!(error.to_string().contains("did you mean champion?"), "{error}");
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    let actions: Vec<_> = store.history(&scout()).unwrap().iter().map(|record| record.action).collect();
    assert_eq!(actions[2..], [Action::Tag, Action::Tag, Action::Tag, Action::Untag]);
    assert!(fixture.leftovers().iter().all(|left| left == "refs"), "{:?}", fixture.leftovers());
}

#[test]
fn a_ref_cannot_have_a_versions_name() {
    let fixture = with_versions(&["v1", "v2"]);
    let error =
        fixture.store.tag(&scout(), &name("v1"), &version("v2"), &MoveOptions::default()).unwrap_err();
    assert!(matches!(error, StoreError::RefIsVersion { .. }), "{error}");
}

#[test]
fn a_version_cannot_have_a_refs_name() {
    let fixture = with_versions(&["v1"]);
    fixture.store.tag(&scout(), &name("champion"), &version("v1"), &MoveOptions::default()).unwrap();
    let error = fixture.store.stage_new(&scout(), &version("champion")).unwrap_err();
    assert_eq!(error.exit_code(), exit::REFUSED);
    assert!(error.to_string().contains("has a ref of the name champion"), "{error}");
}

#[test]
fn a_current_that_is_no_text_is_mended_by_a_move() {
    use std::os::unix::ffi::OsStrExt;
    let fixture = with_versions(&["v1", "v2"]);
    let current = fixture.agent_dir().join("current");
    fs::remove_file(&current).unwrap();
    symlink(std::ffi::OsStr::from_bytes(b"versions/v\xff"), &current).unwrap();
    assert_eq!(fixture.store.get_current(&scout()).unwrap_err().exit_code(), exit::CORRUPT);
    fixture.store.activate(&scout(), &version("v1"), &MoveOptions::default()).unwrap();
    check_current("mended", &fixture, "v1");
}

#[test]
fn a_ref_that_leads_out_is_refused() {
    let fixture = with_versions(&["v1"]);
    fs::create_dir(fixture.agent_dir().join("refs")).unwrap();
    for target in ["/etc", "../../other/versions/v1", "v1", "../versions/../../x"] {
        let link = fixture.agent_dir().join("refs/bad");
        symlink(target, &link).unwrap();
        let error = fixture.store.get_ref(&scout(), &name("bad")).unwrap_err();
        assert_eq!(error.exit_code(), exit::CORRUPT, "{target}: {error}");
        assert!(error.to_string().contains("refs/bad"), "{target}: {error}");
        fs::remove_file(link).unwrap();
    }
}

#[test]
fn what_is_not_there_is_named_with_what_is_near() {
    let fixture = with_versions(&["v2025-09-12"]);
    let store = &fixture.store;
    let nothing = MoveOptions::default();
    let rows = [
        (store.activate(&agent("scuot"), &version("v1"), &nothing).map(drop), "did you mean scout?"),
        (store.activate(&scout(), &version("v2025-09-21"), &nothing).map(drop), "did you mean v2025-09-12?"),
        (store.select(&scout(), &"v2025".parse().unwrap()).map(drop), "did you mean v2025-09-12?"),
        (store.tag(&scout(), &name("x"), &version("v9"), &nothing).map(drop), "no version v9 of agent scout"),
    ];
    for (result, expected) in rows {
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), exit::NOT_FOUND, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn an_alias_is_not_moved() {
    let fixture = with_versions(&["v1", "v2"]);
    fixture.store.add_alias(&agent("old-scout"), &scout()).unwrap();
    let error = fixture.store.rollback(&agent("old-scout"), None, &MoveOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), exit::REFUSED);
    assert!(error.to_string().contains("alias of scout"), "{error}");
}

#[test]
fn a_version_that_lost_a_file_does_not_become_current() {
    let fixture = with_versions(&["v1", "v2"]);
    fs::remove_file(fixture.agent_dir().join("versions/v1/config.json")).unwrap();
    let error = fixture.store.rollback(&scout(), None, &MoveOptions::default()).unwrap_err();
    assert_eq!(error.exit_code(), exit::CORRUPT);
    assert!(error.to_string().contains("config.json: is missing"), "{error}");
    assert!(error.to_string().contains("model-store repair scout v1"), "{error}");
    check_current("it stays", &fixture, "v2");
}

#[test]
fn a_publish_waits_for_nobody_while_it_hashes() {
    let fixture = with_versions(&["v1", "v2"]);
    let staging = fixture.store.stage_new(&scout(), &version("v3")).unwrap();
    staging.write(&payload("x"), b"x").unwrap();
    // A rollback in the middle of somebody's publish.
    fixture.store.rollback(&scout(), None, &MoveOptions::default()).unwrap();
    let published = staging.finalize(FinalizeOptions::default()).unwrap();
    assert_eq!(published.previous, Some(version("v1")), "what was current when it was published");
    check_current("v3", &fixture, "v3");
}

#[test]
fn what_was_current_is_looked_up_anew() {
    let fixture = with_versions(&["v1"]);
    let store = &fixture.store;
    let first = store.get_current(&scout()).unwrap().unwrap();
    let again = store.get_current(&scout()).unwrap().unwrap();
    assert_eq!(first.manifest(), again.manifest());
    drop((first, again));
    // The same name and another directory: by hand, as nobody should.
    fs::remove_dir_all(fixture.agent_dir().join("versions/v1")).unwrap();
    fs::remove_file(fixture.agent_dir().join("current")).unwrap();
    fixture.publish("v1", &[("config.json", b"another")]).unwrap();
    let now = store.get_current(&scout()).unwrap().unwrap();
    assert_eq!(now.manifest().files[0].size, 7);
    fixture.publish("v2", &[("config.json", b"2")]).unwrap();
    assert_eq!(fixture.current().version(), &version("v2"));
    fs::rename(fixture.agent_dir().join("versions/v2"), fixture.agent_dir().join("versions/gone")).unwrap();
    assert_eq!(store.get_current(&scout()).unwrap_err().exit_code(), exit::CORRUPT);
}

//! The store's and the host's health.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;

use crate::desk::Desk;

/// What is said of this machine, such as little room, is not this test's business.
fn of_the_store(diagnosis: &Value) -> Vec<Value> {
    let complaints = diagnosis["complaints"].as_array().unwrap().iter();
    complaints.filter(|one| one["check"] == "pointers" || one["check"] == "leftovers").cloned().collect()
}

fn json(desk: &Desk, arguments: &[&str]) -> (Option<i32>, Value) {
    let run = desk.run(arguments);
    assert_eq!(run.stderr, "");
    (run.code, serde_json::from_str(&run.stdout).unwrap())
}

#[test]
fn a_sound_store_has_a_line_a_check() {
    let desk = Desk::with_v1();
    let said = desk.run(&["doctor"]).stdout;
    for check in ["pointers", "leftovers", "history", "versions", "quarantine"] {
        let line = said.lines().find(|line| line.starts_with(check)).unwrap();
        assert!(line.ends_with("  ok"), "{said}");
    }
    let (_, diagnosis) = json(&desk, &["doctor", "--json"]);
    assert!(of_the_store(&diagnosis).is_empty(), "{diagnosis}");
    assert!(diagnosis["checks"].as_array().unwrap().len() > 5, "{diagnosis}");
}

#[test]
fn what_a_dead_writer_left_is_told_and_put_right() {
    let desk = Desk::with_v1();
    fs::create_dir(desk.root().join("scout/versions/v2.tmp")).unwrap();
    symlink("versions/v1", desk.root().join("scout/.current-4000000")).unwrap();
    let said = desk.run(&["doctor"]).stdout;
    assert!(said.contains("scout/versions/v2.tmp: ") && said.contains("next  "), "{said}");
    assert!(said.contains("`model-store doctor --fix` puts "), "{said}");
    let (_, diagnosis) = json(&desk, &["doctor", "--json"]);
    let found = of_the_store(&diagnosis);
    assert!(!found.is_empty() && found.iter().all(|one| one["fix"]["state"] == "possible"), "{diagnosis}");
    let said = desk.run(&["doctor", "--fix"]).stdout;
    assert!(said.contains("leftovers    put right ") && said.contains("v2.tmp"), "{said}");
    assert!(!desk.root().join("scout/versions/v2.tmp").exists());
    let (_, diagnosis) = json(&desk, &["doctor", "--json"]);
    assert!(of_the_store(&diagnosis).is_empty(), "{diagnosis}");
}

#[test]
fn what_only_a_person_can_put_right_ends_with_1() {
    let desk = Desk::with_v1();
    let link = desk.root().join("scout/current");
    fs::remove_file(&link).unwrap();
    symlink("versions/v9", &link).unwrap();
    for arguments in [&["doctor"][..], &["doctor", "--fix"]] {
        let run = desk.run(arguments).ended(1);
        assert!(
            run.stdout.contains("error ") && run.stdout.contains("scout/current: points at v9"),
            "{}",
            run.stdout
        );
        assert!(run.stdout.contains("next  `model-store rollback scout`"), "{}", run.stdout);
    }
    desk.run(&["activate", "scout", "v1"]).ok();
    assert!(!desk.run(&["doctor"]).stdout.contains("points at v9"));
}

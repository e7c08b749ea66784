//! Retiring versions: who decides, what protects, what is left.

use std::fs::{self, File};
use std::time::Duration;

use model_store::{MoveOptions, Plan, Policy, Verdict, exit};

use crate::fixture::{Fixture, agent, has_program, scout, version};

/// Without grace: what was published a moment ago may go.
fn policy(keep: usize) -> Policy {
    Policy { keep, grace: Duration::ZERO, ..Policy::default() }
}

fn with_versions(count: usize) -> Fixture {
    let fixture = Fixture::new();
    for number in 1..=count {
        let bytes = vec![u8::try_from(number).unwrap(); 1000];
        fixture.publish(&format!("v{number}"), &[("model.bin", &bytes)]).unwrap();
    }
    fixture
}

fn plan(fixture: &Fixture, policy: &Policy) -> Plan {
    fixture.store.plan_gc(&[scout()], policy).unwrap()
}

fn to_go(plan: &Plan) -> Vec<&str> {
    plan.to_retire().map(|decision| decision.version.as_str()).collect()
}

fn kept_because(plan: &Plan, name: &str) -> String {
    let decision = plan.decisions.iter().find(|decision| decision.version.as_str() == name).unwrap();
    match &decision.verdict {
        Verdict::Keep { reasons } => reasons.join(", "),
        Verdict::Retire { reason } => panic!("{name} is to go: {reason}"),
    }
}

fn gc(fixture: &Fixture, policy: &Policy) -> Vec<String> {
    let collected = fixture.store.gc(&[scout()], policy, &MoveOptions::default()).unwrap();
    assert_eq!(collected.problems, [""; 0]);
    collected.retired.into_iter().map(|gone| gone.version.to_string()).collect()
}

#[test]
fn the_newest_stay_and_the_rest_goes() {
    let fixture = with_versions(5);
    let planned = plan(&fixture, &policy(3));
    assert_eq!(to_go(&planned), ["v1", "v2"]);
    assert_eq!((planned.bytes, planned.bytes_to_free), (5000, 2000));
    assert_eq!(kept_because(&planned, "v5"), "current, one of the newest 3");
    let collected = fixture.store.gc(&[scout()], &policy(3), &MoveOptions::default()).unwrap();
    assert_eq!(collected.bytes_freed, 2000);
    let left: Vec<_> = fixture.store.versions(&scout()).unwrap().into_iter().map(String::from).collect();
    assert_eq!(left, ["v3", "v4", "v5"]);
    assert_eq!(fs::read_dir(fixture.agent_dir().join(".trash")).unwrap().count(), 0);
    let records = fixture.history();
    assert_eq!(records[5]["action"], "retire");
    assert_eq!(
        (&records[5]["pointer"], &records[5]["to"]),
        (&"versions/v1".into(), &serde_json::Value::Null)
    );
    assert_eq!(gc(&fixture, &policy(3)), [""; 0], "nothing is left to do");
}

#[test]
fn what_holds_a_version() {
    let fixture = with_versions(4);
    let store = &fixture.store;
    assert_eq!(to_go(&plan(&fixture, &policy(1))), ["v1", "v2", "v3"]);

    store.tag(&scout(), &"champion".parse().unwrap(), &version("v1"), &MoveOptions::default()).unwrap();
    assert_eq!(kept_because(&plan(&fixture, &policy(1)), "v1"), "ref champion");

    let second = store.require_version(&scout(), &version("v2")).unwrap();
    let lease = second.lease().unwrap();
    drop(second);
    let reason = kept_because(&plan(&fixture, &policy(1)), "v2");
    assert!(reason.contains("leased"), "{reason}");

    let open = File::open(fixture.agent_dir().join("versions/v3/model.bin")).unwrap();
    let reason = kept_because(&plan(&fixture, &policy(1)), "v3");
    assert!(reason.contains(&format!("(process {})", std::process::id())), "{reason}");

    assert_eq!(gc(&fixture, &policy(1)), [""; 0]);
    drop((lease, open));
    assert_eq!(gc(&fixture, &policy(1)), ["v2", "v3"]);

    let grace = Policy { grace: Duration::from_hours(1), ..policy(1) };
    store.activate(&scout(), &version("v1"), &MoveOptions::default()).unwrap();
    let reason = kept_because(&plan(&fixture, &grace), "v4");
    assert!(reason.contains("was current 0 s ago") && reason.contains("published 0 s ago"), "{reason}");
    let young = Policy { older_than: Some(Duration::from_hours(1)), ..policy(0) };
    assert_eq!(kept_because(&plan(&fixture, &young), "v4"), "younger than 1 h");
}

#[test]
fn what_another_process_has_mapped_or_stands_in_stays() {
    if !has_program("python3", "--version") {
        return;
    }
    let fixture = with_versions(3);
    let versions = fixture.agent_dir().join("versions");
    // Mapped, and no longer open.
    let script = "import mmap,os,sys\nf=os.open(sys.argv[1],os.O_RDONLY)\nm=mmap.mmap(f,0,prot=mmap.PROT_READ)\n\
                  os.close(f)\nprint('ready',flush=True)\nsys.stdin.read()";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(versions.join("v1/model.bin"))
        .current_dir(versions.join("v2"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    let planned = plan(&fixture, &policy(1));
    for name in ["v1", "v2"] {
        let reason = kept_because(&planned, name);
        assert!(reason.contains(&format!("(process {})", child.id())), "{name}: {reason}");
    }
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(gc(&fixture, &policy(1)), ["v1", "v2"]);
}

#[test]
fn a_capacity_goal_takes_the_oldest_and_stops() {
    let fixture = with_versions(5);
    let goal = Policy { max_bytes: Some(3500), ..policy(1) };
    let planned = plan(&fixture, &goal);
    assert_eq!(to_go(&planned), ["v1", "v2"]);
    assert_eq!(kept_because(&planned, "v3"), "the goal of 3.5 KB is reached");
    let goal = Policy { max_bytes: Some(10), ..policy(2) };
    let planned = plan(&fixture, &goal);
    assert_eq!(to_go(&planned), ["v1", "v2", "v3"]);
    assert!(planned.notes[0].contains("2.0 KB would be left"), "{:?}", planned.notes);
}

#[test]
fn shared_files_are_freed_with_their_last_version() {
    let fixture = with_versions(1);
    for name in ["v2", "v3"] {
        let first = fixture.store.require_version(&scout(), &version("v1")).unwrap();
        let staging = fixture.store.stage_new(&scout(), &version(name)).unwrap();
        staging.share(&first, &"model.bin".parse().unwrap()).unwrap();
        staging.finalize(model_store::FinalizeOptions::default()).unwrap();
    }
    let usage = fixture.store.usage().unwrap();
    let rows: Vec<_> = usage.iter().map(|one| (one.bytes, one.bytes_alone, one.bytes_shared)).collect();
    // ext4 and tmpfs link; xfs and btrfs reflink, which is not seen.
    if rows[0].1 == 1000 {
        return;
    }
    assert_eq!(rows, [(1000, 0, 1000); 3]);
    let planned = plan(&fixture, &policy(1));
    assert_eq!((planned.bytes, planned.bytes_to_free), (1000, 0));
    assert_eq!(gc(&fixture, &policy(1)), ["v1", "v2"]);
    assert_eq!(fixture.store.usage().unwrap()[0].bytes_alone, 1000);
    assert!(fixture.store.verify(&scout(), &version("v3")).unwrap().is_ok());
}

#[test]
fn what_nobody_understands_is_left_alone() {
    let fixture = with_versions(4);
    let versions = fixture.agent_dir().join("versions");
    let manifest = |name: &str| versions.join(name).join("manifest.json");
    let text = fs::read_to_string(manifest("v1")).unwrap();
    fs::remove_file(manifest("v1")).unwrap();
    fs::write(manifest("v1"), text.replace(r#""format": 1"#, r#""format": 2"#)).unwrap();
    fs::remove_file(manifest("v2")).unwrap();
    fs::write(manifest("v2"), "{").unwrap();
    let planned = plan(&fixture, &policy(1));
    assert_eq!(kept_because(&planned, "v1"), "of a newer format (2)");
    assert_eq!(kept_because(&planned, "v2"), "its manifest cannot be read");
    assert_eq!(gc(&fixture, &policy(1)), ["v3"]);
    // A pointer that cannot be understood may point anywhere.
    std::os::unix::fs::symlink("/etc", fixture.agent_dir().join("refs")).unwrap();
    fixture.publish("v5", &[("x", b"x")]).unwrap();
    let reason = kept_because(&plan(&fixture, &policy(1)), "v4");
    assert!(reason.contains("could not open") && reason.contains("scout/refs"), "{reason}");
    let collected = fixture.store.gc(&[scout()], &policy(1), &MoveOptions::default()).unwrap();
    assert!(collected.retired.is_empty() && collected.problems[0].contains("scout/refs"), "{collected:?}");
}

#[test]
fn an_agent_that_is_not_there_is_said() {
    let fixture = with_versions(1);
    let error = fixture.store.plan_gc(&[agent("scuot")], &policy(1)).unwrap_err();
    assert_eq!(error.exit_code(), exit::NOT_FOUND);
    fixture.store.add_alias(&agent("alias"), &scout()).unwrap();
    let planned = fixture.store.plan_gc(&[agent("alias"), scout()], &policy(1)).unwrap();
    assert_eq!(planned.decisions.len(), 1, "an alias is its agent, once");
}

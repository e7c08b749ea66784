//! `remote gc`, `check` and `verify`.

use std::fs;
use std::time::{Duration, SystemTime};

use model_store::{Digest, exit};
use store_sync::CollectOptions;

use crate::world::{World, agent, assert_refused, assert_sound, bytes, publish, pull, push, version};

const DAY: u64 = 24 * 3600;

fn path_of(bytes: &[u8]) -> String {
    let digest = Digest::of(bytes).to_string();
    format!("blobs/sha256/{}/{digest}", &digest[..2])
}

fn put(world: &World, bytes: &[u8], age_seconds: u64) {
    let path = world.bucket().join(path_of(bytes));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    age(&path, age_seconds);
}

fn age(path: &std::path::Path, seconds: u64) {
    let at = SystemTime::now() - Duration::from_secs(seconds);
    fs::File::options().append(true).open(path).unwrap().set_modified(at).unwrap();
}

/// Four versions that share a file, pushed in this order a day apart; the pointer is at `v2`.
fn world() -> World {
    let world = World::new();
    let here = world.host("here");
    let remote = world.remote();
    for (number, name) in ["v1", "v2", "v3", "v4"].into_iter().enumerate() {
        publish(&here, &format!("scout/{name}"), &[("shared", b"same"), ("own", name.as_bytes())]);
        push(&remote, &here, &format!("scout/{name}")).unwrap();
        let path = world.bucket().join(format!("agents/scout/versions/{name}.json"));
        age(&path, (10 - number as u64) * DAY);
    }
    push(&remote, &here, "scout/v2").unwrap();
    for path in world.blobs().keys() {
        age(&world.bucket().join(path), 30 * DAY);
    }
    world
}

#[test]
fn what_nothing_names_goes_when_it_is_old() {
    let world = world();
    put(&world, b"old and unnamed", 2 * DAY);
    put(&world, b"young and unnamed", 3600);
    let remote = world.remote();
    let dry = CollectOptions { dry_run: true, ..CollectOptions::default() };
    let before = world.objects();
    let planned = remote.collect(&dry).unwrap();
    assert_eq!(world.objects(), before, "a dry run changes nothing");
    let collected = remote.collect(&CollectOptions::default()).unwrap();
    assert_eq!(collected, planned);
    assert_eq!((collected.removed_blobs, collected.freed_bytes, collected.young_blobs), (1, 15, 1));
    assert_eq!((collected.kept_blobs, collected.kept_versions, collected.retired.len()), (5, 4, 0));
    let mut expected = before;
    expected.remove(&path_of(b"old and unnamed"));
    assert_eq!(world.objects(), expected);
}

#[test]
fn versions_go_only_when_asked_and_never_the_current_one() {
    let rows: [(usize, &[&str]); 4] = [(4, &[]), (2, &["v1"]), (1, &["v1", "v3"]), (0, &["v1", "v3", "v4"])];
    for (keep, gone) in rows {
        let world = world();
        let options = CollectOptions { keep: Some(keep), ..CollectOptions::default() };
        let collected = world.remote().collect(&options).unwrap();
        let retired: Vec<_> = collected.retired.iter().map(|one| one.version.to_string()).collect();
        assert_eq!(retired, gone, "keep {keep}");
        assert_eq!(collected.removed_blobs, gone.len(), "keep {keep}: each version's own blob");
        let examined = world.remote().verify(&[]).unwrap();
        assert_eq!((examined.findings.len(), examined.versions), (0, 4 - gone.len()), "keep {keep}");
        let there = world.host("there");
        pull(&world.remote(), &there, "scout").unwrap();
        assert_sound("current", &there, "scout/v2");
    }
}

#[test]
fn nobody_collects_while_somebody_pushes() {
    let world = world();
    let here = world.host("here");
    publish(&here, "scout/v9", &[("own", b"v9")]);
    let mark = |kind: &str, expires: &str| {
        let json =
            serde_json::json!({ "format": 1, "holder": "x", "who": "ada@elsewhere", "expires": expires });
        fs::create_dir_all(world.bucket().join("leases")).unwrap();
        fs::write(world.bucket().join(format!("leases/{kind}-1.json")), json.to_string()).unwrap();
    };
    let collect = || world.remote().collect(&CollectOptions::default());
    mark("push", "2999-01-01T00:00:00Z");
    assert_refused("a push", collect(), exit::BUSY, "ada@elsewhere is pushing");
    mark("push", "2020-01-01T00:00:00Z");
    collect().unwrap();
    mark("gc", "2999-01-01T00:00:00Z");
    assert_refused("a collection", collect(), exit::BUSY, "ada@elsewhere is collecting");
    assert_refused("a collection", push(&world.remote(), &here, "scout/v9"), exit::BUSY, "is collecting");
    assert!(!world.objects().contains_key("agents/scout/versions/v9.json"));
    mark("gc", "2020-01-01T00:00:00Z");
    push(&world.remote(), &here, "scout/v9").unwrap();
    let left: Vec<_> = fs::read_dir(world.bucket().join("leases")).unwrap().collect();
    assert!(left.is_empty(), "nobody leaves a mark behind: {left:?}");
}

#[test]
fn nothing_goes_while_a_manifest_cannot_be_read() {
    let world = world();
    put(&world, b"old and unnamed", 2 * DAY);
    world.tamper("agents/scout/versions/v3.json", |_| b"{".to_vec());
    let before = world.objects();
    let options = CollectOptions { keep: Some(3), ..CollectOptions::default() };
    assert_refused("damaged", world.remote().collect(&options), exit::CORRUPT, "no manifest");
    assert_eq!(world.objects(), before);
}

#[test]
fn what_is_wrong_is_found() {
    type Harm = fn(&World);
    let own = |world: &World, name: &str| world.bucket().join(path_of(name.as_bytes()));
    let rows: [(&str, Harm, bool, &str); 8] = [
        ("nothing", |_| {}, true, ""),
        (
            "no blob",
            |w| fs::remove_file(w.bucket().join(path_of(b"v3"))).unwrap(),
            true,
            "is missing, scout/v3 names it",
        ),
        (
            "a long blob",
            |w| w.tamper(&path_of(b"v3"), |_| b"v3 ".to_vec()),
            true,
            "has 3 bytes, scout/v3 says 2",
        ),
        ("another blob", |w| w.tamper(&path_of(b"v3"), |_| b"v4".to_vec()), false, "has digest"),
        ("a blob that is too short", |w| w.tamper(&path_of(b"v3"), |_| Vec::new()), true, "has 0 bytes"),
        (
            "no current version",
            |w| fs::remove_file(w.bucket().join("agents/scout/versions/v2.json")).unwrap(),
            true,
            "leads to v2, which is not there",
        ),
        (
            "a damaged pointer",
            |w| w.tamper("agents/scout/current.json", |_| b"{}".to_vec()),
            true,
            "is damaged",
        ),
        (
            "a damaged manifest",
            |w| w.tamper("agents/scout/versions/v4.json", |_| b"[]".to_vec()),
            true,
            "no manifest",
        ),
    ];
    for (row, harm, by_check, says) in rows {
        let world = world();
        assert!(own(&world, "v3").exists());
        harm(&world);
        let checked = world.remote().check(&[]).unwrap();
        let verified = world.remote().verify(&[agent("scout")]).unwrap();
        let count = usize::from(!says.is_empty());
        assert_eq!(checked.findings.len(), if by_check { count } else { 0 }, "{row}: {checked:?}");
        assert_eq!(verified.findings.len(), count, "{row}: {verified:?}");
        if by_check && count == 1 {
            assert!(checked.findings[0].what.contains(says), "{row}: {checked:?}");
        }
    }
    assert_eq!(world().remote().verify(&[]).unwrap().read_bytes, 4 + 4 * 2);
}

#[test]
fn an_inventory_names_what_is_there() {
    let world = world();
    let inventory = world.remote().inventory(&[]).unwrap();
    assert_eq!(inventory.len(), 1);
    let names: Vec<_> =
        inventory[0].versions.iter().map(|one| (one.version.to_string(), one.bytes)).collect();
    assert_eq!(names, [("v1".into(), 6), ("v2".into(), 6), ("v3".into(), 6), ("v4".into(), 6)]);
    assert_eq!(inventory[0].pointer.as_ref().map(|pointer| pointer.version.clone()), Some(version("v2")));
    assert_eq!(bytes(1, 3).len(), 3);
}

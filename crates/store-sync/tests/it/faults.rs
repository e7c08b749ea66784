//! A network and a server that fail: resumed where that helps, refused where it does not, and the old version
//! serves all the while.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model_store::exit;

use crate::child::{Outcome, Task, Work};
use crate::proxy::{Fault, Proxy};
use crate::server::{REMOTE, Server, variables};
use crate::world::{World, agent, assert_sound, current, publish_lively, version};

struct Scene {
    world: World,
    proxy: Proxy,
    _server: Server,
    variables: BTreeMap<String, String>,
}

impl Scene {
    /// A host that has `scout/v1`, and a server that has `scout/v2` as well.
    fn new() -> Option<Self> {
        let server = Server::start()?;
        let proxy = Proxy::before(server.at);
        let variables = variables(proxy.at);
        let scene = Self { world: World::bare(), proxy, _server: server, variables };
        scene.run("here", Work::Init).answer("init");
        let here = scene.world.host("here");
        publish_lively(&here, "scout/v1", 1);
        scene.run("here", Work::Push("scout/v1".to_owned())).answer("push");
        scene.run("there", Work::Pull("scout".to_owned())).answer("pull");
        publish_lively(&here, "scout/v2", 2);
        scene.run("here", Work::Push("scout/v2".to_owned())).answer("push");
        Some(scene)
    }

    fn task(&self, root: &str, work: Work) -> Task {
        Task { retry_ms: 1_500, stall_ms: 1_000, ..Task::new(REMOTE, self.world.path().join(root), work) }
    }

    fn run(&self, root: &str, work: Work) -> Outcome {
        let task = Task { retry_ms: 10_000, ..self.task(root, work) };
        task.run(&self.variables)
    }

    fn assert_at(&self, row: &str, expected: &str) {
        let there = self.world.host("there");
        assert_eq!(current(&there, "scout").as_deref(), Some(expected), "{row}");
        if expected == "v1" {
            assert!(there.get_version(&agent("scout"), &version("v2")).unwrap().is_none(), "{row}");
            assert!(there.verify(&agent("scout"), &version("v1")).unwrap().is_ok(), "{row}");
        } else {
            assert_sound(row, &there, "scout/v2");
        }
    }
}

#[test]
fn what_passes_is_got_over() {
    // The fault, how often, and whether every request meets it or only those for blobs.
    let rows = [
        ("cut connections", Fault::Cut(30_000), 6, false),
        ("cut at once", Fault::Cut(0), 3, false),
        ("a storm of 503", Fault::Unavailable, 8, false),
        ("silence", Fault::Silence, 2, false),
        ("no answer for blobs", Fault::Mute, 2, false),
        ("no answer at all", Fault::Mute, 2, true),
        ("a bit that flips", Fault::Flip(1_000), 1, false),
        ("short answers", Fault::Short(10), 3, false),
    ];
    for (row, fault, times, is_everything) in rows {
        let Some(scene) = Scene::new() else { return };
        if is_everything {
            scene.proxy.harm_all(fault, times);
        } else {
            scene.proxy.harm_blobs(fault, times);
        }
        let pulled = scene.run("there", Work::Pull("scout".to_owned()));
        scene.proxy.heal();
        pulled.answer(row);
        scene.assert_at(row, "v2");
    }
}

#[test]
fn what_does_not_pass_ends_clearly_and_goes_on_later() {
    let rows = [
        ("cut connections", Fault::Cut(0), false, exit::REMOTE, "could not fetch"),
        ("a storm of 503", Fault::Unavailable, true, exit::REMOTE, "503"),
        ("silence", Fault::Silence, false, exit::REMOTE, "bytes came in"),
        ("no answer at all", Fault::Mute, true, exit::REMOTE, "could not read"),
        ("a trickle", Fault::Trickle(50), false, exit::REMOTE, "bytes came in"),
        ("a bit that flips", Fault::Flip(1_000), false, exit::CORRUPT, "has digest"),
        ("a blob that is gone", Fault::Gone, false, exit::NOT_FOUND, "which its manifest names"),
    ];
    for (row, fault, is_everything, code, says) in rows {
        let Some(scene) = Scene::new() else { return };
        if is_everything {
            scene.proxy.harm_all(fault, -1);
        } else {
            scene.proxy.harm_blobs(fault, -1);
        }
        let begun = Instant::now();
        let failed = scene.task("there", Work::Pull("scout".to_owned())).run(&scene.variables);
        assert_eq!(failed.code(), Some(code), "{row}: {failed:?}");
        assert!(failed.stderr.contains(says), "{row}: {failed:?}");
        assert!(begun.elapsed() < Duration::from_mins(1), "{row}: it gives up");
        scene.assert_at(row, "v1");
        scene.proxy.heal();
        scene.run("there", Work::Pull("scout".to_owned())).answer(row);
        scene.assert_at(row, "v2");
    }
}

#[test]
fn a_push_is_got_over_a_bad_network_too() {
    let Some(scene) = Scene::new() else { return };
    let here = scene.world.host("here");
    publish_lively(&here, "scout/v3", 3);
    scene.proxy.harm_all(Fault::Unavailable, 12);
    scene.run("here", Work::Push("scout/v3".to_owned())).answer("push");
    scene.proxy.heal();
    scene.run("there", Work::Pull("scout".to_owned())).answer("pull");
    assert_sound("pulled", &scene.world.host("there"), "scout/v3");
    assert_eq!(scene.run("there", Work::Verify).answer("verify")["findings"], serde_json::json!([]));
    assert!(scene.proxy.requests() > 12);
}

/// A server that says yes to every condition and keeps none, as Garage 2.5 does.
#[test]
fn a_server_that_ignores_conditions_is_seen_through() {
    let Some(server) = Server::start_open() else { return };
    let proxy = Proxy::before(server.at);
    let world = World::bare();
    // A condition that is taken away on the way must not be missed by a signature.
    let mut variables = variables(proxy.at);
    variables.insert("AWS_SKIP_SIGNATURE".to_owned(), "true".to_owned());
    let task = |work| Task::new(REMOTE, world.path().join("here"), work);
    proxy.harm_all(Fault::Unconditional, -1);
    let init = task(Work::Init).run(&variables).answer("init");
    assert_eq!(init["conditional_puts"], serde_json::json!({ "create": false, "update": false }));
    let here = world.host("here");
    publish_lively(&here, "scout/v1", 1);
    let pushed = task(Work::Push("scout/v1".to_owned())).run(&variables).answer("push");
    assert_eq!(pushed["pointer"]["serial"], 1);
    // Two at one moment: each is told what became of it, and no serial is given twice.
    let others = ["one", "two"].map(|name| (name, world.host(name)));
    for (name, store) in &others {
        publish_lively(store, &format!("memory/{name}"), 5);
    }
    let running = others.each_ref().map(|(name, _)| {
        let root = world.path().join(name);
        Task::new(REMOTE, root, Work::Push(format!("memory/{name}"))).start(&variables)
    });
    let mut serials = Vec::new();
    for child in running {
        let outcome = child.end();
        match outcome.code() {
            Some(exit::OK) => serials.push(outcome.answer("push")["pointer"]["serial"].clone()),
            // The other one has the lease, or has moved the pointer already.
            code => assert!(matches!(code, Some(exit::BUSY | exit::REFUSED)), "{outcome:?}"),
        }
    }
    assert_eq!(serials, [serde_json::json!(1)], "one of them got through");
}

//! A fleet of processes that follow one agent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::child::{Task, Work};
use crate::world::{World, agent, assert_sound, bytes, current, publish, push};

const HOSTS: usize = 10;
const PUBLISHES: usize = 5;

#[test]
fn ten_hosts_converge_on_every_publish() {
    let world = World::new();
    let here = world.host("here");
    let remote = world.remote();
    let address = world.address().to_string();
    let names: Vec<_> = (0..HOSTS).map(|i| format!("host-{i}")).collect();
    let mut followers: Vec<_> = names
        .iter()
        .map(|name| {
            let root = world.host(name).root().to_owned();
            Task::new(&address, root, Work::Follow("scout".to_owned())).start(&BTreeMap::new())
        })
        .collect();
    for follower in &mut followers {
        follower.await_word("following");
    }
    let mut slowest = Duration::ZERO;
    for number in 0..PUBLISHES {
        let name = format!("v{number}");
        let own = bytes(100 + number as u64, 50_000);
        publish(&here, &format!("scout/{name}"), &[("shared", &bytes(1, 50_000)), ("own", &own)]);
        push(&remote, &here, &format!("scout/{name}")).unwrap();
        let pushed = Instant::now();
        for host in &names {
            while current(&world.host(host), "scout").as_deref() != Some(&name) {
                assert!(pushed.elapsed() < Duration::from_mins(1), "{host} does not come to {name}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        slowest = slowest.max(pushed.elapsed());
    }
    eprintln!("{HOSTS} hosts converged on {PUBLISHES} publishes, the slowest within {slowest:?}");
    for follower in followers {
        let followed = follower.end().answer("follower");
        assert_eq!(followed.as_array().unwrap().len(), PUBLISHES, "nothing is followed twice: {followed}");
    }
    for host in &names {
        let store = world.host(host);
        for number in 0..PUBLISHES {
            assert_sound(host, &store, &format!("scout/v{number}"));
        }
        let seen = remote.seen(&store, &agent("scout")).unwrap();
        assert_eq!((seen.serial, seen.applied_serial, seen.failures), (5, 5, 0), "{host}: {seen:?}");
        assert_eq!(seen.received_bytes, (PUBLISHES as u64 + 1) * 50_000, "{host}: only what was new came");
    }
}

//! Ten hosts over a cluster of three Garage nodes, of which one dies and comes back and another is cut off:
//! `make cluster-test`, which sets `GARAGE` and gives the test a network of its own to cut. Garage 2.5 keeps no condition
//! of a put.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::child::{Task, Work};
use crate::server::REMOTE;
use crate::world::{World, agent, assert_sound, bytes, current, publish};

/// Garage wants its own kind of key.
const KEY: &str = "GK31c2f218a2e44f485b94239e";
const SECRET: &str = "b892c0665f0ada8a4755dae98baa3b133590e11dae3bcc1f9d769d67f16c3835";
const RPC_SECRET: &str = "1799bccfd7411eddcf9ebd316bc1f5287ad12a68094e1c6ac6abde7e6feae1ec";

/// Where nodes talk to each other.
const RPC_PORT: &str = "3961";

struct Node {
    program: PathBuf,
    config: PathBuf,
    s3: String,
    process: Option<Child>,
}

impl Node {
    fn new(program: &Path, dir: &Path, number: u8) -> Self {
        let home = dir.join(format!("node-{number}"));
        fs::create_dir_all(&home).unwrap();
        let (ip, config) = (format!("127.0.0.{number}"), home.join("garage.toml"));
        let s3 = format!("{ip}:3960");
        let text = format!(
            "metadata_dir = \"{home}/meta\"\ndata_dir = \"{home}/data\"\ndb_engine = \"sqlite\"\nreplication_factor = 3\n\
             rpc_bind_addr = \"{ip}:{RPC_PORT}\"\nrpc_public_addr = \"{ip}:{RPC_PORT}\"\nrpc_bind_outgoing = true\nrpc_secret = \"{RPC_SECRET}\"\n\
             [s3_api]\ns3_region = \"garage\"\napi_bind_addr = \"{s3}\"\nroot_domain = \".s3.garage\"\n\
             [admin]\napi_bind_addr = \"{ip}:3963\"\n",
            home = home.display(),
        );
        fs::write(&config, text).unwrap();
        let mut node = Self { program: program.to_owned(), config, s3, process: None };
        node.start();
        node
    }

    fn start(&mut self) {
        let mut command = self.command(&["server"]);
        self.process = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let begun = Instant::now();
        while !self.output(&["node", "id", "-q"]).status.success()
            || std::net::TcpStream::connect(&self.s3).is_err()
        {
            assert!(begun.elapsed() < Duration::from_mins(1), "{} does not come up", self.s3);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&self.config).args(arguments).env("RUST_LOG", "garage=warn");
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn variables(&self) -> BTreeMap<String, String> {
        let rows = [
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", "garage".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{}", self.s3)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ];
        rows.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

fn cluster(program: &Path, dir: &Path) -> Vec<Node> {
    let nodes: Vec<_> = (1..=3).map(|number| Node::new(program, dir, number)).collect();
    let ids: Vec<_> = nodes.iter().map(|node| node.run(&["node", "id", "-q"])).collect();
    for id in &ids[1..] {
        nodes[0].run(&["node", "connect", id]);
    }
    for id in &ids {
        let id = id.split('@').next().unwrap();
        nodes[0].run(&["layout", "assign", "-z", "here", "-c", "1G", id]);
    }
    nodes[0].run(&["layout", "apply", "--version", "1"]);
    nodes[0].run(&["key", "import", "--yes", KEY, SECRET]);
    nodes[0].run(&["bucket", "create", "models"]);
    nodes[0].run(&["bucket", "allow", "--read", "--write", "--owner", "models", "--key", KEY]);
    nodes
}

/// Rules for the links that are cut, before the one that finds local addresses.
const CUT: &str = "10";

/// Makes room for such rules: the kernel's own first one finds everything local.
fn links_can_be_cut() {
    ip("rule add pref 100 lookup local");
    ip("rule del pref 0");
}

/// Cuts every link between a node and the others, both ways, without a word to either side; its clients still reach it.
fn cut_off(number: u8) {
    for other in (1..=3).filter(|other| *other != number) {
        for (from, to) in [(number, other), (other, number)] {
            for port in ["sport", "dport"] {
                let pair = format!("from 127.0.0.{from} to 127.0.0.{to}");
                ip(&format!("rule add pref {CUT} {pair} ipproto tcp {port} {RPC_PORT} blackhole"));
            }
        }
    }
}

fn join_again() {
    ip(&format!("rule flush pref {CUT}"));
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}; `make cluster-test` may do this");
}

fn number_of(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn a_fleet_converges_while_nodes_come_and_go() {
    let Some(program) = std::env::var_os("GARAGE").map(PathBuf::from) else {
        return eprintln!("skipped: there is no cluster; `make cluster-test` makes one");
    };
    let (publishes, hosts) = (number_of("CLUSTER_PUBLISHES", 50), number_of("CLUSTER_HOSTS", 10));
    let world = World::bare();
    links_can_be_cut();
    let mut nodes = cluster(&program, world.path());
    let task = |root: &str, work| Task {
        retry_ms: 60_000,
        stall_ms: 3_000,
        ..Task::new(REMOTE, world.path().join(root), work)
    };
    // The publisher talks to the node that stays.
    let publisher = nodes[0].variables();
    let init = task("here", Work::Init).run(&publisher).answer("init");
    assert_eq!(init["conditional_puts"], json!({ "create": false, "update": false }), "Garage has learnt");
    let names: Vec<_> = (0..hosts).map(|i| format!("host-{i}")).collect();
    let mut followers: Vec<_> = (0..hosts)
        .map(|i| {
            world.host(&names[i]);
            task(&names[i], Work::Follow("scout".to_owned())).start(&nodes[i % 3].variables())
        })
        .collect();
    for follower in &mut followers {
        follower.await_word("following");
    }
    let here = world.host("here");
    let phase = |part: usize| publishes * part / 5;
    let mut out: Option<usize> = None;
    for number in 0..publishes {
        match number {
            n if n == phase(1) => {
                nodes[2].stop();
                out = Some(2);
            }
            n if n == phase(2) => {
                nodes[2].start();
                out = None;
            }
            n if n == phase(3) => {
                cut_off(2);
                out = Some(1);
            }
            n if n == phase(4) => {
                join_again();
                out = None;
            }
            _ => {}
        }
        let name = format!("v{number}");
        let own = bytes(1_000 + number as u64, 300_000);
        publish(&here, &format!("scout/{name}"), &[("shared", &bytes(1, 300_000)), ("own", &own)]);
        let begun = Instant::now();
        task("here", Work::Push(format!("scout/{name}"))).run(&publisher).answer(&name);
        let pushed = begun.elapsed();
        for (i, host) in names.iter().enumerate().filter(|(i, _)| out != Some(i % 3)) {
            while current(&world.host(host), "scout").as_deref() != Some(&name) {
                assert!(begun.elapsed() < Duration::from_mins(3), "{host} ({i}) does not come to {name}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        let without = out.map_or_else(String::new, |node| format!(" without node {}", node + 1));
        println!("{name}: pushed in {pushed:.2?}, everywhere in {:.2?}{without}", begun.elapsed());
    }
    for follower in followers {
        follower.end().answer("follower");
    }
    // Whoever was cut off for a while may have passed over a version, and has come to the last one.
    let last = format!("v{}", publishes - 1);
    for (i, host) in names.iter().enumerate() {
        let store = world.host(host);
        assert_eq!(current(&store, "scout").as_deref(), Some(last.as_str()), "{host}");
        for version in store.versions(&agent("scout")).unwrap() {
            assert_sound(host, &store, &format!("scout/{version}"));
        }
        let examined = task(host, Work::Verify).run(&nodes[i % 3].variables()).answer(host);
        assert_eq!(examined["findings"], json!([]), "{host}");
    }
}

//! This test binary run again as a Hub. What goes wrong in it is said on its standard input.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use hub_server::faults::{Fault, Seen, What};
use hub_server::{Config, Rules, Server};

const VARIABLE: &str = "HUB_FETCH_TEST_SERVER";
/// What the harness prints between our lines does not begin with it.
const MARK: &str = "@hub ";

/// A Hub in another process; it ends with this value.
#[derive(Debug)]
pub(crate) struct Hub {
    child: Child,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    pub(crate) url: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
enum Order {
    Set(Vec<Fault>),
    Seen,
}

impl Hub {
    /// Serves `folder` under the rules in a file, large files from another address.
    pub(crate) fn start(folder: &std::path::Path, rules: &std::path::Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "server::child", "--nocapture", "--test-threads=1"])
            .env(VARIABLE, format!("{}\n{}", folder.display(), rules.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pipes = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut hub = Self { child, pipes: Mutex::new(pipes), url: String::new() };
        hub.url = hub.line();
        hub
    }

    /// From now on this goes wrong.
    pub(crate) fn set(&self, faults: &[(&str, u64, What)]) {
        let fault = |(on, times, what): &(&str, u64, What)| Fault {
            on: (*on).into(),
            times: *times,
            what: what.clone(),
        };
        self.order(&Order::Set(faults.iter().map(fault).collect()));
    }

    /// What was asked since the last [`set`](Self::set).
    pub(crate) fn seen(&self) -> Vec<Seen> {
        serde_json::from_str(&self.order(&Order::Seen)).unwrap()
    }

    fn order(&self, order: &Order) -> String {
        writeln!(self.pipes.lock().unwrap().0, "{}", serde_json::to_string(order).unwrap()).unwrap();
        self.line()
    }

    fn line(&self) -> String {
        let mut line = String::new();
        let mut pipes = self.pipes.lock().unwrap();
        loop {
            line.clear();
            assert_ne!(pipes.1.read_line(&mut line).unwrap(), 0, "the server ended");
            if let Some((_, said)) = line.trim_end().split_once(MARK) {
                return said.to_owned();
            }
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server itself; a test that does nothing unless it is told to be one.
#[test]
fn child() {
    let Ok(paths) = std::env::var(VARIABLE) else { return };
    let (folder, rules) = paths.split_once('\n').unwrap();
    let server = Server::start(Config {
        folders: vec![folder.into()],
        rules: Rules::read(rules.as_ref()).unwrap(),
        cdn: Some(([127, 0, 0, 1], 0).into()),
        ..Config::default()
    })
    .unwrap();
    println!("{MARK}{}", server.url());
    for line in std::io::stdin().lines() {
        match serde_json::from_str(&line.unwrap()).unwrap() {
            Order::Set(faults) => {
                server.faults().set(faults);
                println!("{MARK}done");
            }
            Order::Seen => println!("{MARK}{}", serde_json::to_string(&server.faults().seen()).unwrap()),
        }
    }
}

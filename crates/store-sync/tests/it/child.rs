//! This test binary run again as a host of its own: with its own credentials and endpoint, and to be killed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use model_store::{ModelStore, exit};
use serde_json::{Value, json};
use store_sync::{Address, Options, PullOptions, PushOptions, Remote, Step, SyncError};

use crate::world::{agent, options, version};

const TASK_VARIABLE: &str = "STORE_SYNC_TEST_CHILD";

/// What a child is to do.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Task {
    pub(crate) remote: String,
    pub(crate) root: PathBuf,
    pub(crate) work: Work,
    /// How long a failing remote is asked again, in milliseconds.
    pub(crate) retry_ms: u64,
    /// How long nothing may come, in milliseconds.
    pub(crate) stall_ms: u64,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) enum Work {
    Init,
    /// `agent/version`.
    Push(String),
    Pull(String),
    Verify,
    /// Follow an agent until stdin ends, and say each version that was followed.
    Follow(String),
}

impl Task {
    pub(crate) fn new(remote: &str, root: PathBuf, work: Work) -> Self {
        Self { remote: remote.to_owned(), root, work, retry_ms: 5_000, stall_ms: 2_000 }
    }

    /// The command that carries it out, behind `wrapper` (such as strace with its arguments).
    pub(crate) fn command(&self, wrapper: &[String], variables: &BTreeMap<String, String>) -> Command {
        let this = std::env::current_exe().unwrap();
        let mut command = match wrapper {
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(this);
                command
            }
            [] => Command::new(this),
        };
        command.args(["--exact", "child::child", "--nocapture", "--test-threads=1"]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.env(TASK_VARIABLE, serde_json::to_string(self).unwrap()).envs(variables);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&self, variables: &BTreeMap<String, String>) -> Running {
        Running(self.command(&[], variables).spawn().unwrap())
    }

    pub(crate) fn run(&self, variables: &BTreeMap<String, String>) -> Outcome {
        self.start(variables).end()
    }
}

/// A child at work; killed when it is dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Reads until the child says a word.
    pub(crate) fn await_word(&mut self, word: &str) {
        let mut stdout = BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap());
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the child ended before it said {word:?}");
        }
    }

    pub(crate) fn end(mut self) -> Outcome {
        drop(self.0.stdin.take());
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        Outcome { status: self.0.wait().unwrap(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    pub(crate) fn code(&self) -> Option<u8> {
        self.status.code().and_then(|code| u8::try_from(code).ok())
    }

    /// What it answered; it must have succeeded.
    pub(crate) fn answer(&self, row: &str) -> Value {
        assert_eq!(self.code(), Some(exit::OK), "{row}: {self:?}");
        // The harness begins a line of its own before it.
        let answer = self.stdout.lines().find_map(|line| line.split_once("answer ")).unwrap();
        serde_json::from_str(answer.1).unwrap()
    }
}

/// Not a test of anything: what a [`Task`] runs. Without one it ends at once.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK_VARIABLE) else {
        return;
    };
    let task: Task = serde_json::from_str(&task).unwrap();
    let code = match perform(&task) {
        Ok(answer) => {
            println!("answer {answer}");
            exit::OK
        }
        Err(e) => {
            eprintln!("error: {}", model_store::with_causes(&e));
            e.exit_code()
        }
    };
    std::process::exit(code.into());
}

fn perform(task: &Task) -> Result<Value, SyncError> {
    let options = Options {
        retry: Duration::from_millis(task.retry_ms),
        stall: Duration::from_millis(task.stall_ms),
        // As little as S3 takes.
        part_bytes: if task.remote.starts_with("s3:") { 5 * 1024 * 1024 } else { options().part_bytes },
        ..options()
    };
    let address = Address::parse(&task.remote)?;
    if let Work::Init = task.work {
        return Remote::init(address, options, "child").map(|(_, done)| json!(done));
    }
    let remote = Remote::open(address, options)?;
    let store = ModelStore::create(&task.root)?;
    let pull = PullOptions::default();
    match &task.work {
        Work::Init => unreachable!("it was done above"),
        Work::Push(name) => {
            let (of, name) = name.split_once('/').unwrap();
            let push = PushOptions { who: "child".to_owned(), ..PushOptions::default() };
            remote.push(&store, &agent(of), &version(name), &push).map(|done| json!(done))
        }
        Work::Pull(of) => remote.pull(&store, &agent(of), &pull).map(|done| json!(done)),
        Work::Verify => remote.verify(&[]).map(|done| json!(done)),
        Work::Follow(of) => {
            let (sender, ended) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let _ = std::io::stdin().read_to_end(&mut Vec::new());
                let _ = sender.send(());
            });
            let mut followed = Vec::new();
            println!("following");
            while ended.try_recv().is_err() {
                if let Ok(Step::Followed(pulled)) = remote.sync_agent(&store, &agent(of), &pull) {
                    println!("followed {}", pulled.version);
                    followed.push(pulled.version);
                }
                std::thread::sleep(store_sync::pause_between(Duration::from_millis(200), 0));
            }
            Ok(json!(followed))
        }
    }
}

//! This test binary run again as a process of its own: a writer that can be killed, refused or left holding a
//! lock.

use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use model_store::{
    Activation, Doctoring, FinalizeOptions, Fix, ModelStore, MoveOptions, NewSignature, Policy, Progress,
    Published, RepairOptions, StoreError, exit,
};

use crate::fixture::{full_message, payload, scout, signing_key, version};
use crate::torture::crowd::{self, Role};

const TASK_VARIABLE: &str = "MODEL_STORE_TEST_CHILD";
/// How many writes and opens a child makes before the first that matters. Faults are injected by the count of
/// a thread's calls, and no other thread of the test harness makes as many, so the fault hits the thread that
/// works.
const WARM_UP_CALLS: usize = 40;
/// What a child tries to open where the calls of its operation begin, and where they end or pause: a note for
/// whoever reads the record of its calls.
pub(crate) const BEGIN_MARK: &str = "/dev/null/begin";
pub(crate) const END_MARK: &str = "/dev/null/end";

/// What a child is to do, and to which store.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Task {
    pub(crate) root: std::path::PathBuf,
    pub(crate) version: String,
    pub(crate) work: Work,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Work {
    /// Publish a version that uses every part of the protocol, on one thread.
    Publish,
    /// Publish many small files.
    PublishMany,
    /// Publish and leave `current` where it is.
    PublishOnly,
    /// Publish and sign in one step.
    PublishSigned,
    /// Sign a published version.
    Sign,
    Activate,
    /// Roll back to what was current before.
    Rollback,
    /// Point the ref `champion` at the version.
    Tag,
    /// Take the ref `champion` away.
    Untag,
    /// Repair a version whose bytes are elsewhere in the store.
    Repair,
    /// Repair a version that can only be quarantined.
    Condemn,
    /// Let the doctor put right what he can.
    Doctor,
    /// Retire what a policy that keeps one version does not keep.
    Collect,
    /// As `Publish`, beginning when a line comes on stdin.
    PublishOnSignal,
    /// Say `holding` in the middle of a publish, while the agent's lock is held, and go on when stdin ends.
    HoldLock,
    /// Say `holding` with a staging open, and go on when stdin ends.
    HoldStaging,
    /// Play a role in a crowd until stdin ends.
    Crowd(Role),
}

impl Task {
    /// The command that carries it out, behind `wrapper` (such as strace with its arguments).
    pub(crate) fn command(&self, wrapper: &[String]) -> Command {
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
        command.env(TASK_VARIABLE, serde_json::to_string(self).unwrap());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&self) -> Running {
        Running(self.command(&[]).spawn().unwrap())
    }

    pub(crate) fn run(&self, wrapper: &[String]) -> Outcome {
        Running(self.command(wrapper).spawn().unwrap()).end()
    }
}

/// A child at work; killed when it is dropped.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn go(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    }

    /// Reads until the child says a word.
    pub(crate) fn await_word(&mut self, word: &str) {
        let mut stdout = BufReader::new(self.0.stdout.as_mut().unwrap());
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the child ended before it said {word:?}");
        }
    }

    /// Ends its stdin.
    pub(crate) fn release(&mut self) {
        drop(self.0.stdin.take());
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Lets the child come to its end.
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
        let _ = self.0.kill();
        let _ = self.0.wait();
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
}

/// Not a test of anything: what a [`Task`] runs. Without one it ends at once.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK_VARIABLE) else {
        return;
    };
    let task: Task = serde_json::from_str(&task).unwrap();
    // One thread: the calls of a publish come in the same order every time.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let worked = pool.install(|| {
        let store = ModelStore::open(&task.root)?;
        warm_up();
        mark(BEGIN_MARK);
        let worked = perform(&store, &task);
        mark(END_MARK);
        worked
    });
    let code = match worked {
        Ok(()) => exit::OK,
        Err(Failure { message, code }) => {
            eprintln!("error: {message}");
            code
        }
    };
    std::process::exit(code.into());
}

/// What a command would say, and end with.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { message: full_message(&error), code: error.exit_code() }
    }
}

/// Carries a task out in this very process.
pub(crate) fn perform(store: &ModelStore, task: &Task) -> Result<(), Failure> {
    let (agent, name, options) = (scout(), version(&task.version), MoveOptions::default());
    let champion = "champion".parse().unwrap();
    match task.work {
        Work::Sign => store.sign(&agent, &name, &signing_key(), &options).map(drop)?,
        Work::Activate => store.activate(&agent, &name, &options).map(drop)?,
        Work::Rollback => store.rollback(&agent, None, &options).map(drop)?,
        Work::Tag => store.tag(&agent, &champion, &name, &options).map(drop)?,
        Work::Untag => store.untag(&agent, &champion, &options).map(drop)?,
        Work::Collect => {
            let policy = Policy { keep: 1, grace: Duration::ZERO, ..Policy::default() };
            complete(&store.gc(&[agent], &policy, &options)?.problems)?;
        }
        Work::Repair | Work::Condemn => {
            let repaired = store.repair(&agent, &name, &RepairOptions::default())?;
            if !(task.work == Work::Condemn && repaired.quarantined || repaired.after.is_ok()) {
                complete(&repaired.problems)?;
            }
        }
        Work::Doctor => {
            let failed = store.doctor(Doctoring::Fix)?.complaints.into_iter().filter_map(|complaint| {
                let Fix::Failed { why } = complaint.fix else { return None };
                Some(format!("could not put right {}: {why}", complaint.subject.display()))
            });
            complete(&failed.collect::<Vec<_>>())?;
        }
        Work::Crowd(role) => crowd::play(store, role, &task.version)?,
        _ => publish_somehow(store, task).map(drop)?,
    }
    Ok(())
}

/// What could be done only in part is a failure of the command.
fn complete(problems: &[String]) -> Result<(), Failure> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(Failure { message: problems.join("; "), code: exit::FAILURE })
}

fn publish_somehow(store: &ModelStore, task: &Task) -> Result<Published, StoreError> {
    match task.work {
        Work::Publish => publish(store, task, FinalizeOptions::default()),
        Work::PublishOnly => {
            publish(store, task, FinalizeOptions { activation: Activation::Keep, ..Default::default() })
        }
        Work::PublishSigned => {
            let signature = NewSignature::Make(signing_key());
            publish(store, task, FinalizeOptions { signature, ..Default::default() })
        }
        Work::PublishMany => {
            let staging = store.stage_new(&scout(), &version(&task.version))?;
            for i in 0..150 {
                staging.write(&payload(&format!("{}/{i}", i % 7)), b"small")?;
            }
            staging.finalize(FinalizeOptions::default())
        }
        Work::PublishOnSignal => {
            await_stdin();
            publish(store, task, FinalizeOptions::default())
        }
        Work::HoldLock => {
            let once = std::sync::Once::new();
            let lock = task.root.join("scout/.lock");
            let hold = Progress::new(move |_| {
                if std::fs::metadata(&lock).is_ok_and(|lock| lock.len() > 0) {
                    once.call_once(hold);
                }
                ControlFlow::Continue(())
            });
            let store = store.clone().with_progress(hold);
            let staging = store.stage_new(&scout(), &version(&task.version))?;
            std::fs::write(staging.path().join("foreign"), b"hashed before the lock is taken").unwrap();
            staging.finalize(FinalizeOptions::default())
        }
        Work::HoldStaging => {
            let staging = store.stage_new(&scout(), &version(&task.version))?;
            staging.write(&payload("a"), b"a")?;
            hold();
            staging.finalize(FinalizeOptions::default())
        }
        _ => unreachable!("{:?} publishes nothing", task.work),
    }
}

fn hold() {
    let mut stdout = std::io::stdout();
    stdout.write_all(b"holding\n").unwrap();
    stdout.flush().unwrap();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

fn await_stdin() {
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn warm_up() {
    for _ in 0..WARM_UP_CALLS {
        std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap().write_all(b"x").unwrap();
    }
}

fn mark(mark: &str) {
    std::fs::File::open(mark).unwrap_err();
}

/// Payload of every kind: written, shared with the version before, put there by somebody else, a link.
fn publish(store: &ModelStore, task: &Task, options: FinalizeOptions) -> Result<Published, StoreError> {
    let staging = store.stage_new(&scout(), &version(&task.version))?;
    staging.write(&payload("config.json"), task.version.as_bytes())?;
    staging.write(&payload("weights/a/b/model.bin"), &vec![7; 300_000])?;
    let shared = payload("weights/model.bin");
    if let Some(before) =
        store.get_current(&scout())?.filter(|before| before.manifest().file(&shared).is_some())
    {
        staging.share(&before, &shared)?;
    }
    foreign_file(staging.path());
    staging.finalize(options)
}

/// A compiler child's file: its calls are not the store's.
fn foreign_file(staging: &Path) {
    mark(END_MARK);
    std::fs::write(staging.join("model.engine"), b"a plan").unwrap();
    std::os::unix::fs::symlink("config.json", staging.join("link")).unwrap();
    mark(BEGIN_MARK);
}

//! The parent's side: starts the child, listens, and turns whatever happens to it into one clear outcome.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{
    EngineFacts, EngineRequest, ExamineRequest, Examined, JudgeRequest, WORKER_ARGUMENT, WorkerMessage,
    WorkerRequest,
};
use crate::gate::Verdict;
use crate::interrupt::{Interrupt, Interrupted};
use crate::runtimes::RtxLibraries;

/// How glibc's heap is told what to do (`mallopt(3)`, "Memory Allocation Tunables" in glibc's manual). It reads it when a
/// process begins; others do not know it.
const TUNABLES: &str = "GLIBC_TUNABLES";
/// The heap of a builder, which asks for and frees millions of small pieces. Huge pages, and no page given back and asked for
/// again in between, save a fifth of its time; pieces from 128 KiB on, which weights are, come from the kernel one by one and
/// go back at once. What is left goes back between its phases (`memory.rs`).
const HEAP: &str = "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=268435456:glibc.malloc.top_pad=4194304:\
                    glibc.malloc.mmap_threshold=131072";

/// How often a wish to stop or a time-out is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often a child's memory is looked at: a serialised plan is there for longer, since it is written meanwhile.
const GLANCE: Duration = Duration::from_millis(10);
/// Lines of the child's standard error that an error repeats.
const LAST_WORDS: usize = 8;

/// What the system says of a file system that takes no more.
const NO_ROOM: [Errno; 2] = [Errno::NOSPC, Errno::DQUOT];

/// What TensorRT passes on when the host's memory runs out.
const BAD_ALLOC: &str = "std::bad_alloc";

/// How to run the child process.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The binary that hands over to `worker_main`; by default the running one.
    pub program: PathBuf,
    /// How long a build may take.
    pub timeout: Duration,
}

impl BuildOptions {
    /// The running binary and four hours.
    pub fn this_program() -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, timeout: Duration::from_hours(4) })
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A stop was asked for.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The child process could not be started or spoken to.
    #[error("cannot run the engine builder {}", program.display())]
    Spawn {
        /// The binary.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// TensorRT is known to refuse this.
    #[error("TensorRT-RTX 1.7 takes no {option} (it says: {words}); {next}")]
    Unsupported {
        /// The option.
        option: &'static str,
        /// What it says.
        words: &'static str,
        /// What to do.
        next: &'static str,
    },
    /// TensorRT refused.
    #[error("{} could not {stage}: {reason}{}{}", engine_runtime::Flavour::HERE.title(), lines(log), memory_hint(log))]
    Refused {
        /// What it was doing.
        stage: String,
        /// What it said.
        reason: String,
        /// The errors it logged on the way, with the names of nodes.
        log: Vec<String>,
    },
    /// There is no room for the plan.
    #[error("there is no room to {stage} {}: {reason}; free some space on its file system (`model-store gc` retires old versions)", path.display())]
    NoRoom {
        /// What was being done.
        stage: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The child process died.
    #[error("the engine builder {how} and left no answer{}{}", hint(*signal), lines(log))]
    Died {
        /// How it ended.
        how: String,
        /// The signal that ended it, if one did.
        signal: Option<i32>,
        /// The last errors that were logged.
        log: Vec<String>,
    },
    /// The build took too long.
    #[error("the engine was not built within {} s, so the builder was stopped; allow more with --build-timeout", .0.as_secs())]
    TimedOut(Duration),
    /// The host has less free memory than the build needs.
    #[error(
        "building this engine needs about {} MiB of memory and {} MiB are free; stop something, or build on a larger host",
        needed_bytes >> 20, free_bytes >> 20
    )]
    Memory {
        /// The estimate.
        needed_bytes: u64,
        /// What the kernel says is available.
        free_bytes: u64,
    },
}

fn lines(log: &[String]) -> String {
    log.iter().flat_map(|line| ["\n  ", line]).collect()
}

fn hint(signal: Option<i32>) -> &'static str {
    match signal {
        Some(9) => {
            "; SIGKILL is how the kernel ends a process when memory runs out (see `dmesg`): stop something, or build on a larger host"
        }
        Some(6 | 11) => "; this is a crash inside TensorRT: try another --precision or --profile",
        _ => "",
    }
}

impl EngineError {
    /// Whether the host had too little memory, rather than anything being wrong with what was asked for.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        match self {
            Self::Memory { .. } => true,
            Self::Refused { log, .. } => log.iter().any(|line| line.contains(BAD_ALLOC)),
            // Nobody else kills a builder so: an operator's `kill -9` is one that wants to see it end.
            Self::Died { signal, .. } => *signal == Some(9),
            _ => false,
        }
    }
}

/// What to do when memory ran out. Of the workspace, TensorRT names the size that it wanted and did not get.
fn memory_hint(log: &[String]) -> String {
    if log.iter().any(|line| line.contains(BAD_ALLOC)) {
        return "\n  next: memory ran out: stop something, raise the limit, or build on a larger host"
            .to_owned();
    }
    let wanted = log.iter().filter(|line| line.contains("OutOfMemory")).find_map(|line| {
        let (_, rest) = line.split_once("Requested size was ")?;
        rest.split(' ').next()?.parse::<u64>().ok()
    });
    wanted
        .map(|bytes| {
            let mib = bytes.div_ceil(1 << 20);
            format!("\n  next: a --workspace of at least {mib} MiB (it may ask for more after that), or a smaller --profile")
        })
        .unwrap_or_default()
}

/// The child, killed and reaped whatever happens.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child process that waits for what it is to do, and can open libraries meanwhile. Dropping it ends it.
pub(crate) struct Waiting {
    child: Guard,
    messages: Receiver<WorkerMessage>,
    reader: JoinHandle<()>,
    words: JoinHandle<VecDeque<String>>,
}

impl Waiting {
    /// Starts one. With libraries, it opens them while nobody asks it anything yet, which takes a tenth of a second.
    pub(crate) fn start(
        options: &BuildOptions,
        libraries: Option<&RtxLibraries>,
    ) -> Result<Self, EngineError> {
        let mut command = Command::new(&options.program);
        if std::env::var_os(TUNABLES).is_none() {
            command.env(TUNABLES, HEAP);
        }
        command.arg(WORKER_ARGUMENT);
        if let Some(RtxLibraries { core, parser }) = libraries {
            command.args([core, parser]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map(Guard)
            .map_err(|source| EngineError::Spawn { program: options.program.clone(), source })?;
        let (sender, messages) = mpsc::channel();
        let stdout = child.0.stdout.take();
        let reader = std::thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
                let Some(message) =
                    line.ok().and_then(|line| serde_json::from_str::<WorkerMessage>(&line).ok())
                else {
                    continue;
                };
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let words = last_words(child.0.stderr.take());
        Ok(Self { child, messages, reader, words })
    }

    /// What TensorRT says its version is, from one that opens libraries, which goes on waiting.
    pub(crate) fn opened(
        mut self,
        options: &BuildOptions,
        interrupt: &Interrupt,
    ) -> Result<(Self, String), EngineError> {
        let start = Instant::now();
        let mut log = Vec::new();
        loop {
            interrupt.check()?;
            if start.elapsed() > options.timeout {
                return Err(EngineError::TimedOut(options.timeout));
            }
            match self.messages.recv_timeout(GLANCE) {
                Ok(WorkerMessage::Opened { version }) => return Ok((self, version)),
                Ok(WorkerMessage::Failed { stage, reason, .. }) => {
                    return Err(EngineError::Refused { stage, reason, log });
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // It said nothing: its exit status and its last words do.
        let status = self
            .child
            .0
            .wait()
            .map_err(|source| EngineError::Spawn { program: options.program.clone(), source })?;
        interrupt.check()?;
        log.extend(self.words.join().unwrap_or_default());
        Err(died(status, log))
    }
}

/// Builds one engine in a child process.
///
/// `progress` gets the name of the phase, the step and the number of steps. Whatever ends the child (a crash, the
/// out-of-memory killer, a time-out, a stop) becomes an error; the child never outlives this call.
pub fn build(
    request: &EngineRequest,
    options: &BuildOptions,
    interrupt: &Interrupt,
    progress: impl FnMut(&str, i32, i32),
) -> Result<EngineFacts, EngineError> {
    build_in(Waiting::start(options, None)?, request, options, interrupt, progress)
}

/// [`build`] in a child process that was started before.
pub(crate) fn build_in(
    child: Waiting,
    request: &EngineRequest,
    options: &BuildOptions,
    interrupt: &Interrupt,
    progress: impl FnMut(&str, i32, i32),
) -> Result<EngineFacts, EngineError> {
    let heard = converse(child, &WorkerRequest::Build(request.clone()), options, interrupt, progress)?;
    let Answer::Built(facts) = heard.answer else { return Err(out_of_turn(options)) };
    let Heard { warnings, peak_private_bytes, .. } = heard;
    Ok(EngineFacts { warnings, peak_private_bytes, ..facts })
}

/// Has TensorRT look at a plan, in a child process as [`build`] does: a plan that is damaged where no digest says so may
/// crash whoever loads it.
pub fn examine(
    request: &ExamineRequest,
    options: &BuildOptions,
    interrupt: &Interrupt,
) -> Result<Examined, EngineError> {
    let child = Waiting::start(options, None)?;
    match converse(child, &WorkerRequest::Examine(request.clone()), options, interrupt, |_, _, _| ())?.answer
    {
        Answer::Examined(examined) => Ok(examined),
        _ => Err(out_of_turn(options)),
    }
}

/// Has an engine run on this host's GPU and judged beside its model in fp32, in a child process as [`build`] does: so the
/// engine itself goes through the gate, and a crash inside it is an error.
pub fn judge(
    request: &JudgeRequest,
    options: &BuildOptions,
    interrupt: &Interrupt,
) -> Result<Verdict, EngineError> {
    let child = Waiting::start(options, None)?;
    match converse(child, &WorkerRequest::Judge(request.clone()), options, interrupt, |_, _, _| ())?.answer {
        Answer::Judged(verdict) => Ok(*verdict),
        _ => Err(out_of_turn(options)),
    }
}

/// What the child gave.
enum Answer {
    Built(EngineFacts),
    Examined(Examined),
    Judged(Box<Verdict>),
}

/// A whole conversation.
struct Heard {
    answer: Answer,
    /// What TensorRT warned of.
    warnings: Vec<String>,
    /// The most memory that the child had that was no file's, as far as it was seen.
    peak_private_bytes: u64,
}

fn out_of_turn(options: &BuildOptions) -> EngineError {
    let source = std::io::Error::other("it answered what it was not asked");
    EngineError::Spawn { program: options.program.clone(), source }
}

/// Asks one thing of a child process.
fn converse(
    waiting: Waiting,
    request: &WorkerRequest,
    options: &BuildOptions,
    interrupt: &Interrupt,
    mut progress: impl FnMut(&str, i32, i32),
) -> Result<Heard, EngineError> {
    let spawn = |source| EngineError::Spawn { program: options.program.clone(), source };
    let Waiting { mut child, messages, reader, words } = waiting;
    let mut line = serde_json::to_vec(request).map_err(|error| spawn(error.into()))?;
    line.push(b'\n');
    if let Some(mut stdin) = child.0.stdin.take() {
        // A child that died before it read says why through its exit status.
        let _ = stdin.write_all(&line);
    }
    let start = Instant::now();
    let go_on = || {
        interrupt.check()?;
        if start.elapsed() > options.timeout { Err(EngineError::TimedOut(options.timeout)) } else { Ok(()) }
    };
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let (mut outcome, mut peak_private_bytes) = (None, 0);
    let process = child.0.id().to_string();
    loop {
        go_on()?;
        // The kernel keeps no mark of how high this was.
        peak_private_bytes = peak_private_bytes.max(memory_bytes(&process, "RssAnon:").unwrap_or_default());
        match messages.recv_timeout(GLANCE) {
            Ok(WorkerMessage::Progress { phase, step, steps }) => progress(&phase, step, steps),
            Ok(WorkerMessage::Log { error: true, text }) => errors.push(text),
            Ok(WorkerMessage::Log { error: false, text }) => warnings.push(text),
            Ok(WorkerMessage::Built(facts)) => outcome = Some(Ok(Answer::Built(facts))),
            Ok(WorkerMessage::Examined(examined)) => outcome = Some(Ok(Answer::Examined(examined))),
            Ok(WorkerMessage::Judged(verdict)) => outcome = Some(Ok(Answer::Judged(verdict))),
            Ok(WorkerMessage::Opened { .. }) | Err(RecvTimeoutError::Timeout) => {}
            Ok(WorkerMessage::Failed { stage, reason, os_error }) => {
                outcome = Some(Err((stage, reason, os_error)));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let _ = reader.join();
    // It has nothing more to say, and ends in a moment; native clean-up may still hang.
    let mut pause = Duration::from_millis(1);
    let status = loop {
        go_on()?;
        match child.0.try_wait().map_err(spawn)? {
            Some(status) => break status,
            None => std::thread::sleep(pause),
        }
        pause = TICK.min(2 * pause);
    };
    // A terminal's Ctrl-C reaches the child as well, and may end it before the wish to stop is seen here.
    interrupt.check()?;
    match outcome {
        Some(Ok(answer)) if status.success() => Ok(Heard { answer, warnings, peak_private_bytes }),
        Some(Err((stage, reason, Some(number)))) if NO_ROOM.contains(&Errno::from_raw_os_error(number)) => {
            let path = match request {
                WorkerRequest::Build(request) => request.plan.clone(),
                WorkerRequest::Examine(request) => request.plan.clone(),
                WorkerRequest::Judge(request) => request.engine.clone(),
            };
            Err(EngineError::NoRoom { stage, path, reason })
        }
        Some(Err((stage, reason, _))) => Err(EngineError::Refused { stage, reason, log: errors }),
        _ => {
            errors.extend(words.join().unwrap_or_default());
            Err(died(status, errors))
        }
    }
}

/// Keeps the last lines that native code printed, for the error about its end.
fn last_words(stderr: Option<ChildStderr>) -> JoinHandle<VecDeque<String>> {
    std::thread::spawn(move || {
        let mut lines = VecDeque::new();
        for line in stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).split(b'\n')) {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).trim().chars().take(500).collect::<String>();
            if !line.is_empty() {
                lines.push_back(line);
            }
            if lines.len() > LAST_WORDS {
                lines.pop_front();
            }
        }
        lines
    })
}

fn died(status: ExitStatus, log: Vec<String>) -> EngineError {
    let signal = status.signal();
    let how = match (signal, status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
    };
    EngineError::Died { how, signal, log }
}

/// The memory that building an engine takes, about, given its weights in its own precision. Files that are mapped do not count:
/// the kernel takes their pages back when it needs them.
///
/// Measured with TensorRT-RTX 1.7 (docs/evidence.md): weights of 45 MB to 4.9 GB took 220 MB to 10.1 GB; for the largest,
/// twice what they are in fp32, and 1.6 times in 16 bits.
#[must_use]
pub fn needed_memory_bytes(weight_bytes: u64) -> u64 {
    (250_u64 << 20).saturating_add(weight_bytes.saturating_mul(2)).saturating_add(weight_bytes / 10)
}

/// The memory that comparing a graph with its reference takes, about: the reference holds its weights in fp32, ONNX Runtime
/// holds those of the graph as they are stored and as the graph casts them, and both hold the outputs of two batches.
#[must_use]
pub(crate) fn gate_memory_bytes(reference_bytes: u64, weight_bytes: u64, output_bytes: u64) -> u64 {
    let session = weight_bytes.saturating_mul(2);
    let outputs = output_bytes.saturating_mul(4);
    (150_u64 << 20).saturating_add(reference_bytes).saturating_add(session).saturating_add(outputs)
}

/// Refuses a build that the host has no memory for.
pub(crate) fn check_memory(needed_bytes: u64) -> Result<(), EngineError> {
    let Some(free_bytes) = available_memory_bytes() else {
        return Ok(());
    };
    if needed_bytes > free_bytes {
        return Err(EngineError::Memory { needed_bytes, free_bytes });
    }
    Ok(())
}

/// One of the sizes that the kernel tells of a process (`proc_pid_status(5)`).
pub(super) fn memory_bytes(process: &str, which: &str) -> Option<u64> {
    kibibytes(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?, which)
}

/// A line of the kernel's tables, which count in KiB and call it kB.
fn kibibytes(table: &str, which: &str) -> Option<u64> {
    let line = table.lines().find_map(|line| line.strip_prefix(which))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// `MemAvailable`, the kernel's estimate of what can be had without swapping; `None` where it does not say.
#[must_use]
pub fn available_memory_bytes() -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

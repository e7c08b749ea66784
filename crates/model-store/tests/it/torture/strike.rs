//! Where an operation can be struck, and the striking: strace kills the process on its way into the N-th call,
//! or makes that call fail. The fault is the kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::process::Command;

use model_store::exit;

use crate::child::{BEGIN_MARK, END_MARK, Outcome, Task};
use crate::fixture::has_program;

/// Every call that can change a file system, or ask that it last. strace passes over a name with `?` that it
/// or the architecture does not know.
const CALLS: &str = "?mkdir,mkdirat,openat,?creat,write,pwrite64,writev,pwritev,?pwritev2,copy_file_range,\
    sendfile,splice,fallocate,ftruncate,truncate,fchmod,?chmod,fchmodat,?fchmodat2,fchown,fchownat,?chown,\
    utimensat,fsetxattr,fsync,fdatasync,sync_file_range,syncfs,sync,?rename,?renameat,renameat2,?symlink,\
    symlinkat,?link,linkat,?unlink,?rmdir,unlinkat,ioctl";

/// One call of an operation: the N-th of that name on its thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) call: String,
    count: usize,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.call, self.count)
    }
}

/// What happens at a point.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The process dies before the call is carried out.
    Kill,
    /// The call is not carried out and gives this error.
    Error(&'static str),
}

/// A process that was struck.
pub(crate) struct Struck {
    pub(crate) outcome: Outcome,
    /// Whether it came to the point at all.
    pub(crate) hit: bool,
}

/// `strace` of a whole process with these arguments.
pub(crate) fn strace(arguments: &[&str]) -> Vec<String> {
    ["strace", "-f", "-qq"].iter().chain(arguments).map(ToString::to_string).collect()
}

/// Whether strace is here and may trace; says so where not.
pub(crate) fn can_strike() -> bool {
    if !has_program("strace", "-V") {
        return false;
    }
    let allowed =
        Command::new("strace").args(["-f", "-qq", "true"]).output().is_ok_and(|out| out.status.success());
    if !allowed {
        eprintln!("skipped: strace may not trace here");
    }
    allowed
}

/// Lets the task run to its end and gives the calls by which it changes the file system, in their order.
pub(crate) fn points_of(task: &Task, log: &Path) -> Vec<Point> {
    let trace = format!("trace={CALLS}");
    let outcome = task.run(&strace(&["--seccomp-bpf", "-o", log.to_str().unwrap(), "-e", &trace]));
    assert_eq!(outcome.code(), Some(exit::OK), "without a fault {task:?} succeeds: {outcome:?}");
    let log = std::fs::read_to_string(log).unwrap();
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut points = Vec::new();
    let mut begun = false;
    let mut threads = BTreeSet::new();
    for line in log.lines() {
        let Some((thread, call)) = line.split_once(char::is_whitespace) else { continue };
        // At its end a thread is inside a call that strace does not know the name of.
        let Some((name, arguments)) = call.trim_start().split_once('(') else { continue };
        if name.contains(' ') || name.contains('?') {
            continue;
        }
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        if arguments.contains(BEGIN_MARK) {
            begun = true;
        } else if arguments.contains(END_MARK) {
            begun = false;
        } else if begun && changes(name, arguments) {
            threads.insert(thread);
            points.push(Point { call: name.to_owned(), count: *count });
        }
    }
    assert_eq!(threads.len(), 1, "{task:?} works on one thread, so that its calls can be counted");
    points
}

/// Opening to read changes nothing, nor do most ioctls.
fn changes(name: &str, arguments: &str) -> bool {
    match name {
        "openat" => arguments.contains("O_CREAT") || arguments.contains("O_TRUNC"),
        "ioctl" => arguments.contains("FICLONE"),
        _ => true,
    }
}

/// Runs the task and strikes it at one point; `log` is overwritten.
pub(crate) fn strike(task: &Task, point: &Point, fault: Fault, log: &Path) -> Struck {
    let Point { call, count } = point;
    let effect = match fault {
        Fault::Kill => "signal=SIGKILL".to_owned(),
        Fault::Error(error) => format!("error={error}"),
    };
    let inject = format!("inject={call}:{effect}:when={count}");
    let trace = format!("trace={call}");
    let mut arguments = vec!["-o", log.to_str().unwrap(), "-e", &trace, "-e", &inject];
    if matches!(fault, Fault::Error(_)) {
        // Stops at the traced calls only; a signal cannot be injected where it does.
        arguments.push("--seccomp-bpf");
    }
    let outcome = task.run(&strace(&arguments));
    let hit = match fault {
        Fault::Kill => outcome.code().is_none(),
        Fault::Error(_) => std::fs::read_to_string(log).unwrap().contains("(INJECTED)"),
    };
    Struck { outcome, hit }
}

//! Who holds a lock, and who this process is.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::{AtFlags, StatxFlags};
use serde::{Deserialize, Serialize};

/// Who holds a lock, as that process wrote it into the lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// The program's file name.
    pub command: String,
    /// The user it runs as.
    pub user: String,
    /// The host it runs on.
    pub host: String,
    /// When it took the lock.
    pub since: Timestamp,
}

impl Holder {
    /// This very process.
    #[must_use]
    pub fn this_process() -> Self {
        Self {
            pid: std::process::id(),
            command: command_of("self").unwrap_or_default(),
            user: user_name(),
            host: host_name(),
            since: now(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, command, user, host, since } = self;
        write!(f, "{command} (process {pid} of {user} on {host}) has held it since {since}")
    }
}

/// Who on this host holds a `flock` on a directory, from `/proc/locks`.
///
/// A staging directory contains payload only, so its owner is not written into it.
pub(crate) fn flock_holder(dir: BorrowedFd<'_>) -> Option<Holder> {
    flock_holders(dir).into_iter().next()
}

/// Everybody who holds a `flock` on a directory: its writer, or the readers that lease it.
pub(crate) fn flock_holders(dir: BorrowedFd<'_>) -> Vec<Holder> {
    let Ok(stat) = rustix::fs::fstat(dir) else { return Vec::new() };
    let wanted = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
        stat.st_ino
    );
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
    let holders = locks.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        // One that waits for the lock, behind an arrow, does not hold it.
        let flock = fields.next()? == "FLOCK";
        let pid = fields.nth(2)?;
        (flock && fields.next()? == wanted).then(|| pid.parse::<u32>().ok()).flatten()
    });
    holders.map(|pid| holder_of(pid, born(dir))).collect()
}

/// What is known of a process; one of another namespace, or that has ended, keeps its number only.
fn holder_of(pid: u32, since: Timestamp) -> Holder {
    let proc = Path::new("/proc").join(pid.to_string());
    let uid = std::fs::metadata(&proc).ok().map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
    Holder {
        pid,
        command: command_of(&pid.to_string()).unwrap_or_else(|| "?".to_owned()),
        user: uid.map_or_else(|| "?".to_owned(), user_name_of),
        host: host_name(),
        since,
    }
}

/// When a directory was made: a staging is locked in the same breath.
pub(crate) fn born(dir: BorrowedFd<'_>) -> Timestamp {
    rustix::fs::statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME)
        .ok()
        .and_then(|statx| Timestamp::new(statx.stx_btime.tv_sec, 0).ok())
        .unwrap_or_else(now)
}

/// The time, to the millisecond: what manifests, histories and locks are stamped with.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(jiff::Unit::Millisecond).unwrap_or(now)
}

/// The user this process runs as.
pub(crate) fn user_name() -> String {
    user_name_of(rustix::process::geteuid().as_raw())
}

fn user_name_of(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("uid {uid}"),
    }
}

/// The name of this host.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn command_of(pid: &str) -> Option<String> {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(comm.trim_end().to_owned())
}

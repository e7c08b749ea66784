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
    pub(crate) fn this_process() -> Self {
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
    let stat = rustix::fs::fstat(dir).ok()?;
    let wanted = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
        stat.st_ino
    );
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
    let pid = locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1).filter(|field| *field != "->");
        let flock = fields.next()? == "FLOCK";
        let pid = fields.nth(2)?;
        (flock && fields.next()? == wanted).then(|| pid.parse::<u32>().ok()).flatten()
    })?;
    let proc = Path::new("/proc").join(pid.to_string());
    let uid = std::fs::metadata(&proc).ok().map(|meta| std::os::unix::fs::MetadataExt::uid(&meta))?;
    Some(Holder {
        pid,
        command: command_of(&pid.to_string()).unwrap_or_default(),
        user: user_name_of(uid),
        host: host_name(),
        since: born(dir),
    })
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

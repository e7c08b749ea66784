//! Locks: one writer per agent, and everyone else is told who that is; a `flock` on a directory for who stages
//! into it or reads it.
//!
//! Every lock is given back in so many words and not by closing alone: a child that some other thread has just
//! forked has a copy of the handle until it executes its program, and the lock would live as long as that copy.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{AtFlags, FlockOperation};
use rustix::io::Errno;

use crate::durable;
use crate::error::StoreError;
use crate::holder::Holder;
use crate::layout::{AgentDir, LOCK_FILE};
use crate::progress::Progress;

/// How long a writer waits for who looks at its staging.
const STAGING_PATIENCE: Duration = Duration::from_millis(100);

/// The exclusive lock of one agent; dropping it unlocks.
///
/// It is an open-file-description lock, so it excludes other threads of this process as well, ends with the
/// process however that dies, and is not lost when some other handle of the file is closed.
#[must_use = "the agent is unlocked when this is dropped"]
#[derive(Debug)]
pub(crate) struct AgentLock {
    file: File,
}

impl AgentLock {
    /// Takes the lock, waiting at most `patience` and no longer than `progress` allows. `None` says that the
    /// agent's directory was removed meanwhile.
    pub(crate) fn acquire(
        agent: &AgentDir,
        patience: Duration,
        progress: &Progress,
    ) -> Result<Option<Self>, StoreError> {
        let path = agent.path().join(LOCK_FILE);
        let started = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            let file = match durable::open_control(agent.handle(), LOCK_FILE) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(e) => return Err(StoreError::io("open the lock", &path, e)),
            };
            match try_lock(&file) {
                Ok(true) if is_still(agent.handle(), &file) => {
                    let lock = Self { file };
                    lock.sign();
                    return Ok(Some(lock));
                }
                // Its agent was removed while we waited for it: start again with the file that is there now.
                Ok(true) => continue,
                Ok(false) if started.elapsed() >= patience => {
                    let what = format!("agent {}", agent.name());
                    let holder = read_holder(&file).map(Box::new);
                    return Err(StoreError::Busy { what, holder, waited: started.elapsed() });
                }
                Ok(false) => {}
                Err(e) => return Err(StoreError::io("lock", &path, e)),
            }
            progress.advance(0).map_err(|e| StoreError::io("lock", &path, e))?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Writes down who holds the lock. It is for people only, so a full disk does not stop anybody here.
    fn sign(&self) {
        if let Ok(mut record) = serde_json::to_vec(&Holder::this_process()) {
            record.push(b'\n');
            let _ = durable::write_note(&self.file, &record);
        }
    }
}

impl Drop for AgentLock {
    fn drop(&mut self) {
        let _ = durable::write_note(&self.file, b"");
        let _ = set_lock(&self.file, libc::F_UNLCK);
    }
}

/// Whether `file` is still what the agent's directory calls `.lock`.
fn is_still(agent: BorrowedFd<'_>, file: &File) -> bool {
    let there = rustix::fs::statat(agent, LOCK_FILE, AtFlags::SYMLINK_NOFOLLOW);
    let ours = rustix::fs::fstat(file);
    matches!((there, ours), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

fn try_lock(file: &File) -> io::Result<bool> {
    match set_lock(file, libc::F_WRLCK) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn set_lock(file: &File, kind: libc::c_int) -> nix::Result<()> {
    #[expect(clippy::cast_possible_truncation, reason = "0 to 2, which the structure keeps as shorts")]
    let (l_type, l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    let whole_file = libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole_file)).map(drop)
}

fn read_holder(file: &File) -> Option<Holder> {
    let mut record = [0; 1024];
    let length = file.read_at(&mut record, 0).ok()?;
    serde_json::from_slice(&record[..length]).ok()
}

/// A directory with a `flock` on it; dropping it unlocks.
#[must_use = "the directory is unlocked when this is dropped"]
#[derive(Debug)]
pub(crate) struct Flock<Dir: AsFd>(Dir);

impl<Dir: AsFd> Flock<Dir> {
    /// Locks a directory against everybody, without waiting; `None` where somebody has a lock on it.
    pub(crate) fn exclusive(dir: Dir) -> Result<Option<Self>, Errno> {
        Self::take(dir, FlockOperation::NonBlockingLockExclusive).map(Result::ok)
    }

    /// As [`exclusive`](Self::exclusive), trying for a moment: somebody who looks whether a staging is alive
    /// holds it for an instant. A refusal gives the directory back.
    pub(crate) fn exclusive_soon(dir: Dir) -> Result<Result<Self, Dir>, Errno> {
        Self::within(dir, FlockOperation::NonBlockingLockExclusive, STAGING_PATIENCE)
    }

    /// Locks a directory against those who want it alone, waiting at most `patience`.
    pub(crate) fn shared(dir: Dir, patience: Duration) -> Result<Result<Self, Dir>, Errno> {
        Self::within(dir, FlockOperation::NonBlockingLockShared, patience)
    }

    fn within(
        mut dir: Dir,
        operation: FlockOperation,
        patience: Duration,
    ) -> Result<Result<Self, Dir>, Errno> {
        let started = Instant::now();
        loop {
            dir = match Self::take(dir, operation)? {
                Err(dir) if started.elapsed() < patience => dir,
                locked_or_late => return Ok(locked_or_late),
            };
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn take(dir: Dir, operation: FlockOperation) -> Result<Result<Self, Dir>, Errno> {
        match rustix::fs::flock(dir.as_fd(), operation) {
            Ok(()) => Ok(Ok(Self(dir))),
            Err(Errno::WOULDBLOCK) => Ok(Err(dir)),
            Err(e) => Err(e),
        }
    }
}

impl<Dir: AsFd> AsFd for Flock<Dir> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<Dir: AsFd> Drop for Flock<Dir> {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(self.as_fd(), FlockOperation::Unlock);
    }
}

/// Whether somebody has an exclusive `flock` on a directory.
pub(crate) fn is_flocked(dir: BorrowedFd<'_>) -> bool {
    matches!(Flock::take(dir, FlockOperation::NonBlockingLockShared), Ok(Err(_)))
}

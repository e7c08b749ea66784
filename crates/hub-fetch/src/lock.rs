//! Locks of the cache: `flock`, as `huggingface_hub` takes it, so that a file is downloaded by one at a time.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::cache::open_file;
use crate::error::FetchError;
use crate::progress::Progress;
use crate::retry::sleep;

const PAUSE: Duration = Duration::from_millis(100);
/// How often it is said who is waited for.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A lock that is held; dropping it gives it back. The file stays: who waits for it has it open.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Waits for the lock, as long as it takes: who holds it is downloading what is wanted here.
    pub(crate) fn acquire(
        path: &Path,
        what: &str,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<Self, FetchError> {
        let failed = |error| FetchError::io("lock", path, error);
        let mut said = None;
        loop {
            let file = open_file(path).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {
                    // Somebody may have cleaned up between opening and locking.
                    let same = path.symlink_metadata().is_ok_and(|there| {
                        file.metadata()
                            .is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
                    });
                    if same {
                        return Ok(Self { file });
                    }
                }
                Err(TryLockError::WouldBlock) => {
                    if said.is_none_or(|at: Instant| at.elapsed() >= SAY_EVERY) {
                        progress.waiting(&format!("{what}: another process is downloading it"), PAUSE);
                        said = Some(Instant::now());
                    }
                    sleep(PAUSE, stop)?;
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // By name and not by closing alone: a child forked meanwhile has a copy of the handle.
        let _ = self.file.unlock();
    }
}

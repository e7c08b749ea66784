//! Files that are made durable while their version is still in the making.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::durable;
use crate::error::StoreError;

/// Threads that wait for the disk, and what came of it. The kernel tells of a write that failed once, to whoever syncs first:
/// publishing must hear it from here.
#[derive(Debug, Default)]
pub(crate) struct EarlySync(Mutex<Vec<JoinHandle<Result<(), StoreError>>>>);

impl EarlySync {
    /// Begins with these files, where a thread can be had. Dropping this forgets about them.
    pub(crate) fn begin(&self, files: Vec<(PathBuf, File)>) {
        let sync = move || {
            files.iter().try_for_each(|(path, file)| {
                durable::sync(file.as_fd()).map_err(|e| StoreError::io("sync", path, e))
            })
        };
        if let Ok(thread) = std::thread::Builder::new().name("early-sync".to_owned()).spawn(sync) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
    }

    /// Waits for all of them.
    pub(crate) fn finish(&self) -> Result<(), StoreError> {
        let threads = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(synced) => synced,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_is_told_when_it_is_waited_for() {
        // The kernel syncs no device of this kind: EINVAL.
        let open = || File::open("/dev/null").unwrap_or_else(|error| panic!("{error}"));
        let early = EarlySync::default();
        early.begin(vec![("a/model.safetensors".into(), open())]);
        let Err(error) = early.finish() else { panic!("it cannot be synced") };
        assert!(error.to_string().contains("a/model.safetensors"), "{error}");
        assert!(early.finish().is_ok(), "it was told");
    }
}

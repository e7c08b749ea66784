//! A lease: one writer at a time, where the server lets nobody else say so.
//!
//! With `If-None-Match` honoured, only one can make the object. Without, everybody who wants it writes, waits
//! longer than a put takes, and reads who wrote last: that one has it. What this does not cover is a writer
//! that stops between looking and writing for longer than the lease lasts; the read-back after every move of a
//! pointer sees most of that, docs/remote-format.md says what is left.

use std::time::Instant;

use jiff::SignedDuration;
use object_store::PutMode;
use object_store::path::Path;

use crate::error::SyncError;
use crate::layout::{ConditionalPuts, LeaseFile, REMOTE_FORMAT};
use crate::probe::now;
use crate::remote::{Remote, unique};

/// A lease that is ours; dropping it gives it back.
#[must_use = "the lease is given back when this is dropped"]
pub(crate) struct Lease<'a> {
    remote: &'a Remote,
    path: Path,
    holder: String,
    taken: Instant,
}

impl<'a> Lease<'a> {
    /// Takes a lease, or says who has it.
    pub(crate) fn take(
        remote: &'a Remote,
        path: Path,
        who: &str,
        puts: ConditionalPuts,
    ) -> Result<Self, SyncError> {
        let taken = Instant::now();
        let holder = unique();
        let lasts = SignedDuration::try_from(remote.options.lease).unwrap_or(SignedDuration::MAX);
        let file = LeaseFile {
            format: REMOTE_FORMAT,
            holder: holder.clone(),
            who: who.to_owned(),
            expires: now().checked_add(lasts).unwrap_or(jiff::Timestamp::MAX),
        };
        if let Some(there) = remote.read_document::<LeaseFile>(&path)? {
            if there.value.expires > now() {
                return Err(busy(remote, &path, &there.value));
            }
            remote.delete(&path)?;
        }
        let mode = if puts.create { PutMode::Create } else { PutMode::Overwrite };
        remote.write_document(&path, &file, mode)?;
        if !puts.create {
            remote.pause(remote.options.settle)?;
            // Whoever wrote last has it; the lease of another one is not to be taken away.
            ensure_holder(remote, &path, &holder)?;
        }
        let lease = Self { remote, path, holder, taken };
        lease.ensure_ours()?;
        Ok(lease)
    }

    /// Whether it is still ours, with enough of it left to write something.
    pub(crate) fn ensure_ours(&self) -> Result<(), SyncError> {
        if self.taken.elapsed() * 2 > self.remote.options.lease {
            return Err(SyncError::Busy {
                what: self.path.to_string(),
                remote: self.remote.address().to_string(),
                by: "the lease took too long to get".to_owned(),
            });
        }
        ensure_holder(self.remote, &self.path, &self.holder)
    }
}

fn ensure_holder(remote: &Remote, path: &Path, holder: &str) -> Result<(), SyncError> {
    match remote.read_document::<LeaseFile>(path)? {
        Some(there) if there.value.holder == holder => Ok(()),
        Some(there) => Err(busy(remote, path, &there.value)),
        None => Err(SyncError::Busy {
            what: path.to_string(),
            remote: remote.address().to_string(),
            by: "somebody has taken the lease away".to_owned(),
        }),
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // After its time it may be somebody else's.
        if self.taken.elapsed() < self.remote.options.lease {
            self.remote.delete_at_last(&self.path);
        }
    }
}

fn busy(remote: &Remote, path: &Path, there: &LeaseFile) -> SyncError {
    SyncError::Busy {
        what: path.to_string(),
        remote: remote.address().to_string(),
        by: format!("{} has a lease until {}", there.who, there.expires),
    }
}

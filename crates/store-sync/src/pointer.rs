//! `current.json`: reading it, and moving it so that of two writers one is told.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use model_store::{AgentName, Digest, VersionName};
use object_store::PutMode;

use crate::error::SyncError;
use crate::layout::{self, REMOTE_FORMAT, RemotePointer};
use crate::lease::Lease;
use crate::probe::now;
use crate::remote::{Document, Remote};

/// Where a pointer is to go.
#[derive(Clone, Debug)]
pub(crate) struct Move<'a> {
    pub(crate) agent: &'a AgentName,
    pub(crate) version: &'a VersionName,
    pub(crate) checksum: Digest,
    pub(crate) who: &'a str,
    /// How long it is to be followed.
    pub(crate) expires: Option<Duration>,
    /// The serial of the pointer that the caller goes by; `None` moves it wherever it is.
    pub(crate) seen: Option<u64>,
    /// The highest serial that the caller knows of: the new one is above it.
    pub(crate) above: u64,
}

impl Remote {
    /// The pointer of an agent; `None` where nothing is current yet.
    pub fn pointer(&self, agent: &AgentName) -> Result<Option<RemotePointer>, SyncError> {
        Ok(self.read_pointer(agent)?.map(|document| document.value))
    }

    fn read_pointer(&self, agent: &AgentName) -> Result<Option<Document<RemotePointer>>, SyncError> {
        let path = layout::pointer(agent);
        let found = self.read_document::<RemotePointer>(&path)?;
        if let Some(other) = found.as_ref().map(|found| &found.value.agent).filter(|other| *other != agent) {
            return Err(self.damaged(&path, format!("it is of agent {other}")));
        }
        Ok(found)
    }

    /// Moves a pointer; gives what is there then, and whether anything had to be done. It is where it is to
    /// go already, for as long as wanted: nothing is written.
    pub(crate) fn move_pointer(&self, to: &Move<'_>) -> Result<(RemotePointer, bool), SyncError> {
        let puts = self.store_file()?.conditional_puts;
        if puts.update {
            let before = self.read_pointer(to.agent)?;
            return match self.next(before.as_ref().map(|before| &before.value), to)? {
                Next::Stay(there) => Ok((there, false)),
                Next::Move(next) => {
                    let mode = match before {
                        Some(before) => PutMode::Update(before.at),
                        None => PutMode::Create,
                    };
                    self.write_pointer(&next, mode)
                }
            };
        }
        // Whoever need not move needs no lease.
        let before = self.read_pointer(to.agent)?;
        if let Next::Stay(there) = self.next(before.as_ref().map(|before| &before.value), to)? {
            return Ok((there, false));
        }
        let lease = Lease::take(self, layout::pointer_lease(to.agent), to.who, puts)?;
        let before = self.read_pointer(to.agent)?;
        match self.next(before.as_ref().map(|before| &before.value), to)? {
            Next::Stay(there) => Ok((there, false)),
            Next::Move(next) => {
                lease.ensure_ours()?;
                self.write_pointer(&next, PutMode::Overwrite)
            }
        }
    }

    fn write_pointer(&self, next: &RemotePointer, mode: PutMode) -> Result<(RemotePointer, bool), SyncError> {
        let written = self.write_document(&layout::pointer(&next.agent), next, mode)?;
        // Whatever the server promised: what is there now is what counts.
        let there = self.read_pointer(&next.agent)?;
        if there.as_ref().is_some_and(|there| there.bytes == written) {
            return Ok((next.clone(), true));
        }
        let by = there.map_or_else(
            || "the pointer is not there after it was written".to_owned(),
            |there| {
                let RemotePointer { version, serial, who, .. } = there.value;
                format!("{who} has moved the pointer to {version} (serial {serial}) at the same time")
            },
        );
        let what = format!("the pointer of {}", next.agent);
        Err(SyncError::Busy { what, remote: self.address().to_string(), by })
    }

    fn next(&self, before: Option<&RemotePointer>, to: &Move<'_>) -> Result<Next, SyncError> {
        let is_there =
            |before: &&RemotePointer| before.version == *to.version && before.checksum == to.checksum;
        if let Some(there) =
            before.filter(is_there).filter(|there| !is_expired(there) && to.expires.is_none())
        {
            return Ok(Next::Stay(there.clone()));
        }
        if let (Some(before), Some(seen)) = (before, to.seen)
            && before.serial != seen
            && !is_there(&before)
        {
            return Err(SyncError::Unseen {
                agent: to.agent.clone(),
                remote: self.address().to_string(),
                version: before.version.clone(),
                serial: before.serial,
                who: before.who.clone(),
            });
        }
        let time = now();
        let expires =
            to.expires.and_then(|after| time.checked_add(SignedDuration::try_from(after).ok()?).ok());
        let serial = before.map_or(0, |before| before.serial).max(to.above).saturating_add(1);
        Ok(Next::Move(RemotePointer {
            format: REMOTE_FORMAT,
            agent: to.agent.clone(),
            version: to.version.clone(),
            checksum: to.checksum,
            serial,
            time,
            who: to.who.to_owned(),
            expires,
        }))
    }
}

enum Next {
    Stay(RemotePointer),
    Move(RemotePointer),
}

/// Whether a pointer is not to be followed any more.
pub(crate) fn is_expired(pointer: &RemotePointer) -> bool {
    pointer.expires.is_some_and(|expires: Timestamp| expires <= now())
}

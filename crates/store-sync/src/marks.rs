//! Who is pushing, and who is collecting: `leases/push-<id>.json`, `leases/gc-<id>.json`.
//!
//! A push counts on blobs that it finds, and a collection removes blobs that nothing names yet. Each first sets
//! its own mark and then looks for the other's: at least one of them sees the other and gives way.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use object_store::PutMode;
use object_store::path::Path;

use crate::error::SyncError;
use crate::layout::{LEASES, LeaseFile, REMOTE_FORMAT};
use crate::probe::now;
use crate::remote::{Remote, unique};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marks {
    Push,
    Collect,
}

impl Marks {
    fn prefix(self) -> &'static str {
        match self {
            Self::Push => "push-",
            Self::Collect => "gc-",
        }
    }

    /// How many leases it lasts before it has to be set anew. A push does that between two blobs, and a big one
    /// takes its time: an hour, with leases of a minute. A collection that died must not keep others from
    /// pushing for as long.
    fn leases(self) -> u32 {
        match self {
            Self::Push => 60,
            Self::Collect => 5,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Push => Self::Collect,
            Self::Collect => Self::Push,
        }
    }
}

/// A mark that is set; dropping it takes it away.
#[must_use = "the mark is taken away when this is dropped"]
pub(crate) struct Mark<'a> {
    remote: &'a Remote,
    path: Path,
    what: Marks,
    who: String,
    renewed: Mutex<Instant>,
}

impl<'a> Mark<'a> {
    /// Sets a mark, unless somebody does what does not go with it.
    pub(crate) fn set(remote: &'a Remote, what: Marks, who: &str) -> Result<Self, SyncError> {
        let path = Path::from(format!("{LEASES}/{}{}.json", what.prefix(), unique()));
        let mark = Self { remote, path, what, who: who.to_owned(), renewed: Mutex::new(Instant::now()) };
        mark.write()?;
        // Two collections would count on each other's blobs to stay.
        let in_the_way = match what {
            Marks::Push => vec![what.other()],
            Marks::Collect => vec![what.other(), what],
        };
        for other in in_the_way {
            mark.ensure_none(other)?;
        }
        Ok(mark)
    }

    fn ensure_none(&self, other: Marks) -> Result<(), SyncError> {
        for there in self.remote.list(&Path::from(LEASES))? {
            let is_other = there.location.filename().is_some_and(|name| name.starts_with(other.prefix()));
            if !is_other || there.location == self.path {
                continue;
            }
            let Some(file) = self.remote.read_document::<LeaseFile>(&there.location)? else { continue };
            if file.value.expires <= now() {
                self.remote.delete(&there.location)?;
                continue;
            }
            let (what, by) = match other {
                Marks::Push => ("a push", "is pushing"),
                Marks::Collect => ("a collection", "is collecting"),
            };
            return Err(SyncError::Busy {
                what: what.to_owned(),
                remote: self.remote.address().to_string(),
                by: format!("{} {by}, until {} at the latest", file.value.who, file.value.expires),
            });
        }
        Ok(())
    }

    /// Sets the mark anew before others would take it for a dead one's.
    pub(crate) fn renew_if_old(&self) -> Result<(), SyncError> {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed.elapsed() * 3 > self.lasts() {
            self.write()?;
            *renewed = Instant::now();
        }
        Ok(())
    }

    fn lasts(&self) -> Duration {
        self.remote.options.lease * self.what.leases()
    }

    fn write(&self) -> Result<(), SyncError> {
        let lasts = SignedDuration::try_from(self.lasts()).unwrap_or(SignedDuration::MAX);
        let file = LeaseFile {
            format: REMOTE_FORMAT,
            holder: self.path.to_string(),
            who: self.who.clone(),
            expires: now().checked_add(lasts).unwrap_or(jiff::Timestamp::MAX),
        };
        self.remote.write_document(&self.path, &file, PutMode::Overwrite).map(drop)
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.remote.delete_at_last(&self.path);
    }
}

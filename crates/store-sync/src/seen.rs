//! What this host remembers of a remote, so that an old pointer is recognised as one.

use jiff::Timestamp;
use model_store::{AgentName, ModelStore, StoreError, VersionName};
use serde::{Deserialize, Serialize};

use crate::error::SyncError;
use crate::layout::RemotePointer;
use crate::remote::Remote;

/// What is known of an agent at a remote: `<agent>/.remotes/<remote>.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The remote.
    pub remote: String,
    /// The highest serial that was seen. An older pointer is refused.
    pub serial: u64,
    /// The version of that serial.
    pub version: Option<VersionName>,
    /// The highest serial that this host has done what it says.
    pub applied_serial: u64,
    /// When the first pointer was moved that this host has not done yet.
    #[serde(default)]
    pub behind_since: Option<Timestamp>,
    /// When the remote answered last.
    #[serde(default)]
    pub contact: Option<Timestamp>,
    /// Bytes that came from there.
    #[serde(default)]
    pub received_bytes: u64,
    /// Bytes that went there.
    #[serde(default)]
    pub sent_bytes: u64,
    /// How often keeping in step failed.
    #[serde(default)]
    pub failures: u64,
    /// Why it failed the last time; nothing once it has worked again.
    #[serde(default)]
    pub trouble: Option<String>,
}

impl Remote {
    /// What a store remembers of an agent here.
    pub fn seen(&self, store: &ModelStore, agent: &AgentName) -> Result<Seen, SyncError> {
        let noted = store.remote_note::<Seen>(agent, self.id())?;
        Ok(noted.unwrap_or_else(|| Seen { remote: self.address().to_string(), ..Seen::default() }))
    }

    /// Has a store remember it. An agent that is not there yet has nowhere to keep it.
    pub(crate) fn remember(
        &self,
        store: &ModelStore,
        agent: &AgentName,
        seen: &Seen,
    ) -> Result<(), SyncError> {
        match store.put_remote_note(agent, self.id(), seen) {
            Err(StoreError::AgentNotFound { .. }) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Refuses a pointer that is older than one that was seen, or is another one of the same serial.
    pub(crate) fn ensure_new(&self, seen: &Seen, pointer: &RemotePointer) -> Result<(), SyncError> {
        let is_other =
            pointer.serial == seen.serial && seen.version.as_ref().is_some_and(|v| *v != pointer.version);
        if pointer.serial >= seen.serial && !is_other {
            return Ok(());
        }
        Err(SyncError::Replayed {
            agent: pointer.agent.clone(),
            remote: self.address().to_string(),
            version: pointer.version.clone(),
            serial: pointer.serial,
            seen: seen.serial,
        })
    }
}

impl Seen {
    /// Takes a pointer in that is new.
    pub(crate) fn note(&mut self, pointer: &RemotePointer) {
        if pointer.serial > self.serial || self.version.is_none() {
            self.serial = pointer.serial;
            self.version = Some(pointer.version.clone());
        }
        if self.serial > self.applied_serial {
            self.behind_since.get_or_insert(pointer.time);
        }
    }

    /// This host does what the pointer says.
    pub(crate) fn apply(&mut self, pointer: &RemotePointer) {
        self.applied_serial = self.applied_serial.max(pointer.serial);
        if self.applied_serial >= self.serial {
            self.behind_since = None;
        }
    }
}

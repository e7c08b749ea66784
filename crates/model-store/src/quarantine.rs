//! Versions that were found damaged and could not be repaired.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::dir;
use crate::error::StoreError;
use crate::history::{self, Action, MoveOptions, PointerName};
use crate::holder::now;
use crate::layout::{AgentDir, QUARANTINE_DIR};
use crate::names::{AgentName, VersionName};
use crate::notes;
use crate::read::Current;
use crate::store::ModelStore;

/// The marker of a damaged version: no pointer is moved to it, strict readers refuse it, others warn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Since when.
    pub at: Timestamp,
    /// By whom.
    pub by: String,
    /// What was found.
    pub reason: String,
}

impl Current {
    /// Why nobody should use this version; `None` where nothing is known against it.
    pub fn quarantine(&self) -> Result<Option<Quarantine>, StoreError> {
        let failed = |e| StoreError::io("read the quarantine of", self.path(), e);
        let agent = dir::open_path(self.agent_path()).map_err(failed)?;
        notes::read(std::os::fd::AsFd::as_fd(&agent), QUARANTINE_DIR, self.version()).map_err(failed)
    }
}

impl ModelStore {
    /// Why nobody should use a version; `None` where nothing is known against it, or it is not there.
    pub fn quarantine(
        &self,
        agent: &AgentName,
        version: &VersionName,
    ) -> Result<Option<Quarantine>, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), agent)? else { return Ok(None) };
        of(&agent, version)
    }
}

/// As [`ModelStore::quarantine`], of an open agent.
pub(crate) fn of(agent: &AgentDir, version: &VersionName) -> Result<Option<Quarantine>, StoreError> {
    notes::read(agent.handle(), QUARANTINE_DIR, version)
        .map_err(|e| StoreError::io("read", &agent.path().join(QUARANTINE_DIR), e))
}

/// Marks a version, under the agent's lock. Marked already, it keeps its first mark.
pub(crate) fn set(
    agent: &AgentDir,
    version: &VersionName,
    reason: String,
    options: &MoveOptions,
) -> Result<(), StoreError> {
    // A marker that cannot be read counts as one: readers stop at it, too.
    if !matches!(of(agent, version), Ok(None)) {
        return Ok(());
    }
    let by = options.actor.clone().unwrap_or_else(history::default_actor);
    notes::write(agent, QUARANTINE_DIR, version, &Quarantine { at: now(), by, reason: reason.clone() })?;
    let options = MoveOptions { reason: Some(reason), ..options.clone() };
    record(agent, version, Action::Quarantine, &options)
}

/// Takes the mark away, under the agent's lock; says whether there was one.
pub(crate) fn lift(
    agent: &AgentDir,
    version: &VersionName,
    options: &MoveOptions,
) -> Result<bool, StoreError> {
    if matches!(of(agent, version), Ok(None)) {
        return Ok(false);
    }
    notes::remove(agent, QUARANTINE_DIR, version)?;
    record(agent, version, Action::Release, options)?;
    Ok(true)
}

fn record(
    agent: &AgentDir,
    version: &VersionName,
    action: Action,
    options: &MoveOptions,
) -> Result<(), StoreError> {
    let (pointer, at) = (PointerName::Version(version.clone()), Some(version.clone()));
    history::append(agent, &options.record(action, pointer, at.clone(), at))
}

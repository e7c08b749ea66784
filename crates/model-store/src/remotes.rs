//! What this host knows of other stores: `<agent>/.remotes/<remote>.json`, a note for each.
//!
//! What a note says is for whoever keeps in step with that store; here it is only kept.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::dir;
use crate::error::StoreError;
use crate::layout::{AgentDir, REMOTES_DIR};
use crate::names::{AgentName, VersionName};
use crate::notes;
use crate::store::ModelStore;
use std::os::fd::AsFd;

impl ModelStore {
    /// What was noted of an agent about another store; `None` where nothing was. `remote` is a name as a
    /// version may have.
    pub fn remote_note<T: DeserializeOwned>(
        &self,
        agent: &AgentName,
        remote: &VersionName,
    ) -> Result<Option<T>, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), agent)? else { return Ok(None) };
        notes::read(agent.handle(), REMOTES_DIR, remote).map_err(|e| {
            StoreError::io("read", &agent.path().join(REMOTES_DIR).join(format!("{remote}.json")), e)
        })
    }

    /// Notes something of an agent about another store, instead of what was noted before. Durable when this
    /// returns. The agent must be there.
    pub fn put_remote_note(
        &self,
        agent: &AgentName,
        remote: &VersionName,
        note: &impl Serialize,
    ) -> Result<(), StoreError> {
        match AgentDir::open_to_write(self.root(), agent)? {
            Some(agent) => notes::write(&agent, REMOTES_DIR, remote, note),
            None => Err(self.agent_not_found(agent)),
        }
    }

    /// The stores about which something was noted of an agent, in the order of their names.
    pub fn noted_remotes(&self, agent: &AgentName) -> Result<Vec<VersionName>, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), agent)? else { return Ok(Vec::new()) };
        let path = agent.path().join(REMOTES_DIR);
        let failed = |e| StoreError::io("list", &path, e);
        let Some(remotes) = dir::open_if_there(agent.handle(), REMOTES_DIR).map_err(failed)? else {
            return Ok(Vec::new());
        };
        let entries = dir::sorted_entries(remotes.as_fd()).map_err(failed)?;
        let names = entries.into_iter().filter_map(|entry| entry.name.into_string().ok());
        Ok(names.filter_map(|name| VersionName::try_from(name.strip_suffix(".json")?).ok()).collect())
    }
}

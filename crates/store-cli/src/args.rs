//! Arguments that several commands have.

use std::time::Duration;

use model_store::{AgentEntry, AgentName, ModelStore, MoveOptions, StoreError};

use crate::cli::Global;
use crate::meter;

/// What every command has that waits for an agent's lock.
#[derive(Debug, clap::Args)]
pub(crate) struct Patience {
    /// How long to wait for another writer of the agent
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

/// What every command has that writes into the history.
#[derive(Debug, clap::Args)]
pub(crate) struct Mutation {
    /// For the history: why
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    patience: Patience,
}

impl Patience {
    /// As long as the caller said.
    pub(crate) fn wait(&self) -> Duration {
        Duration::from_secs(self.wait)
    }
}

impl Mutation {
    /// Opens the store for a change that takes a moment, once it has the lock.
    pub(crate) fn open(&self, global: &Global) -> anyhow::Result<ModelStore> {
        Ok(global.open()?.with_lock_patience(self.wait()).with_progress(meter::stoppable()?))
    }

    /// As long as the caller said.
    pub(crate) fn wait(&self) -> Duration {
        self.patience.wait()
    }

    /// What the history is told.
    pub(crate) fn options(&self) -> MoveOptions {
        MoveOptions { actor: None, reason: self.reason.clone() }
    }
}

/// Where work was stopped on request, says what has become of it.
pub(crate) fn or_stopped<T>(result: Result<T, StoreError>, what: &'static str) -> anyhow::Result<T> {
    result.map_err(|error| match error {
        StoreError::Interrupted => anyhow::Error::new(error).context(format!("stopped; {what}")),
        other => other.into(),
    })
}

/// Every agent, under its own name: what an alias leads to is among them.
pub(crate) fn every_agent(store: &ModelStore) -> Result<Vec<AgentName>, StoreError> {
    let own_name = |entry| match entry {
        AgentEntry::Agent(agent) => Some(agent),
        AgentEntry::Alias { .. } => None,
    };
    Ok(store.agents()?.into_iter().filter_map(own_name).collect())
}

//! What there is: agents, versions, stagings.

use std::os::fd::AsFd;

use jiff::Timestamp;
use rustix::fs::FileType;
use serde::Serialize;

use crate::dir;
use crate::error::StoreError;
use crate::holder::born;
use crate::layout::{self, AgentDir, CURRENT_LINK, Place, Pointer, VERSIONS_DIR};
use crate::lock::is_flocked;
use crate::names::{AgentName, STAGING_SUFFIX, VersionName};
use crate::store::ModelStore;

/// What a name at the top of the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEntry {
    /// An agent.
    Agent(AgentName),
    /// A legacy alias: readers follow it, writers refuse it.
    Alias {
        /// The alias.
        alias: AgentName,
        /// The agent it leads to.
        target: AgentName,
    },
}

impl AgentEntry {
    /// The agent's or alias's own name.
    #[must_use]
    pub fn name(&self) -> &AgentName {
        match self {
            Self::Agent(name) | Self::Alias { alias: name, .. } => name,
        }
    }
}

/// A staging directory, looked at from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StagingEntry {
    /// The version in the making.
    pub version: VersionName,
    /// When the directory was made.
    pub begun_at: Timestamp,
    /// Whether its writer lives; the next mutation clears it otherwise.
    pub in_use: bool,
}

impl ModelStore {
    /// Every agent and alias, sorted by name.
    pub fn agents(&self) -> Result<Vec<AgentEntry>, StoreError> {
        let root = layout::open_root(self.root())?;
        let entries = dir::entries(root.as_fd()).map_err(|e| StoreError::io("list", self.root(), e))?;
        let mut agents = Vec::new();
        for entry in entries {
            let Some(name) = entry.name.to_str().ok().and_then(|name| AgentName::try_from(name).ok()) else {
                continue;
            };
            match entry.kind {
                // One that may not be looked into is listed: it must not hide the others, nor be hidden.
                FileType::Directory if self.is_agent(&name).unwrap_or(true) => {
                    agents.push(AgentEntry::Agent(name));
                }
                FileType::Symlink => {
                    if let Ok(Some(target)) = layout::alias_target(root.as_fd(), self.root(), &name) {
                        agents.push(AgentEntry::Alias { alias: name, target });
                    }
                }
                _ => {}
            }
        }
        agents.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(agents)
    }

    /// A directory is an agent's once it has `versions/` or, in a legacy store, `current`.
    fn is_agent(&self, name: &AgentName) -> Result<bool, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), name)? else {
            return Ok(false);
        };
        let has = |entry| {
            dir::exists(agent.handle(), entry).map_err(|e| StoreError::io("look into", agent.path(), e))
        };
        Ok(has(VERSIONS_DIR)? || has(CURRENT_LINK)?)
    }

    /// The published versions of an agent, in the order of their publication, then of their names. A version
    /// without a time, such as a legacy one, comes first.
    pub fn versions(&self, agent: &AgentName) -> Result<Vec<VersionName>, StoreError> {
        let Some(agent_dir) = AgentDir::open(self.root(), agent)? else {
            return Err(self.agent_not_found(agent));
        };
        let dated = dated_versions(&agent_dir)?;
        Ok(dated.into_iter().map(|(_, pointer)| pointer.version).collect())
    }

    /// The stagings of an agent, those in use and those that a dead writer left, in the order of their names.
    pub fn stagings(&self, agent: &AgentName) -> Result<Vec<StagingEntry>, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), agent)? else {
            return Err(self.agent_not_found(agent));
        };
        let Some(versions) = agent.versions()? else { return Ok(Vec::new()) };
        let path = agent.path().join(VERSIONS_DIR);
        let entries = dir::sorted_entries(versions.as_fd()).map_err(|e| StoreError::io("list", &path, e))?;
        let mut stagings = Vec::new();
        for entry in entries {
            let name = entry.name.to_str().ok().and_then(|name| name.strip_suffix(STAGING_SUFFIX));
            let Some(version) = name.and_then(|name| VersionName::try_from(name).ok()) else { continue };
            // One that is gone by now was published or given up meanwhile.
            if let Ok(handle) = dir::open_cstr(versions.as_fd(), &entry.name) {
                let (begun_at, in_use) = (born(handle.as_fd()), is_flocked(handle.as_fd()));
                stagings.push(StagingEntry { version, begun_at, in_use });
            }
        }
        Ok(stagings)
    }
}

/// The published versions of an agent with the time that the manifest gives, in the order of that.
pub(crate) fn dated_versions(agent: &AgentDir) -> Result<Vec<(Option<Timestamp>, Pointer)>, StoreError> {
    let mut dated = Vec::new();
    for pointer in agent.published()? {
        let Some(handle) = agent.open_version(&pointer.version, pointer.place)? else { continue };
        let path = agent.version_path(&pointer.version, pointer.place);
        match crate::read::read_manifest(handle.as_fd(), &path) {
            // No manifest: nobody published this. A legacy store may do without.
            Ok(None) if pointer.place == Place::Versions => {}
            // A damaged manifest is for `verify` to report; the version is still there.
            Ok(None) | Err(_) => dated.push((None, pointer)),
            Ok(Some(manifest)) => dated.push((manifest.created_at, pointer)),
        }
    }
    dated.sort_by(|(at, a), (bt, b)| (at, &a.version).cmp(&(bt, &b.version)));
    Ok(dated)
}

//! The store itself.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::dir::{self, LinkText};
use crate::durable;
use crate::error::{StoreError, is_full};
use crate::layout::{self, AgentDir, CURRENT_LINK};
use crate::lock::AgentLock;
use crate::names::{AgentName, VersionName};
use crate::near::near_names;
use crate::progress::Progress;
use crate::read::{Current, Seen};
use crate::recover;
use crate::staging::Staging;

/// The variable that names the store.
pub const ROOT_VARIABLE: &str = "MODEL_STORE_ROOT";
/// The store where the variable is not set.
pub const DEFAULT_ROOT: &str = "/opt/justnews/models";
/// How long a writer waits for another one before it says who that is.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
/// How often a reader looks again when the version it was sent to has just been retired.
const POINTER_ATTEMPTS: usize = 8;

/// A model store: a directory of agents, each with its versions and the one that is current.
///
/// Cheap to clone; every call looks at the disk anew. What is remembered between calls is the manifest of the
/// version that was current, because a published version never changes.
#[derive(Clone, Debug)]
pub struct ModelStore {
    root: Arc<Path>,
    lock_patience: Duration,
    progress: Progress,
    seen: Arc<RwLock<HashMap<AgentName, Seen>>>,
}

impl ModelStore {
    /// Opens a store. Its root must be there: a typing error must not make a second, empty store.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        layout::open_root(&root)?;
        let root = root.canonicalize().map_err(|e| StoreError::io("open", &root, e))?;
        Ok(Self {
            root: root.into(),
            lock_patience: LOCK_PATIENCE,
            progress: Progress::none(),
            seen: Arc::default(),
        })
    }

    /// Opens a store, making its root (mode 2775, its parents too) where it is missing.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        durable::make_root(&root).map_err(|e| StoreError::io("make the store", &root, e))?;
        Self::open(root)
    }

    /// Opens the store that [`root_from_env`](Self::root_from_env) names.
    pub fn from_env() -> Result<Self, StoreError> {
        Self::open(Self::root_from_env())
    }

    /// `MODEL_STORE_ROOT`, or [`DEFAULT_ROOT`] where that is unset or empty.
    #[must_use]
    pub fn root_from_env() -> PathBuf {
        match std::env::var_os(ROOT_VARIABLE) {
            Some(root) if !root.is_empty() => root.into(),
            _ => DEFAULT_ROOT.into(),
        }
    }

    /// How long a writer waits for another one; 30 seconds unless set.
    #[must_use]
    pub fn with_lock_patience(self, lock_patience: Duration) -> Self {
        Self { lock_patience, ..self }
    }

    /// Who is told about long work, and may stop it.
    #[must_use]
    pub fn with_progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// The canonical absolute path of the store.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The version that `current` points at; `None` where there is no such agent, or nothing is current.
    ///
    /// The link is read once and its directory opened; everything else goes through that handle. Called again
    /// while nothing has moved, this costs three system calls.
    pub fn get_current(&self, agent: &AgentName) -> Result<Option<Current>, StoreError> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner).get(agent).and_then(Seen::again);
        if seen.is_some() {
            return Ok(seen);
        }
        let found = self.look_up_current(agent)?;
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        match found.as_ref().and_then(|current| Seen::note(&self.root, agent, current)) {
            Some(current) => seen.insert(agent.clone(), current),
            None => seen.remove(agent),
        };
        Ok(found)
    }

    fn look_up_current(&self, agent: &AgentName) -> Result<Option<Current>, StoreError> {
        let Some(agent) = AgentDir::open(&self.root, agent)? else {
            return Ok(None);
        };
        let Some(mut pointer) = agent.current()? else {
            return Ok(None);
        };
        for _ in 0..POINTER_ATTEMPTS {
            if let Some(current) = Current::open_at(&agent, &pointer)? {
                return Ok(Some(current));
            }
            // Retired between the look and the opening? Then `current` has moved on.
            match agent.current()? {
                Some(moved) if moved != pointer => pointer = moved,
                _ => break,
            }
        }
        let what = format!(
            "points at {}, which is not there; publish a version, or point it at another with \
             `model-store activate`",
            pointer.version
        );
        Err(StoreError::corrupt(&agent.path().join(CURRENT_LINK), what))
    }

    /// One published version; `None` where there is none.
    pub fn get_version(
        &self,
        agent: &AgentName,
        version: &VersionName,
    ) -> Result<Option<Current>, StoreError> {
        match AgentDir::open(&self.root, agent)? {
            Some(agent) => Current::open_in(&agent, version),
            None => Ok(None),
        }
    }

    /// As [`get_current`](Self::get_current), with an error that names what there is instead.
    pub fn require_current(&self, agent: &AgentName) -> Result<Current, StoreError> {
        if let Some(current) = self.get_current(agent)? {
            return Ok(current);
        }
        let versions = self.versions(agent)?;
        Err(StoreError::NothingCurrent {
            agent: agent.clone(),
            versions: versions.into_iter().map(String::from).collect(),
        })
    }

    /// As [`get_version`](Self::get_version), with an error that names what there is instead.
    pub fn require_version(&self, agent: &AgentName, version: &VersionName) -> Result<Current, StoreError> {
        if let Some(found) = self.get_version(agent, version)? {
            return Ok(found);
        }
        let versions = self.versions(agent)?;
        Err(StoreError::VersionNotFound {
            agent: agent.clone(),
            version: version.clone(),
            near: near_names(version.as_str(), versions.iter().map(VersionName::as_str)),
        })
    }

    /// The error for an agent that is not there, with the names that look like it, or for an alias of such a
    /// one.
    #[must_use]
    pub fn agent_not_found(&self, agent: &AgentName) -> StoreError {
        let target = layout::open_root(&self.root)
            .and_then(|root| layout::alias_target(root.as_fd(), &self.root, agent));
        if let Ok(Some(target)) = target {
            let what = format!("is an alias of {target}, which is not there; remove it, or publish {target}");
            return StoreError::corrupt(&self.root.join(agent.as_str()), what);
        }
        let there = self.agents().unwrap_or_default();
        StoreError::AgentNotFound {
            agent: agent.clone(),
            root: self.root.to_path_buf(),
            near: near_names(agent.as_str(), there.iter().map(|entry| entry.name().as_str())),
        }
    }

    /// Begins a version: makes `<version>.tmp` and gives it to the caller.
    pub fn stage_new(&self, agent: &AgentName, version: &VersionName) -> Result<Staging, StoreError> {
        Staging::make(self, agent, version)
    }

    /// Makes a legacy alias, so that readers of an old name find the agent's new one. Done already is fine.
    pub fn add_alias(&self, alias: &AgentName, target: &AgentName) -> Result<(), StoreError> {
        let Some(canonical) = AgentDir::open(&self.root, target)? else {
            return Err(self.agent_not_found(target));
        };
        let path = self.root.join(alias.as_str());
        let failed = |action, e| StoreError::io(action, &path, e);
        let root = layout::open_root(&self.root)?;
        match dir::read_link(root.as_fd(), &layout::c_name(alias.as_str())) {
            Ok(LinkText::Missing) => {}
            Ok(LinkText::To(there)) if there == canonical.name().as_str() => return Ok(()),
            Ok(_) => {
                return Err(StoreError::corrupt(
                    &path,
                    "is there already and no alias of that agent; move it away first",
                ));
            }
            Err(e) => return Err(failed("read", e)),
        }
        durable::make_link(canonical.name().as_str(), root.as_fd(), alias.as_str())
            .and_then(|()| durable::sync_link(root.as_fd()))
            .map_err(|e| failed("make the alias", e))
    }

    /// Locks an agent for a mutation and clears what dead writers left. `None` where the agent was removed
    /// meanwhile.
    pub(crate) fn lock(&self, agent: &AgentDir) -> Result<Option<AgentLock>, StoreError> {
        self.lock_unless(agent, |_| false)
    }

    /// As [`lock`](Self::lock), for retiring versions: a disk that has no room for what the history lacks is
    /// no reason not to make room.
    pub(crate) fn lock_to_collect(&self, agent: &AgentDir) -> Result<Option<AgentLock>, StoreError> {
        self.lock_unless(agent, |e| matches!(e, StoreError::Io { source, .. } if is_full(source)))
    }

    fn lock_unless(
        &self,
        agent: &AgentDir,
        is_passed_over: impl Fn(&StoreError) -> bool,
    ) -> Result<Option<AgentLock>, StoreError> {
        let Some(lock) = AgentLock::acquire(agent, self.lock_patience, &self.progress)? else {
            return Ok(None);
        };
        match recover::clear_leftovers(agent, &lock) {
            Err(e) if !is_passed_over(&e) => Err(e),
            _ => Ok(Some(lock)),
        }
    }
}

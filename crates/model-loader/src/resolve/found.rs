//! What a search gives: where the model is, where its adapter is, and what keeps both from being retired.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model_store::{AgentName, Current, Digest, Lease, Manifest, ModelStore, StoreError, VersionName};
use serde::Serialize;

use crate::LoadError;

/// Where a model was found. Clones share the lease, which lasts as long as any of them.
#[derive(Debug, Clone, Serialize)]
pub struct ResolvedModel {
    pub(super) agent: String,
    pub(super) path: PathBuf,
    pub(super) source: Source,
    pub(super) base_ref: Option<String>,
    pub(super) adapter: Option<ResolvedAdapter>,
    #[serde(skip)]
    pub(super) held: Option<Arc<Held>>,
}

/// Where the adapter is that the agent map, or the caller, puts on a model. Clones share the lease.
#[derive(Debug, Clone, Serialize)]
pub struct ResolvedAdapter {
    pub(super) name: Option<String>,
    pub(super) path: PathBuf,
    pub(super) source: Source,
    /// The folder as the caller named it, when it was the caller.
    #[serde(skip)]
    pub(super) asked: Option<PathBuf>,
    #[serde(skip)]
    pub(super) held: Option<Arc<Held>>,
}

/// A version that is open and leased: it is not retired as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) store: ModelStore,
    pub(crate) current: Current,
    /// None where the file system gives no leases.
    pub(super) _lease: Option<Lease>,
}

/// A folder that was found, before it is known what for.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) path: PathBuf,
    pub(super) source: Source,
    pub(super) held: Option<Arc<Held>>,
}

/// The kind of place a model came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Source {
    /// A published version of the model store.
    Store {
        /// The store's root.
        root: PathBuf,
        /// The agent that the version is of: another one than asked for where the agent map says so.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// Its manifest's checksum.
        checksum: Digest,
    },
    /// A folder below the store's root that belongs to no version: it has no checksum, and nothing keeps it.
    StoreFolder {
        /// The store's root.
        root: PathBuf,
    },
    /// A folder that the caller, or the agent map, named.
    Folder,
    /// The local Hub cache.
    HubCache {
        /// The model.
        model_id: String,
        /// The commit of its files.
        commit: String,
    },
    /// The Hub, which was asked now; its files are in the local cache since.
    Hub {
        /// The model.
        model_id: String,
        /// The commit of its files.
        commit: String,
    },
}

impl Source {
    /// Its name, as logs have it: `store`, `store-folder`, `folder`, `hub-cache` or `hub`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Store { .. } => "store",
            Self::StoreFolder { .. } => "store-folder",
            Self::Folder => "folder",
            Self::HubCache { .. } => "hub-cache",
            Self::Hub { .. } => "hub",
        }
    }

    fn version(&self) -> Option<&VersionName> {
        match self {
            Self::Store { version, .. } => Some(version),
            _ => None,
        }
    }

    fn checksum(&self) -> Option<Digest> {
        match self {
            Self::Store { checksum, .. } => Some(*checksum),
            _ => None,
        }
    }
}

impl ResolvedModel {
    /// The agent that was asked for.
    #[must_use]
    pub fn agent(&self) -> &str {
        &self.agent
    }

    /// The folder with `config.json` or `modules.json`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it came from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The version, when it came from the store.
    #[must_use]
    pub fn version(&self) -> Option<&VersionName> {
        self.source.version()
    }

    /// The version's checksum, when it came from the store.
    #[must_use]
    pub fn checksum(&self) -> Option<Digest> {
        self.source.checksum()
    }

    /// The version's manifest, when it came from the store.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.held.as_ref().map(|held| held.current.manifest())
    }

    /// The name in the agent map's `base_models`, when the map led to it.
    #[must_use]
    pub fn base_ref(&self) -> Option<&str> {
        self.base_ref.as_deref()
    }

    /// The adapter that the caller, else the agent map, puts on this model; a loader that cannot merge one says so.
    #[must_use]
    pub fn adapter(&self) -> Option<&ResolvedAdapter> {
        self.adapter.as_ref()
    }

    /// The versions that must be what was published: the model's and its adapter's, each once.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Arc<Held>> {
        let adapter = self.adapter.as_ref().and_then(|adapter| adapter.held.as_ref());
        let path = |held: &Held| held.current.path().to_owned();
        let own = self.held.as_ref();
        own.into_iter().chain(adapter.filter(|adapter| own.is_none_or(|own| path(own) != path(adapter))))
    }

    /// Its folder, or its adapter's, if that is of no version of a store.
    pub(crate) fn outside_versions(&self) -> Option<&Path> {
        match &self.adapter {
            _ if self.held.is_none() => Some(&self.path),
            Some(adapter) if adapter.held.is_none() => Some(&adapter.path),
            _ => None,
        }
    }

    /// Whether this is the folder of an adapter that was asked for, found as one may be.
    pub(crate) fn has_adapter_asked_for(&self, folder: &Path) -> bool {
        self.adapter.as_ref().is_some_and(|adapter| adapter.asked.as_deref() == Some(folder))
    }

    /// An error where its version, or its adapter's, is quarantined.
    pub(crate) fn refuse_quarantined(&self) -> Result<(), LoadError> {
        for current in self.held().map(|held| &held.current) {
            if let Some(quarantine) = current.quarantine()? {
                let (agent, version) = (current.agent().clone(), current.version().clone());
                return Err(StoreError::Quarantined { agent, version, reason: quarantine.reason }.into());
            }
        }
        Ok(())
    }

    /// Whether it lies in the store.
    pub(crate) fn is_in_store(&self) -> bool {
        matches!(self.source, Source::Store { .. } | Source::StoreFolder { .. })
    }

    /// Whether both are the same files: the same place and checksum, with the same adapter.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let adapter = |found: &Self| found.adapter.as_ref().map(|a| (a.path.clone(), a.source.clone()));
        (&self.path, &self.source, adapter(self)) == (&other.path, &other.source, adapter(other))
    }

    /// A short name for people: `analyst/v2`, or the path where there is no version.
    #[must_use]
    pub fn short_name(&self) -> String {
        match &self.source {
            Source::Store { agent, version, .. } => format!("{agent}/{version}"),
            Source::HubCache { model_id, commit } | Source::Hub { model_id, commit } => {
                format!("{model_id}@{commit}")
            }
            Source::StoreFolder { .. } | Source::Folder => self.path.display().to_string(),
        }
    }
}

impl ResolvedAdapter {
    /// Its name in the agent map.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The folder with `adapter_config.json`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it came from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The version that it lies in, when it came from one.
    #[must_use]
    pub fn version(&self) -> Option<&VersionName> {
        self.source.version()
    }

    /// That version's checksum.
    #[must_use]
    pub fn checksum(&self) -> Option<Digest> {
        self.source.checksum()
    }
}

impl fmt::Display for ResolvedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agent, path, source, .. } = self;
        match source {
            Source::Store { agent: owner, version, checksum, .. } => {
                if agent != owner.as_str() {
                    write!(f, "{agent}: ")?;
                }
                write!(f, "{owner}/{version} (checksum {checksum}) from the store: {}", path.display())?;
            }
            Source::StoreFolder { .. } => {
                write!(f, "{agent} from a folder of the store, without a version: {}", path.display())?;
            }
            Source::Folder => write!(f, "{agent} from a folder: {}", path.display())?,
            Source::HubCache { model_id, commit } => {
                write!(f, "{agent}: {model_id} at {commit} from the Hub cache: {}", path.display())?;
            }
            Source::Hub { model_id, commit } => {
                write!(f, "{agent}: {model_id} at {commit} from the Hub, now in {}", path.display())?;
            }
        }
        match &self.adapter {
            Some(adapter) => write!(f, ", with the adapter {adapter}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ResolvedAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}: ")?;
        }
        if let Source::Store { agent, version, .. } = &self.source {
            write!(f, "{agent}/{version}: ")?;
        }
        write!(f, "{}", self.path.display())
    }
}

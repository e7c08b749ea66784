//! Everything that is served.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use model_store::{ModelStore, StoreError};

use crate::folder::Folder;
use crate::route::MAIN;
use crate::snapshot::Snapshot;
use crate::store;

/// The folders and the store.
#[derive(Debug, Default)]
pub(crate) struct Catalogue {
    folders: Vec<Folder>,
    store: Option<ModelStore>,
}

/// What is to be served cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// A folder of models.
    #[error("cannot serve the models in {}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A model in a folder.
    #[error("cannot read the model {id}")]
    Model {
        /// The model.
        id: String,
        /// Why not.
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was found of a model.
#[derive(Debug)]
pub(crate) enum Found {
    /// The model at the revision.
    Snapshot(Snapshot),
    /// The model, but no such revision.
    NoRevision,
    /// No such model.
    NoModel,
}

impl Catalogue {
    /// `restricted` models are in no other model's files.
    pub(crate) fn open(
        folders: &[PathBuf],
        store: Option<&Path>,
        restricted: &BTreeSet<String>,
    ) -> Result<Self, CatalogueError> {
        let open = |path: &PathBuf| {
            Folder::open(path, restricted.clone())
                .map_err(|source| CatalogueError::Folder { path: path.clone(), source })
        };
        Ok(Self {
            folders: folders.iter().map(open).collect::<Result<_, _>>()?,
            store: store.map(ModelStore::open).transpose()?,
        })
    }

    /// Hashes what will be asked for, so that no client waits for it, and gives the names of the models.
    pub(crate) fn index(&self) -> Result<Vec<String>, CatalogueError> {
        let models = self.models()?;
        for id in models.iter().filter(|id| store::agent_of(id).is_none() || self.store.is_none()) {
            for folder in &self.folders {
                let failed = |source| CatalogueError::Model { id: id.clone(), source };
                for revision in folder.revisions(id).map_err(failed)? {
                    tracing::info!(model = %id, %revision, "hashing");
                    folder.snapshot(id, &revision).map_err(failed)?;
                }
            }
        }
        Ok(models)
    }

    /// The names of the models, sorted.
    pub(crate) fn models(&self) -> Result<Vec<String>, CatalogueError> {
        let mut models = match &self.store {
            Some(store) => store::models(store)?,
            None => Vec::new(),
        };
        for folder in &self.folders {
            let failed = |source| CatalogueError::Folder { path: folder.root().to_owned(), source };
            models.extend(folder.models().map_err(failed)?);
        }
        models.sort_unstable();
        models.dedup();
        Ok(models)
    }

    /// What a model is called that is asked for by an alias of the store; `None` if this is no alias.
    pub(crate) fn meant_by(&self, id: &str) -> Result<Option<String>, CatalogueError> {
        match (&self.store, store::agent_of(id)) {
            (Some(store), Some(agent)) => Ok(store::meant_by(store, &agent)?),
            _ => Ok(None),
        }
    }

    /// A model at a branch, tag, version or commit. Where a folder and the store both have it, the folder's.
    pub(crate) fn find(&self, id: &str, revision: &str) -> Result<Found, CatalogueError> {
        for folder in &self.folders {
            let failed = |source| CatalogueError::Model { id: id.to_owned(), source };
            let revisions = folder.revisions(id).map_err(failed)?;
            if revisions.is_empty() {
                continue;
            }
            if revisions.iter().any(|known| known == revision) {
                return folder.snapshot(id, revision).map_err(failed).map(Found::Snapshot);
            }
            for known in revisions {
                let snapshot = folder.snapshot(id, &known).map_err(failed)?;
                if snapshot.commit == revision {
                    return Ok(Found::Snapshot(snapshot));
                }
            }
            return Ok(Found::NoRevision);
        }
        let (Some(store), Some(agent)) = (&self.store, store::agent_of(id)) else {
            return Ok(Found::NoModel);
        };
        match store::snapshot(store, &agent, revision) {
            Ok(Some(snapshot)) => Ok(Found::Snapshot(snapshot)),
            Ok(None) if revision == MAIN => Ok(Found::NoModel),
            Ok(None) => Ok(Found::NoRevision),
            Err(StoreError::AgentNotFound { .. }) => Ok(Found::NoModel),
            Err(error) => Err(error.into()),
        }
    }
}

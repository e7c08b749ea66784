//! The read path: one look at `current`, one open directory, everything else beneath it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde_json::Map;

use crate::digest::{Digest, checksum_of_listing};
use crate::dir;
use crate::error::StoreError;
use crate::hash::hash_all;
use crate::layout::{AgentDir, Place, Pointer};
use crate::manifest::Manifest;
use crate::names::{AgentName, MANIFEST_FILE, PayloadPath, VersionName};
use crate::payload::Payload;
use crate::progress::Progress;
use crate::transfer::Links;

/// A manifest is text about files; nobody has one bigger than this.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 64 * 1024 * 1024;
/// How long a lease waits for a writer that is just leaving the version.
const LEASE_PATIENCE: Duration = Duration::from_secs(2);

/// An open, published version.
///
/// It keeps the directory open, so what it gives belongs to this version whatever `current` points at by now.
/// Clones share the handle.
#[derive(Clone, Debug)]
pub struct Current(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    agent: AgentName,
    version: VersionName,
    place: Place,
    path: PathBuf,
    handle: OwnedFd,
    manifest: Manifest,
}

impl Current {
    /// Follows a pointer; `None` where the version is not there.
    pub(crate) fn open_at(agent: &AgentDir, pointer: &Pointer) -> Result<Option<Self>, StoreError> {
        let Pointer { version, place } = pointer;
        let Some(handle) = agent.open_version(version, *place)? else {
            return Ok(None);
        };
        let path = agent.version_path(version, *place);
        let manifest = match read_manifest(handle.as_fd(), &path)? {
            Some(manifest) => manifest,
            None if *place == Place::Legacy => counted(handle.as_fd(), &path, version)?,
            None => {
                let what =
                    "has no manifest.json, so it was never published; publish it again under another name";
                return Err(StoreError::corrupt(&path, what));
            }
        };
        let inner = Inner {
            agent: agent.name().clone(),
            version: version.clone(),
            place: *place,
            path,
            handle,
            manifest,
        };
        Ok(Some(Self(Arc::new(inner))))
    }

    /// The canonical agent, where it was asked for by an alias too.
    #[must_use]
    pub fn agent(&self) -> &AgentName {
        &self.0.agent
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> &VersionName {
        &self.0.version
    }

    /// The absolute path of the version itself; no part of it is `current`.
    ///
    /// For libraries that want a path. What must not change under the reader's hands is opened with
    /// [`open`](Self::open).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The manifest. A legacy version that has none gets one counted from its files.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// The manifest's checksum.
    #[must_use]
    pub fn checksum(&self) -> Digest {
        self.0.manifest.checksum
    }

    /// Whether the version lies where the old toy script put it, `<agent>/<version>`.
    #[must_use]
    pub fn is_legacy_layout(&self) -> bool {
        self.0.place == Place::Legacy
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.0.handle.as_fd()
    }

    /// Opens a payload file beneath the version's own handle. Links are followed as long as they stay in the
    /// version.
    pub fn open(&self, path: &PayloadPath) -> Result<File, StoreError> {
        let failed = |e| StoreError::io("open", &self.0.path.join(path.as_path()), e);
        let file = dir::open_beneath(self.handle(), path.as_path()).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_file() {
            return Ok(file);
        }
        Err(StoreError::corrupt(&self.0.path.join(path.as_path()), "is not a file"))
    }

    /// Keeps the version from being retired for as long as the lease lives.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        let failed = |e: Errno| StoreError::io("lease", &self.0.path, e);
        // A lock belongs to an open file description: the lease needs one of its own.
        let handle = dir::open(self.handle(), ".").map_err(|e| StoreError::io("lease", &self.0.path, e))?;
        let started = Instant::now();
        loop {
            match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockShared) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if started.elapsed() < LEASE_PATIENCE => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Errno::WOULDBLOCK) => {
                    let holder = crate::holder::flock_holder(handle.as_fd()).map(Box::new);
                    let what = format!("{}/{}", self.agent(), self.version());
                    return Err(StoreError::Busy { what, holder, waited: started.elapsed() });
                }
                Err(e) => return Err(failed(e)),
            }
        }
        // It may have been retired between opening and leasing.
        let still_there = dir::open_path(&self.0.path)
            .and_then(|there| dir::same(there.as_fd(), handle.as_fd()))
            .unwrap_or(false);
        if still_there {
            return Ok(Lease { _handle: handle });
        }
        Err(StoreError::VersionNotFound {
            agent: self.agent().clone(),
            version: self.version().clone(),
            near: Vec::new(),
        })
    }
}

/// A shared lock on a version: retention leaves a leased version alone.
#[must_use = "the lease ends when this is dropped"]
#[derive(Debug)]
pub struct Lease {
    _handle: OwnedFd,
}

/// Reads a version's manifest; `None` where there is none.
pub(crate) fn read_manifest(version: BorrowedFd<'_>, path: &Path) -> Result<Option<Manifest>, StoreError> {
    let path = path.join(MANIFEST_FILE);
    let failed = |e| StoreError::io("read", &path, e);
    let file = match dir::open_beneath(version, Path::new(MANIFEST_FILE)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut json = Vec::new();
    file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut json).map_err(failed)?;
    if json.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(StoreError::corrupt(&path, "is larger than 64 MiB"));
    }
    Manifest::from_json(&json).map(Some).map_err(|e| {
        StoreError::corrupt(
            &path,
            format!("is not a manifest: {e}; restore the version from a backup, or publish it again"),
        )
    })
}

/// The manifest that a legacy version without one would have, from its files as they are now.
fn counted(handle: BorrowedFd<'_>, path: &Path, version: &VersionName) -> Result<Manifest, StoreError> {
    let payload = Payload::scan(handle, Links::Keep).map_err(|e| StoreError::io("read", path, e))?;
    let paths = payload.files.into_iter().map(|file| file.path).collect();
    let files = hash_all(handle, path, paths, &Progress::none())?;
    Ok(Manifest {
        version: version.clone(),
        checksum: checksum_of_listing(&files),
        metadata: Map::new(),
        format: None,
        checksum_algorithm: None,
        agent: None,
        created_at: None,
        files,
        links: payload.links,
        extra: Map::new(),
    })
}

//! The read path: one look at `current`, one open directory, everything else beneath it.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::Map;

use crate::digest::{Digest, checksum_of_listing};
use crate::dir;
use crate::error::StoreError;
use crate::hash::hash_all;
use crate::layout::{AgentDir, CURRENT_LINK, Place, Pointer, VERSIONS_DIR};
use crate::lock::Flock;
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
    about: Arc<About>,
    handle: OwnedFd,
}

/// What is known of a version without having it open.
#[derive(Debug)]
struct About {
    agent: AgentName,
    /// The agent's directory: what lies beside the versions.
    agent_path: PathBuf,
    version: VersionName,
    place: Place,
    path: PathBuf,
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
        let about = About {
            agent: agent.name().clone(),
            agent_path: agent.path().to_owned(),
            version: version.clone(),
            place: *place,
            path,
            manifest,
        };
        Ok(Some(Self(Arc::new(Inner { about: Arc::new(about), handle }))))
    }

    /// Opens a version by its name, wherever it lies in its agent.
    pub(crate) fn open_in(agent: &AgentDir, version: &VersionName) -> Result<Option<Self>, StoreError> {
        for place in [Place::Versions, Place::Legacy] {
            if let Some(found) = Self::open_at(agent, &Pointer { version: version.clone(), place })? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn about(&self) -> &About {
        &self.0.about
    }

    /// What a pointer to this version says.
    pub(crate) fn pointer(&self) -> Pointer {
        Pointer { version: self.version().clone(), place: self.about().place }
    }

    /// The directory of the agent.
    pub(crate) fn agent_path(&self) -> &Path {
        &self.about().agent_path
    }

    /// Whether every file is there in the size that the manifest says. Reads no file: this is what a pointer
    /// is moved on, [`verify`](crate::ModelStore::verify) is what compares the bytes.
    pub(crate) fn check_sizes(&self) -> Result<(), StoreError> {
        for entry in &self.manifest().files {
            let path = || self.path().join(entry.path.as_path());
            let what = match dir::stat_payload(self.handle(), entry.path.as_path()) {
                Ok(stat) if u64::try_from(stat.st_size) == Ok(entry.size) => continue,
                Ok(stat) => format!("has {} bytes, published were {}", stat.st_size, entry.size),
                Err(e) if e.kind() == io::ErrorKind::NotFound => "is missing".to_owned(),
                Err(e) => return Err(StoreError::io("look at", &path(), e)),
            };
            let next = format!("`model-store repair {} {}` may mend it", self.agent(), self.version());
            return Err(StoreError::corrupt(&path(), format!("{what}: the version is damaged; {next}")));
        }
        Ok(())
    }

    /// The canonical agent, where it was asked for by an alias too.
    #[must_use]
    pub fn agent(&self) -> &AgentName {
        &self.about().agent
    }

    /// The version.
    #[must_use]
    pub fn version(&self) -> &VersionName {
        &self.about().version
    }

    /// The absolute path of the version itself; no part of it is `current`.
    ///
    /// For libraries that want a path. What must not change under the reader's hands is opened with
    /// [`open`](Self::open).
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.about().path
    }

    /// The manifest. A legacy version that has none gets one counted from its files.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.about().manifest
    }

    /// The manifest's checksum.
    #[must_use]
    pub fn checksum(&self) -> Digest {
        self.about().manifest.checksum
    }

    /// Whether the version lies where the old toy script put it, `<agent>/<version>`.
    #[must_use]
    pub fn is_legacy_layout(&self) -> bool {
        self.about().place == Place::Legacy
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.0.handle.as_fd()
    }

    /// Opens a payload file beneath the version's own handle. Links are followed as long as they stay in the
    /// version.
    pub fn open(&self, path: &PayloadPath) -> Result<File, StoreError> {
        let failed = |e| StoreError::io("open", &self.path().join(path.as_path()), e);
        let file = dir::open_beneath(self.handle(), path.as_path()).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_file() {
            return Ok(file);
        }
        Err(StoreError::corrupt(&self.path().join(path.as_path()), "is not a file"))
    }

    /// Keeps the version from being retired for as long as the lease lives.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        let failed = |e: Errno| StoreError::io("lease", self.path(), e);
        // A lock belongs to an open file description: the lease needs one of its own.
        let handle = dir::open(self.handle(), ".").map_err(|e| StoreError::io("lease", self.path(), e))?;
        let started = Instant::now();
        let lock = Flock::shared(handle, LEASE_PATIENCE).map_err(failed)?.map_err(|handle| {
            let holder = crate::holder::flock_holder(handle.as_fd()).map(Box::new);
            let what = format!("{}/{}", self.agent(), self.version());
            StoreError::Busy { what, holder, waited: started.elapsed() }
        })?;
        // It may have been retired between opening and leasing.
        let still_there = dir::open_path(self.path())
            .and_then(|there| dir::same(there.as_fd(), lock.as_fd()))
            .unwrap_or(false);
        if still_there {
            return Ok(Lease { _lock: lock });
        }
        Err(StoreError::VersionNotFound {
            agent: self.agent().clone(),
            version: self.version().clone(),
            near: Vec::new(),
        })
    }
}

/// What one look at `current` found, kept without the directory open: an open handle would keep retention
/// away from a version that nobody uses any more.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    link_path: CString,
    link_text: CString,
    version_path: CString,
    identity: Identity,
    about: Arc<About>,
}

/// A directory and its state. The time of its last change tells it from a later one with the same number.
type Identity = (u64, u64, i64, u64);

fn identity(dir: BorrowedFd<'_>) -> Result<Identity, Errno> {
    let stat = rustix::fs::fstat(dir)?;
    Ok((stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec))
}

impl Seen {
    /// Notes what `<root>/<asked>/current` led to. Only the plain relative link is worth it.
    pub(crate) fn note(root: &Path, asked: &AgentName, current: &Current) -> Option<Self> {
        let about = current.0.about.clone();
        if about.place != Place::Versions {
            return None;
        }
        let text = format!("{VERSIONS_DIR}/{}", about.version);
        let agent = root.join(asked.as_str());
        let c_path = |path: PathBuf| CString::new(path.into_os_string().into_encoded_bytes()).ok();
        Some(Self {
            link_path: c_path(agent.join(CURRENT_LINK))?,
            version_path: c_path(agent.join(&text))?,
            link_text: CString::new(text).ok()?,
            identity: identity(current.handle()).ok()?,
            about,
        })
    }

    /// The version again, if `current` still leads to that very directory. Three system calls.
    pub(crate) fn again(&self) -> Option<Current> {
        let text = rustix::fs::readlink(&*self.link_path, Vec::with_capacity(256)).ok()?;
        if text != self.link_text {
            return None;
        }
        let handle = dir::open_cstr(rustix::fs::CWD, &self.version_path).ok()?;
        let same = identity(handle.as_fd()) == Ok(self.identity);
        same.then(|| Current(Arc::new(Inner { about: self.about.clone(), handle })))
    }
}

/// A shared lock on a version: retention leaves a leased version alone.
#[must_use = "the lease ends when this is dropped"]
#[derive(Debug)]
pub struct Lease {
    _lock: Flock<OwnedFd>,
}

/// Reads a version's manifest; `None` where there is none.
pub(crate) fn read_manifest(version: BorrowedFd<'_>, path: &Path) -> Result<Option<Manifest>, StoreError> {
    let Some(json) = read_manifest_text(version, path)? else { return Ok(None) };
    Manifest::from_json(&json).map(Some).map_err(|e| {
        StoreError::corrupt(
            &path.join(MANIFEST_FILE),
            format!("is not a manifest: {e}; restore the version from a backup, or publish it again"),
        )
    })
}

/// The bytes of a version's manifest; `None` where there is none.
pub(crate) fn read_manifest_text(
    version: BorrowedFd<'_>,
    path: &Path,
) -> Result<Option<Vec<u8>>, StoreError> {
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
    Ok(Some(json))
}

/// The manifest that a legacy version without one would have, from its files as they are now.
fn counted(handle: BorrowedFd<'_>, path: &Path, version: &VersionName) -> Result<Manifest, StoreError> {
    let payload = Payload::scan(handle, Links::Keep).map_err(|e| StoreError::io("read", path, e))?;
    let files = hash_all(handle, path, payload.files, &Progress::none())?;
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

//! The staging directory: a version in the making, owned by one writer.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::digest::Hasher;
use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::layout::{AgentDir, LOCK_FILE, Place, VERSIONS_DIR};
use crate::lock::{AgentLock, try_flock};
use crate::manifest::FileEntry;
use crate::names::{AgentName, PayloadPath, VersionName};
use crate::payload::Stamp;
use crate::store::ModelStore;

const WRITE_BUFFER_BYTES: usize = 256 * 1024;

/// A version in the making: the directory `<version>.tmp`, which this value owns.
///
/// It holds a `flock` on the directory, so a staging whose writer died is recognised and cleared by the next writer.
/// [`finalize`](Self::finalize) publishes it. Several threads may write into it at once.
#[must_use = "the staging directory and everything in it is removed when this is dropped"]
#[derive(Debug)]
pub struct Staging {
    pub(crate) store: ModelStore,
    pub(crate) agent: AgentDir,
    pub(crate) version: VersionName,
    pub(crate) versions: OwnedFd,
    pub(crate) handle: OwnedFd,
    path: PathBuf,
    /// What the directory is called now; `None` once it is nobody's to remove.
    pub(crate) name: Option<String>,
    /// Whether the agent came into being for this staging.
    made_agent: bool,
    known: Mutex<HashMap<PayloadPath, Known>>,
}

/// A file whose digest is known because its bytes came through this staging.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) entry: FileEntry,
    pub(crate) stamp: Stamp,
    /// Whether it is another name of a published version's file.
    pub(crate) shared: bool,
}

impl Staging {
    /// Makes the directory and locks it, under the agent's lock: recovery cannot take it for a dead writer's.
    pub(crate) fn make(
        store: &ModelStore,
        name: &AgentName,
        version: &VersionName,
    ) -> Result<Self, StoreError> {
        loop {
            let Some((agent, made_agent)) = AgentDir::open_or_make(store.root(), name)? else {
                continue;
            };
            let Some(_lock) = store.lock(&agent)? else {
                continue;
            };
            let path = agent.path().join(VERSIONS_DIR);
            durable::make_dir(agent.handle(), VERSIONS_DIR)
                .map_err(|e| StoreError::io("make the directory", &path, e))?;
            let versions =
                dir::open(agent.handle(), VERSIONS_DIR).map_err(|e| StoreError::io("open", &path, e))?;
            for place in [Place::Versions, Place::Legacy] {
                if agent.open_version(version, place)?.is_some() {
                    return Err(StoreError::VersionExists {
                        agent: name.clone(),
                        version: version.clone(),
                    });
                }
            }
            let staging_name = version.staging_name();
            let path = path.join(&staging_name);
            let made = durable::make_dir(versions.as_fd(), &staging_name)
                .map_err(|e| StoreError::io("make the directory", &path, e))?;
            let handle =
                dir::open(versions.as_fd(), &staging_name).map_err(|e| StoreError::io("open", &path, e))?;
            let locked = try_flock(handle.as_fd()).map_err(|e| StoreError::io("lock", &path, e))?;
            if !made || !locked {
                return Err(StoreError::Busy {
                    what: format!("the staging of {name}/{version}"),
                    holder: crate::holder::flock_holder(handle.as_fd()).map(Box::new),
                    waited: std::time::Duration::ZERO,
                });
            }
            return Ok(Self {
                store: store.clone(),
                agent,
                version: version.clone(),
                versions,
                handle,
                path,
                name: Some(staging_name),
                made_agent,
                known: Mutex::default(),
            });
        }
    }

    /// The agent it will be a version of.
    #[must_use]
    pub fn agent(&self) -> &AgentName {
        self.agent.name()
    }

    /// The version it will be.
    #[must_use]
    pub fn version(&self) -> &VersionName {
        &self.version
    }

    /// The absolute path of the staging directory. A foreign writer, such as a compiler child, may put files here; it must
    /// have ended before [`finalize`](Self::finalize) is called.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a payload file, and the directories above it. A path that is taken is an error.
    pub fn writer(&self, path: &PayloadPath) -> Result<PayloadWriter<'_>, StoreError> {
        let (parent, file) = self.create(path)?;
        Ok(PayloadWriter {
            staging: self,
            path: path.clone(),
            parent,
            file: Some(BufWriter::with_capacity(WRITE_BUFFER_BYTES, file)),
            hasher: Hasher::default(),
            size: 0,
        })
    }

    /// Writes a whole payload file.
    pub fn write(&self, path: &PayloadPath, bytes: &[u8]) -> Result<FileEntry, StoreError> {
        let mut writer = self.writer(path)?;
        writer
            .write_all(bytes)
            .map_err(|e| self.failed("write", path, e))?;
        writer.finish()
    }

    /// Removes the staging directory and says whether that worked; dropping the staging does the same in silence.
    pub fn discard(mut self) -> Result<(), StoreError> {
        self.remove().map_err(|e| StoreError::io("remove", &self.path, e))
    }

    /// Makes an empty payload file with the directories above it, and opens its directory.
    pub(crate) fn create(&self, path: &PayloadPath) -> Result<(OwnedFd, File), StoreError> {
        let parent = self.parent_of(path)?;
        let file = durable::create_file(parent.as_fd(), path.file_name())
            .map_err(|e| self.failed("make the file", path, e))?;
        Ok((parent, file))
    }

    /// Makes and opens the directory a payload file is to lie in; a link on the way is refused.
    pub(crate) fn parent_of(&self, path: &PayloadPath) -> Result<OwnedFd, StoreError> {
        let open = || -> io::Result<OwnedFd> {
            let mut parent = self.handle.try_clone()?;
            for component in path.parents() {
                durable::make_dir(parent.as_fd(), component)?;
                parent = dir::open(parent.as_fd(), component)?;
            }
            Ok(parent)
        };
        open().map_err(|e| self.failed("make the directory of", path, e))
    }

    /// Remembers the digest of a file that will not be read again.
    pub(crate) fn remember(&self, entry: FileEntry, stamp: Stamp, shared: bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(entry.path.clone(), Known { entry, stamp, shared });
    }

    pub(crate) fn take_known(&self) -> HashMap<PayloadPath, Known> {
        std::mem::take(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn failed(
        &self,
        action: &'static str,
        path: &PayloadPath,
        e: impl Into<io::Error>,
    ) -> StoreError {
        StoreError::io(action, &self.path.join(path.as_path()), e)
    }

    fn remove(&mut self) -> io::Result<()> {
        let Some(name) = self.name.take() else {
            return Ok(());
        };
        durable::remove_tree(self.versions.as_fd(), &crate::layout::c_name(&name))?;
        if self.made_agent {
            self.remove_empty_agent();
        }
        Ok(())
    }

    /// Takes an agent away again that came into being for a staging which came to nothing. Whoever waits for its lock sees
    /// that the lock file is gone, and starts again.
    fn remove_empty_agent(&self) {
        let Ok(Some(_lock)) = AgentLock::acquire(&self.agent, std::time::Duration::ZERO) else {
            return;
        };
        let is_own = |entry: &dir::Entry| *entry.name == *c".lock" || *entry.name == *c"versions";
        let empty = dir::entries(self.agent.handle()).is_ok_and(|entries| entries.iter().all(is_own));
        if empty && durable::remove_empty_dir(self.agent.handle(), VERSIONS_DIR) {
            let _ = durable::remove_file(self.agent.handle(), LOCK_FILE);
            if let Ok(root) = crate::layout::open_root(self.store.root()) {
                durable::remove_empty_dir(root.as_fd(), self.agent.name().as_str());
            }
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// A payload file being written; its bytes are hashed on the way and not read again.
#[must_use = "the file is removed when this is dropped unfinished"]
pub struct PayloadWriter<'a> {
    staging: &'a Staging,
    path: PayloadPath,
    parent: OwnedFd,
    file: Option<BufWriter<File>>,
    hasher: Hasher,
    size: u64,
}

impl PayloadWriter<'_> {
    /// Where the file is within the version.
    #[must_use]
    pub fn path(&self) -> &PayloadPath {
        &self.path
    }

    /// Ends the file; from here it is read-only.
    pub fn finish(mut self) -> Result<FileEntry, StoreError> {
        let entry = FileEntry {
            path: self.path.clone(),
            size: self.size,
            sha256: std::mem::take(&mut self.hasher).finish(),
        };
        let stamp = self
            .flush_and_seal()
            .map_err(|e| self.staging.failed("write", &self.path, e))?;
        self.file = None;
        self.staging.remember(entry.clone(), stamp, false);
        Ok(entry)
    }

    fn flush_and_seal(&mut self) -> io::Result<Stamp> {
        let Some(file) = self.file.as_mut() else {
            return Err(io::Error::other("already finished"));
        };
        file.flush()?;
        durable::seal(file.get_ref().as_fd())?;
        Stamp::of_file(file.get_ref())
    }
}

impl Write for PayloadWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = self.file.as_mut() else {
            return Err(io::Error::other("already finished"));
        };
        let count = file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        self.staging.store.progress().advance(count as u64)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for PayloadWriter<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // What is still buffered must not be written into a file that goes away.
            let _ = file.into_parts();
            let _ = durable::remove_file(self.parent.as_fd(), self.path.file_name());
        }
    }
}

impl std::fmt::Debug for PayloadWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PayloadWriter")
            .field("path", &self.path)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The handle of an open staging, for the modules that read what was staged.
impl AsFd for Staging {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

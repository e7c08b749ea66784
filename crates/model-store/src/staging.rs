//! The staging directory: a version in the making, owned by one writer.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::digest::hash_reader;
use crate::dir;
use crate::durable;
use crate::early::EarlySync;
use crate::error::StoreError;
use crate::holder::flock_holder;
use crate::incoming;
use crate::layout::{AgentDir, LOCK_FILE, Place, VERSIONS_DIR, c_name, open_root};
use crate::lock::{AgentLock, Flock};
use crate::manifest::{FileEntry, LinkEntry};
use crate::names::{AgentName, PayloadPath, RefName, VersionName};
use crate::outside::Taken;
use crate::payload::Stamp;
use crate::progress::Progress;
use crate::store::ModelStore;
use crate::writer::PayloadWriter;

/// What is smaller is durable in a moment.
const EARLY_BYTES: u64 = 1 << 20;

/// A version in the making: the directory `<version>.tmp`, which this value owns.
///
/// It holds a `flock` on the directory, so a staging whose writer died is recognised and cleared by the next
/// writer. [`finalize`](Self::finalize) publishes it. Several threads may write into it at once.
#[must_use = "the staging directory and everything in it is removed when this is dropped"]
#[derive(Debug)]
pub struct Staging {
    pub(crate) store: ModelStore,
    pub(crate) agent: AgentDir,
    pub(crate) version: VersionName,
    pub(crate) versions: OwnedFd,
    handle: Flock<OwnedFd>,
    path: PathBuf,
    /// What the directory is called now; `None` once it is nobody's to remove.
    pub(crate) name: Option<String>,
    /// Whether the agent came into being for this staging.
    made_agent: bool,
    known: Mutex<HashMap<PayloadPath, Known>>,
    /// Files outside that this version is another name of, or will be the only one.
    pub(crate) taken: Mutex<Vec<Taken>>,
    /// Files that have another name among those on their way, which goes once the version is published.
    adopted: Mutex<BTreeSet<PayloadPath>>,
    /// What is being made durable already.
    pub(crate) early: EarlySync,
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
            // Either is missing where another writer has just taken the empty agent away: begin again.
            let Some((agent, made_agent)) = AgentDir::open_or_make(store.root(), name)? else {
                continue;
            };
            let staging = match store.lock(&agent) {
                Ok(Some(_lock)) => Self::make_locked(store, agent, version),
                Ok(None) => continue,
                Err(e) => Err(e),
            };
            return match staging {
                Ok(mut staging) => {
                    staging.made_agent = made_agent;
                    Ok(staging)
                }
                Err(e) => {
                    if made_agent {
                        remove_empty_agent(store, name);
                    }
                    Err(e)
                }
            };
        }
    }

    fn make_locked(store: &ModelStore, agent: AgentDir, version: &VersionName) -> Result<Self, StoreError> {
        let versions_path = agent.path().join(VERSIONS_DIR);
        let staging_name = version.staging_name();
        let path = versions_path.join(&staging_name);
        let made_dir = |path, e| StoreError::io("make the directory", path, e);
        durable::make_dir(agent.handle(), VERSIONS_DIR).map_err(|e| made_dir(&versions_path, e))?;
        let versions =
            dir::open(agent.handle(), VERSIONS_DIR).map_err(|e| StoreError::io("open", &versions_path, e))?;
        for place in [Place::Versions, Place::Legacy] {
            if agent.open_version(version, place)?.is_some() {
                let (agent, version) = (agent.name().clone(), version.clone());
                return Err(StoreError::VersionExists { agent, version });
            }
        }
        let reference = RefName::try_from(version.as_str()).ok();
        if reference.is_some_and(|name| matches!(agent.read_ref(&name), Ok(Some(_)))) {
            let (agent, version) = (agent.name().clone(), version.clone());
            return Err(StoreError::VersionIsRef { agent, version });
        }
        let handle = loop {
            let made = durable::make_dir(versions.as_fd(), &staging_name).map_err(|e| made_dir(&path, e))?;
            let opened = dir::open_if_there(versions.as_fd(), &staging_name);
            // Its writer has just removed it, or somebody who knows of no locks has.
            let Some(handle) = opened.map_err(|e| StoreError::io("open", &path, e))? else { continue };
            let locked = Flock::exclusive_soon(handle).map_err(|e| StoreError::io("lock", &path, e))?;
            let handle = locked.map_err(|handle| StoreError::Busy {
                what: format!("the staging of {}/{version}", agent.name()),
                holder: flock_holder(handle.as_fd()).map(Box::new),
                waited: Duration::ZERO,
            })?;
            if !dir::is_named(versions.as_fd(), &staging_name, handle.as_fd())
                .map_err(|e| StoreError::io("look at", &path, e))?
            {
                continue;
            }
            if made {
                break handle;
            }
            // A dead writer's, which recovery could not clear: if it cannot be now, the error says why.
            durable::remove_tree(versions.as_fd(), &c_name(&staging_name))
                .map_err(|e| StoreError::io("clear what a dead writer left at", &path, e))?;
        };
        Ok(Self {
            store: store.clone(),
            agent,
            version: version.clone(),
            versions,
            handle,
            path,
            name: Some(staging_name),
            made_agent: false,
            known: Mutex::default(),
            taken: Mutex::default(),
            adopted: Mutex::default(),
            early: EarlySync::default(),
        })
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

    /// The absolute path of the staging directory. A foreign writer, such as a compiler child, may put files
    /// here; it must have ended before [`finalize`](Self::finalize) is called.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins a payload file, and the directories above it. A path that is taken is an error.
    pub fn writer(&self, path: &PayloadPath) -> Result<PayloadWriter<'_>, StoreError> {
        PayloadWriter::begin(self, path)
    }

    /// Writes a whole payload file.
    pub fn write(&self, path: &PayloadPath, bytes: &[u8]) -> Result<FileEntry, StoreError> {
        let mut writer = self.writer(path)?;
        writer.write_all(bytes).map_err(|e| self.failed("write", path, e))?;
        writer.finish()
    }

    /// The entry of a file that a foreign writer put here and is done with. It is made read-only, and not read again when the
    /// version is published, unless it changes until then. A file that has another name, through which it could change, is
    /// left as it is; publishing copies it.
    pub fn hash(&self, path: &PayloadPath) -> Result<FileEntry, StoreError> {
        let failed = |e| self.failed("read", path, e);
        let mut file = dir::open_payload(self.dir(), path.as_path()).map_err(failed)?;
        let is_ours = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?.st_nlink == 1;
        if is_ours {
            durable::seal(file.as_fd()).map_err(|e| self.failed("make read-only", path, e))?;
        }
        let stamp = Stamp::of_file(&file).map_err(failed)?;
        let (sha256, size) = hash_reader(&mut file, self.store.progress()).map_err(failed)?;
        let entry = FileEntry { path: path.clone(), size, sha256 };
        if is_ours {
            self.remember(entry.clone(), stamp, false);
        }
        Ok(entry)
    }

    /// Begins to make durable, beside whatever comes next, the larger files that came through this staging until now.
    /// Publishing then has less to wait for; what goes wrong with a write meanwhile is its error.
    pub fn sync_early(&self) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_worth_it = |known: &&Known| !known.shared && known.entry.size >= EARLY_BYTES;
        let files = known.values().filter(is_worth_it).filter_map(|known| {
            let path = &known.entry.path;
            // One that cannot be opened waits for the publish, which says why.
            Some((self.path.join(path.as_str()), dir::open_payload(self.dir(), path.as_path()).ok()?))
        });
        self.early.begin(files.collect());
    }

    /// Removes the staging directory and says whether that worked; dropping the staging does the same in
    /// silence.
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
            let mut parent = self.dir().try_clone_to_owned()?;
            for component in path.parents() {
                durable::make_dir(parent.as_fd(), component)?;
                parent = dir::open(parent.as_fd(), component)?;
            }
            Ok(parent)
        };
        open().map_err(|e| self.failed("make the directory of", path, e))
    }

    /// The staging directory itself.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Remembers the digest of a file that will not be read again.
    pub(crate) fn remember(&self, entry: FileEntry, stamp: Stamp, shared: bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(entry.path.clone(), Known { entry, stamp, shared });
    }

    pub(crate) fn take_known(&self) -> HashMap<PayloadPath, Known> {
        std::mem::take(&mut *self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn note_adopted(&self, path: &PayloadPath) {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
    }

    /// The files whose other name goes away.
    pub(crate) fn adopted(&self) -> BTreeSet<PayloadPath> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a symbolic link of the payload. [`finalize`](Self::finalize) refuses one that leads out of the
    /// version.
    pub fn link(&self, link: &LinkEntry) -> Result<(), StoreError> {
        let parent = self.parent_of(&link.path)?;
        durable::make_link(&link.target, parent.as_fd(), link.path.file_name())
            .map_err(|e| self.failed("make the link", &link.path, e))
    }

    pub(crate) fn failed(
        &self,
        action: &'static str,
        path: &PayloadPath,
        e: impl Into<io::Error>,
    ) -> StoreError {
        StoreError::io(action, &self.path.join(path.as_path()), e)
    }

    /// Whether a name in `versions/` is that of the directory which this value has open and locked. Somebody
    /// who knows of no locks may have put another there.
    pub(crate) fn is_named(&self, name: &str) -> io::Result<bool> {
        dir::is_named(self.versions.as_fd(), name, self.dir())
    }

    fn remove(&mut self) -> io::Result<()> {
        let Some(name) = self.name.take() else {
            return Ok(());
        };
        self.give_back();
        // What is not ours is left alone.
        if self.is_named(&name)? {
            durable::remove_tree(self.versions.as_fd(), &c_name(&name))?;
        }
        if self.made_agent {
            remove_empty_agent(&self.store, self.agent.name());
        }
        Ok(())
    }
}

/// Takes an agent away again that came into being for a staging which came to nothing. Whoever waits for its
/// lock sees that the lock file is gone, and starts again.
fn remove_empty_agent(store: &ModelStore, name: &AgentName) {
    let Ok(Some(agent)) = AgentDir::open_to_write(store.root(), name) else {
        return;
    };
    let Ok(Some(_lock)) = AgentLock::acquire(&agent, Duration::ZERO, &Progress::none()) else {
        return;
    };
    incoming::remove_if_empty(agent.handle());
    let is_own = |entry: &dir::Entry| *entry.name == *c".lock" || *entry.name == *c"versions";
    let only_own = dir::entries(agent.handle()).is_ok_and(|entries| entries.iter().all(is_own));
    let no_version =
        || durable::remove_empty_dir(agent.handle(), VERSIONS_DIR) || matches!(agent.versions(), Ok(None));
    if only_own && no_version() {
        let _ = durable::remove_file(agent.handle(), LOCK_FILE);
        if let Ok(root) = open_root(store.root()) {
            durable::remove_empty_dir(root.as_fd(), name.as_str());
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

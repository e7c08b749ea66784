//! Bytes on their way from another store: `<agent>/.incoming/<sha256>`.
//!
//! A download takes long and its process may be killed, so what came lies outside the staging, which dies with
//! its writer. A name here is a digest: whoever asks for these bytes next goes on where the last one stopped,
//! and nothing is believed that was not hashed again. A file gets a second name in the staging, and loses the
//! one here only when the version is published.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType};

use crate::digest::{CHUNK_BYTES, Digest};
use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::holder::flock_holder;
use crate::layout::INCOMING_DIR;
use crate::lock::{Flock, is_flocked};
use crate::manifest::FileEntry;
use crate::names::PayloadPath;
use crate::payload::Stamp;
use crate::progress::Progress;
use crate::sha256::Hasher;
use crate::staging::Staging;

/// How long a file is kept whose rest nobody asks for: a week.
const KEPT_SECONDS: i64 = 7 * 24 * 3600;

/// The files of an agent that are on their way; this value has them alone.
#[must_use = "others may bring files in when this is dropped"]
#[derive(Debug)]
pub struct Incoming {
    dir: Flock<OwnedFd>,
    path: PathBuf,
    progress: Progress,
}

/// A file on its way: a beginning of the wanted bytes, hashed as far as it goes.
pub struct IncomingFile {
    file: File,
    path: PathBuf,
    wanted: Digest,
    size: u64,
    have: u64,
    is_inherited: bool,
    hasher: Hasher,
}

impl Staging {
    /// Opens what is on its way for this staging's agent. Busy where another process brings files in.
    pub fn incoming(&self) -> Result<Incoming, StoreError> {
        let path = self.agent.path().join(INCOMING_DIR);
        durable::make_dir(self.agent.handle(), INCOMING_DIR)
            .map_err(|e| StoreError::io("make the directory", &path, e))?;
        let handle =
            dir::open(self.agent.handle(), INCOMING_DIR).map_err(|e| StoreError::io("open", &path, e))?;
        let locked = Flock::exclusive_soon(handle).map_err(|e| StoreError::io("lock", &path, e))?;
        let dir = locked.map_err(|handle| StoreError::Busy {
            what: format!("the download for agent {}", self.agent()),
            holder: flock_holder(handle.as_fd()).map(Box::new),
            waited: Duration::ZERO,
        })?;
        Ok(Incoming { dir, path, progress: self.store.progress().uncounted() })
    }

    /// Takes a file that has come whole into the staging. What is not what it was to be is refused.
    pub fn adopt(&self, incoming: IncomingFile, path: &PayloadPath) -> Result<FileEntry, StoreError> {
        incoming.check()?;
        let IncomingFile { file, wanted, size, .. } = incoming;
        let failed = |e| self.failed("take in", path, e);
        durable::seal(file.as_fd()).map_err(failed)?;
        let parent = self.parent_of(path)?;
        durable::hard_link_open(&file, parent.as_fd(), path.file_name()).map_err(failed)?;
        let entry = FileEntry { path: path.clone(), size, sha256: wanted };
        self.remember(entry.clone(), Stamp::of_file(&file).map_err(failed)?, true);
        self.note_adopted(path);
        Ok(entry)
    }
}

impl Incoming {
    /// How much of a file is here already, in bytes; it is not known yet whether they are the right ones.
    #[must_use]
    pub fn have(&self, wanted: &Digest) -> u64 {
        dir::open_file(self.dir.as_fd(), &wanted.to_string())
            .and_then(|file| file.metadata())
            .map_or(0, |meta| meta.len())
    }

    /// Opens a file on its way, begun or not, and hashes what there is of it. The room for the rest is set
    /// aside.
    pub fn file(&self, wanted: Digest, size: u64) -> Result<IncomingFile, StoreError> {
        let name = wanted.to_string();
        let path = self.path.join(&name);
        let failed = |e| StoreError::io("open", &path, e);
        let mut found = match durable::open_to_go_on(self.dir.as_fd(), &name).map_err(failed)? {
            Some(found) => Some(found),
            // Sealed: it has come whole, and may be a version's file by now. It is read and never written.
            None => self.whole(&name, size).map_err(failed)?,
        };
        if found.as_ref().and_then(|file| file.metadata().ok()).is_some_and(|meta| meta.len() > size) {
            found = None;
        }
        let is_inherited = found.is_some();
        let file = match found {
            Some(file) => file,
            None => durable::remove_file(self.dir.as_fd(), &name)
                .and_then(|()| durable::create_to_go_on(self.dir.as_fd(), &name))
                .map_err(failed)?,
        };
        let mut incoming =
            IncomingFile { file, path, wanted, size, have: 0, is_inherited, hasher: Hasher::default() };
        incoming.hash_what_is_there(&self.progress)?;
        incoming.is_inherited = incoming.have > 0;
        if incoming.have == size && incoming.check().is_err() {
            // Not what its name says, and perhaps not to be written: away with it.
            durable::remove_file(self.dir.as_fd(), &name)
                .map_err(|e| StoreError::io("remove", &incoming.path, e))?;
            return self.file(wanted, size);
        }
        if incoming.have < size {
            durable::preallocate(&incoming.file, size)
                .map_err(|e| StoreError::io("make room for", &incoming.path, e))?;
        }
        Ok(incoming)
    }

    /// A sealed file of the right size.
    fn whole(&self, name: &str, size: u64) -> io::Result<Option<File>> {
        match dir::open_file(self.dir.as_fd(), name) {
            Ok(file) if file.metadata()?.len() == size => Ok(Some(file)),
            Ok(_) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Removes every file that nobody wants any more. One that a staging or a version has as well stays there.
    pub fn keep_only(&self, wanted: &HashSet<Digest>) -> Result<(), StoreError> {
        let failed = |e| StoreError::io("clear", &self.path, e);
        for entry in dir::entries(self.dir.as_fd()).map_err(failed)? {
            let name = entry.name.to_string_lossy();
            if !name.parse().is_ok_and(|digest| wanted.contains(&digest)) {
                durable::remove_file(self.dir.as_fd(), &name).map_err(failed)?;
            }
        }
        Ok(())
    }
}

impl IncomingFile {
    /// How many bytes there are.
    #[must_use]
    pub fn have(&self) -> u64 {
        self.have
    }

    /// How many there are to be.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether some of them were there before this value.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    /// Adds bytes at the end.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.have.saturating_add(bytes.len() as u64) > self.size {
            let what = format!("more came than the {} bytes that it has", self.size);
            return Err(StoreError::corrupt(&self.path, what));
        }
        self.file.write_all_at(bytes, self.have).map_err(|e| StoreError::io("write", &self.path, e))?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// Forgets everything that is there.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        durable::truncate(&self.file, 0).map_err(|e| StoreError::io("write", &self.path, e))?;
        self.have = 0;
        self.is_inherited = false;
        self.hasher = Hasher::default();
        Ok(())
    }

    /// Whether what is here is the whole file; the error says what it is instead.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.have != self.size {
            let what = format!("has {} bytes, expected {}", self.have, self.size);
            return Err(StoreError::corrupt(&self.path, what));
        }
        let found = self.hasher.clone().finish();
        if found == self.wanted {
            return Ok(());
        }
        Err(StoreError::corrupt(&self.path, format!("has digest {found}, expected {}", self.wanted)))
    }

    fn hash_what_is_there(&mut self, progress: &Progress) -> Result<(), StoreError> {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut hash = || loop {
            progress.advance(0)?;
            let count = match self.file.read_at(&mut buffer, self.have) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.hasher.update(&buffer[..count]);
            self.have += count as u64;
        };
        hash().map_err(|e| StoreError::io("read", &self.path, e))
    }
}

impl std::fmt::Debug for IncomingFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, size, have, .. } = self;
        f.debug_struct("IncomingFile")
            .field("path", path)
            .field("size", size)
            .field("have", have)
            .finish_non_exhaustive()
    }
}

/// Takes the directory away where nothing is on its way.
pub(crate) fn remove_if_empty(agent: BorrowedFd<'_>) {
    durable::remove_empty_dir(agent, INCOMING_DIR);
}

/// Whether nobody needs a file any more: nobody brings files in, and it has come to a version already, whose
/// process died before it tidied up, or nobody has asked for its rest for a long time.
pub(crate) fn is_abandoned(incoming: BorrowedFd<'_>, entry: &dir::Entry) -> bool {
    let Ok(stat) = rustix::fs::statat(incoming, &*entry.name, AtFlags::SYMLINK_NOFOLLOW) else {
        return false;
    };
    let age = crate::holder::now().as_second().saturating_sub(stat.st_mtime);
    entry.kind == FileType::RegularFile && (stat.st_nlink > 1 || age > KEPT_SECONDS) && !is_flocked(incoming)
}

//! Bringing files into a staging: from outside by copy, from a published version by sharing.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use serde::Serialize;

use crate::copying::Copying;
use crate::digest::{CHUNK_BYTES, Digest, hash_reader};
use crate::dir;
use crate::durable;
use crate::error::{IMPORT, StoreError};
use crate::manifest::FileEntry;
use crate::names::PayloadPath;
use crate::payload::Stamp;
use crate::read::Current;
use crate::sha256::Hasher;
use crate::sharing;
use crate::staging::Staging;
use crate::streams::Stream;

/// What an import does with symbolic links of the folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// Takes a link over that stays within the folder, and refuses one that leaves it.
    #[default]
    Keep,
    /// Copies what a link to a file leads to, wherever that is: a snapshot of the Hub cache is made of such
    /// links.
    Follow,
}

/// How the bytes of a folder come into the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transfer {
    /// Shares what any version of the store has already, and copies the rest, by reflink where the file
    /// system can.
    #[default]
    Auto,
    /// Writes every byte: the version shares its blocks with nothing.
    Copy,
    /// Hard-links the files outside, which become read-only. Whoever may make them writable again can change
    /// the version under its readers' hands: the caller says that nobody will.
    Link,
    /// Shares the blocks of the files outside, or refuses.
    Reflink,
    /// Takes the files over. They disappear from the folder once the version is published for good; until
    /// then, and whatever fails, nothing is lost. Across file systems it copies first. A file that has another
    /// name is copied too, because it could be written to there.
    Move,
}

/// What an import wants to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// What is done with symbolic links.
    pub links: Links,
    /// How the bytes come in.
    pub transfer: Transfer,
}

/// What an import brought in. Each file is counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// The files, sorted by path.
    pub entries: Vec<FileEntry>,
    /// Bytes that a version of the store had already, and that the new one shares.
    pub shared_bytes: u64,
    /// Bytes that were written.
    pub copied_bytes: u64,
    /// Bytes of files that are hard links of those outside, or were that before they were moved.
    pub linked_bytes: u64,
    /// Bytes whose blocks are shared with the files outside.
    pub reflinked_bytes: u64,
}

impl Staging {
    /// Copies a file from outside the store, hashing it on the way. It is never hard-linked: somebody may
    /// still write there. A symbolic link is followed.
    pub fn import(&self, source: &Path, path: &PayloadPath) -> Result<FileEntry, StoreError> {
        let failed = |e| StoreError::io(IMPORT, source, e);
        let file = dir::open_anywhere(source).and_then(regular).map_err(failed)?;
        self.copy(file, source, path)
    }

    /// Takes a file over from a published version of this store: by reflink, else by hard link, else by copy.
    ///
    /// Its bytes are hashed again and compared with that version's manifest, so a rotten file does not
    /// spread.
    pub fn share(&self, from: &Current, path: &PayloadPath) -> Result<FileEntry, StoreError> {
        let source_path = from.path().join(path.as_path());
        let is_ours = from.path().starts_with(self.store.root());
        let expected = from.manifest().file(path).filter(|_| is_ours).map(|entry| entry.sha256);
        // What no manifest of this store vouches for is somebody else's.
        let Some(expected) = expected else {
            return self.import(&source_path, path);
        };
        let source = dir::open_payload(from.handle(), path.as_path())
            .and_then(regular)
            .map_err(|e| StoreError::io("share", &source_path, e))?;
        if !self.clone_or_link(&source, from, path)? {
            let entry = self.copy(source, &source_path, path)?;
            return self.checked(entry, expected, &source_path);
        }
        let hash = || -> io::Result<(FileEntry, Stamp)> {
            let mut file = dir::open_payload(self.dir(), path.as_path())?;
            let (sha256, size) = hash_reader(&mut file, self.store.progress())?;
            Ok((FileEntry { path: path.clone(), size, sha256 }, Stamp::of_file(&file)?))
        };
        let (entry, stamp) = hash().map_err(|e| self.failed("read", path, e))?;
        self.remember(entry.clone(), stamp, true);
        self.checked(entry, expected, &source_path)
    }

    fn checked(&self, entry: FileEntry, expected: Digest, source: &Path) -> Result<FileEntry, StoreError> {
        if entry.sha256 == expected {
            return Ok(entry);
        }
        if let Ok(parent) = self.parent_of(&entry.path) {
            let _ = durable::remove_file(parent.as_fd(), entry.path.file_name());
        }
        let what =
            format!("has digest {}, but its manifest says {expected}: the version is damaged", entry.sha256);
        Err(StoreError::corrupt(source, what))
    }

    /// Lets the new file share its blocks or its inode with a published one; `false` where neither is
    /// possible.
    fn clone_or_link(&self, source: &File, from: &Current, path: &PayloadPath) -> Result<bool, StoreError> {
        let failed = |e| self.failed("share", path, e);
        let (parent, file) = self.create(path)?;
        if durable::reflink(source, &file).map_err(failed)? {
            durable::seal(file.as_fd()).map_err(failed)?;
            return Ok(true);
        }
        drop(file);
        durable::remove_file(parent.as_fd(), path.file_name()).map_err(failed)?;
        let meta = source.metadata().map_err(failed)?;
        if !meta.permissions().readonly() || !sharing::is_all_inside(self, source).map_err(failed)? {
            return Ok(false);
        }
        if durable::hard_link(from.handle(), path.as_path(), parent.as_fd(), path.file_name()).is_err() {
            return Ok(false);
        }
        let linked = dir::open_payload(self.dir(), path.as_path()).map_err(failed)?;
        if dir::same(linked.as_fd(), source.as_fd()).map_err(failed)? {
            return Ok(true);
        }
        durable::remove_file(parent.as_fd(), path.file_name()).map_err(failed)?;
        Ok(false)
    }

    /// Copies an open file, by reflink where the file system can.
    pub(crate) fn copy(
        &self,
        source: File,
        shown: &Path,
        path: &PayloadPath,
    ) -> Result<FileEntry, StoreError> {
        self.parent_of(path)?;
        let failed = |e| StoreError::io("copy", shown, e);
        let progress = self.store.progress();
        if let Some(mut clone) = self.reflinked(&source, path).map_err(failed)? {
            // The clone is hashed, not the source: that may be written to while it is read.
            let read = hash_reader(&mut clone, progress);
            return self.note_hashed(path, &clone, read, false);
        }
        self.ensure_room(source.metadata().iter().map(Metadata::len))?;
        let copy = || {
            let mut copying = Copying::begin(self, source, path, true)?;
            let mut hasher = Hasher::default();
            let mut buffer = vec![0; CHUNK_BYTES];
            let mut size = 0;
            loop {
                let chunk = match copying.read(&mut buffer) {
                    Ok(count) => &buffer[..count],
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                    Err(e) => return Err(e),
                };
                if chunk.is_empty() {
                    break;
                }
                hasher.update(chunk);
                copying.take(chunk)?;
                size += chunk.len() as u64;
                progress.advance(chunk.len() as u64)?;
            }
            let (stamp, _) = copying.finish()?;
            Ok((FileEntry { path: path.clone(), size, sha256: hasher.finish() }, stamp))
        };
        let (entry, stamp) = copy().map_err(failed)?;
        self.remember(entry.clone(), stamp, false);
        Ok(entry)
    }
}

/// A pipe would be waited for, a device read without end: neither is taken for a file.
pub(crate) fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

//! Bringing files into a staging: from outside by copy, from a published version by sharing.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use crate::digest::{Digest, hash_reader, read_chunks};
use crate::dir;
use crate::durable;
use crate::error::{IMPORT, StoreError};
use crate::manifest::FileEntry;
use crate::names::PayloadPath;
use crate::payload::{Payload, Stamp};
use crate::read::Current;
use crate::sha256::Hasher;
use crate::staging::Staging;

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

impl Staging {
    /// Copies a file from outside the store, hashing it on the way. It is never hard-linked: somebody may
    /// still write there. A symbolic link is followed.
    pub fn import(&self, source: &Path, path: &PayloadPath) -> Result<FileEntry, StoreError> {
        let failed = |e| StoreError::io(IMPORT, source, e);
        let file = dir::open_anywhere(source).and_then(regular).map_err(failed)?;
        self.copy(file, source, path)
    }

    /// Imports every file of a folder. A `manifest.json` at its top is left out where it is one of a store,
    /// because the new version gets its own, and refused where it is anything else.
    pub fn import_tree(&self, source: &Path, links: Links) -> Result<Vec<FileEntry>, StoreError> {
        let failed = |e| StoreError::io(IMPORT, source, e);
        let folder = dir::open_path(source).map_err(failed)?;
        let mut payload = Payload::scan(folder.as_fd(), links).map_err(failed)?;
        if payload.has_manifest && crate::read::read_manifest(folder.as_fd(), source).is_err() {
            payload.refuse_manifest();
        }
        if !payload.problems.is_empty() {
            return Err(StoreError::ImportRefused {
                source_dir: source.to_owned(),
                problems: payload.problems,
            });
        }
        let mut entries = Vec::with_capacity(payload.files.len());
        for found in payload.files {
            let shown = source.join(found.path.as_path());
            let opened = match links {
                Links::Keep => dir::open_payload(folder.as_fd(), found.path.as_path()),
                Links::Follow => dir::open_following(folder.as_fd(), found.path.as_path()),
            };
            // It may have become something else since it was looked at.
            let file = opened.and_then(regular).map_err(|e| StoreError::io(IMPORT, &shown, e))?;
            entries.push(self.copy(file, &shown, &found.path)?);
        }
        for link in payload.links {
            let parent = self.parent_of(&link.path)?;
            durable::make_link(&link.target, parent.as_fd(), link.path.file_name())
                .map_err(|e| self.failed("make the link", &link.path, e))?;
        }
        Ok(entries)
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
        if !meta.permissions().readonly() {
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
        mut source: File,
        shown: &Path,
        path: &PayloadPath,
    ) -> Result<FileEntry, StoreError> {
        let (parent, file) = self.create(path)?;
        let copied = copy_hashing(&mut source, &file, self).and_then(|(sha256, size)| {
            durable::seal_like(file.as_fd(), source.as_fd())?;
            Ok((FileEntry { path: path.clone(), size, sha256 }, Stamp::of_file(&file)?))
        });
        match copied {
            Ok((entry, stamp)) => {
                self.remember(entry.clone(), stamp, false);
                Ok(entry)
            }
            Err(e) => {
                let _ = durable::remove_file(parent.as_fd(), path.file_name());
                Err(StoreError::io("copy", shown, e))
            }
        }
    }
}

/// A pipe would be waited for, a device read without end: neither is taken for a file.
fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
}

fn copy_hashing(source: &mut File, mut to: &File, staging: &Staging) -> io::Result<(Digest, u64)> {
    let progress = staging.store.progress();
    if durable::reflink(source, to)? {
        // The clone is hashed, not the source: that may be written to while it is read.
        let clone = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(to)))?;
        return hash_reader(&mut &clone, progress);
    }
    let mut hasher = Hasher::default();
    let size = read_chunks(source, progress, |chunk| {
        hasher.update(chunk);
        to.write_all(chunk)
    })?;
    Ok((hasher.finish(), size))
}

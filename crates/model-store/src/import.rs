//! Bringing a whole folder into a staging.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::copying::Copying;
use crate::digest::Digest;
use crate::dir;
use crate::durable;
use crate::error::{IMPORT, StoreError};
use crate::manifest::{FileEntry, saturating_sum};
use crate::names::PayloadPath;
use crate::outside::Taken;
use crate::payload::{Payload, PayloadFile, Stamp};
use crate::sharing;
use crate::staging::Staging;
use crate::streams::{self, Begun, Work};
use crate::transfer::{ImportOptions, Imported, Links, Transfer, regular};

/// From so many bytes on it matters that a file is begun early, and a core of its own pays.
const BIG_BYTES: u64 = 16 * 1024 * 1024;

/// A folder outside the store, looked at.
#[derive(Debug)]
pub(crate) struct Tree {
    folder: OwnedFd,
    shown: PathBuf,
    links: Links,
    pub(crate) payload: Payload,
}

impl Tree {
    fn look_at(source: &Path, links: Links) -> Result<Self, StoreError> {
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
        Ok(Self { folder, shown: source.to_owned(), links, payload })
    }

    pub(crate) fn handle(&self) -> std::os::fd::BorrowedFd<'_> {
        self.folder.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.shown
    }

    pub(crate) fn path_of(&self, path: &PayloadPath) -> PathBuf {
        self.shown.join(path.as_path())
    }

    /// Opens one of its files, which may have become something else since it was looked at.
    pub(crate) fn open(&self, path: &PayloadPath) -> Result<File, StoreError> {
        let opened = match self.links {
            Links::Keep => dir::open_payload(self.handle(), path.as_path()),
            Links::Follow => dir::open_following(self.handle(), path.as_path()),
        };
        opened.and_then(regular).map_err(|e| StoreError::io(IMPORT, &self.path_of(path), e))
    }
}

impl Staging {
    /// Imports every file of a folder, in parallel. A `manifest.json` at its top is left out where it is one
    /// of a store, because the new version gets its own, and refused where it is anything else.
    ///
    /// What will not fit is refused before its first byte is written. After an error the staging may hold a
    /// part of the folder.
    pub fn import_tree(&self, source: &Path, options: ImportOptions) -> Result<Imported, StoreError> {
        let ImportOptions { links, transfer } = options;
        if (links, transfer) == (Links::Follow, Transfer::Move) {
            let what = "what symbolic links lead to cannot be moved; copy it, or hard-link it";
            return Err(StoreError::io(IMPORT, source, io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let root = self.store.root();
        let overlaps =
            || source.canonicalize().is_ok_and(|source| source.starts_with(root) || root.starts_with(source));
        if matches!(transfer, Transfer::Move | Transfer::Link) && overlaps() {
            let what = "the store itself is there, where nothing is moved or linked; publish it by copy";
            return Err(StoreError::io(IMPORT, source, io::Error::new(io::ErrorKind::InvalidInput, what)));
        }
        let tree = Arc::new(Tree::look_at(source, links)?);
        self.make_dirs_of(&tree)?;
        let mut files: Vec<&PayloadFile> = tree.payload.files.iter().collect();
        // The big ones first; what is small stays in the order in which it lies in the folder.
        files.sort_by_key(|file| {
            std::cmp::Reverse(if file.size_bytes >= BIG_BYTES { file.size_bytes } else { 0 })
        });
        let mut imported = Imported::default();
        let to_copy = match transfer {
            Transfer::Copy => files,
            Transfer::Auto => {
                let rest = sharing::share_known(self, &tree, files, &mut imported)?;
                self.reflink_all(&tree, rest, &mut imported)?
            }
            Transfer::Reflink => {
                let rest = self.reflink_all(&tree, files, &mut imported)?;
                if let Some(first) = rest.first() {
                    let what = "its file system cannot share blocks with the store's; copy it instead";
                    let e = io::Error::new(io::ErrorKind::Unsupported, what);
                    return Err(StoreError::io(IMPORT, &tree.path_of(&first.path), e));
                }
                rest
            }
            Transfer::Link | Transfer::Move => {
                self.link_all(&tree, files, transfer == Transfer::Move, &mut imported)?
            }
        };
        self.ensure_room(to_copy.iter().map(|file| file.size_bytes))?;
        self.copy_all(&tree, &to_copy, transfer == Transfer::Move, &mut imported)?;
        for link in &tree.payload.links {
            self.link(link)?;
        }
        imported.entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(imported)
    }

    /// Makes every directory that a file or link will lie in.
    fn make_dirs_of(&self, tree: &Tree) -> Result<(), StoreError> {
        let files = tree.payload.files.iter().map(|file| &file.path);
        let mut with_files = BTreeSet::new();
        for path in files.chain(tree.payload.links.iter().map(|link| &link.path)) {
            if let Some(parent) = path.as_path().parent().filter(|parent| !with_files.contains(parent)) {
                self.parent_of(path)?;
                with_files.insert(parent);
            }
        }
        Ok(())
    }

    fn reflink_all<'t>(
        &self,
        tree: &'t Arc<Tree>,
        files: Vec<&'t PayloadFile>,
        imported: &mut Imported,
    ) -> Result<Vec<&'t PayloadFile>, StoreError> {
        let work = Reflinking { staging: self, tree, cannot: AtomicBool::new(false) };
        let done = streams::run(&work, &files, self.store.progress())?;
        Ok(sort_out(files, done, &mut imported.entries, &mut imported.reflinked_bytes))
    }

    fn copy_all(
        &self,
        tree: &Arc<Tree>,
        files: &[&PayloadFile],
        moves: bool,
        imported: &mut Imported,
    ) -> Result<(), StoreError> {
        let big = files.iter().take_while(|file| file.size_bytes >= BIG_BYTES).count();
        let write_behind = big < rayon::current_num_threads().max(2);
        let work = CopyingAll { staging: self, tree, write_behind, moves };
        let entries = streams::run(&work, files, self.store.progress())?;
        imported.copied_bytes += saturating_sum(entries.iter().map(|entry| entry.size));
        imported.entries.extend(entries);
        Ok(())
    }
}

/// Parts what was brought in from what still has to be.
pub(crate) fn sort_out<'t>(
    files: Vec<&'t PayloadFile>,
    done: Vec<Option<FileEntry>>,
    entries: &mut Vec<FileEntry>,
    bytes: &mut u64,
) -> Vec<&'t PayloadFile> {
    let mut rest = Vec::new();
    for (file, entry) in files.into_iter().zip(done) {
        match entry {
            Some(entry) => {
                *bytes = bytes.saturating_add(entry.size);
                entries.push(entry);
            }
            None => rest.push(file),
        }
    }
    rest
}

struct CopyingAll<'a> {
    staging: &'a Staging,
    tree: &'a Arc<Tree>,
    write_behind: bool,
    moves: bool,
}

impl<'a> Work for CopyingAll<'a> {
    type Item = &'a PayloadFile;
    type Stream = Copying<'a>;
    type Done = FileEntry;

    fn begin(&self, file: &&'a PayloadFile) -> Result<Begun<Copying<'a>, FileEntry>, StoreError> {
        let source = self.tree.open(&file.path)?;
        let behind = self.write_behind && file.size_bytes >= BIG_BYTES;
        Copying::begin(self.staging, source, &file.path, behind)
            .map(Begun::Stream)
            .map_err(|e| self.staging.failed("write", &file.path, e))
    }

    fn end(
        &self,
        file: &&'a PayloadFile,
        stream: Copying<'a>,
        read: io::Result<(Digest, u64)>,
    ) -> Result<FileEntry, StoreError> {
        let failed = |e| StoreError::io("copy", &self.tree.path_of(&file.path), e);
        let (sha256, size) = read.map_err(failed)?;
        let (stamp, source) = stream.finish().map_err(failed)?;
        let entry = FileEntry { path: file.path.clone(), size, sha256 };
        self.staging.remember(entry.clone(), stamp, false);
        if self.moves {
            self.staging.took(Taken::copied(self.tree, &file.path, source));
        }
        Ok(entry)
    }
}

/// Files that share their blocks with the ones outside.
struct Reflinking<'a> {
    staging: &'a Staging,
    tree: &'a Tree,
    /// Found out with the first file: it is true of the whole folder.
    cannot: AtomicBool,
}

impl<'a> Work for Reflinking<'a> {
    type Item = &'a PayloadFile;
    type Stream = File;
    type Done = Option<FileEntry>;

    fn begin(&self, file: &&'a PayloadFile) -> Result<Begun<File, Option<FileEntry>>, StoreError> {
        if self.cannot.load(Ordering::Relaxed) {
            return Ok(Begun::Done(None));
        }
        let source = self.tree.open(&file.path)?;
        let cloned = self.staging.reflinked(&source, &file.path);
        // The clone is hashed, not the source: that may be written to while it is read.
        if let Some(clone) = cloned.map_err(|e| self.staging.failed("share", &file.path, e))? {
            return Ok(Begun::Stream(clone));
        }
        self.cannot.store(true, Ordering::Relaxed);
        Ok(Begun::Done(None))
    }

    fn end(
        &self,
        file: &&'a PayloadFile,
        clone: File,
        read: io::Result<(Digest, u64)>,
    ) -> Result<Option<FileEntry>, StoreError> {
        self.staging.note_hashed(&file.path, &clone, read, false).map(Some)
    }
}

impl Staging {
    /// A new file with the blocks and the `x` bits of an open one, to be read; `None` where the file systems
    /// cannot.
    pub(crate) fn reflinked(&self, source: &File, path: &PayloadPath) -> io::Result<Option<File>> {
        let executable = rustix::fs::fstat(source)?.st_mode & 0o111;
        let clone = durable::create_beneath(self.dir(), path.as_path(), executable)?;
        let shared = durable::reflink(source, &clone)
            .and_then(|shared| durable::seal_created(clone.as_fd(), executable).map(|_| shared));
        if !matches!(shared, Ok(true)) {
            durable::remove_beneath(self.dir(), path.as_path())?;
        }
        Ok(shared?.then_some(clone))
    }

    /// Remembers a file of the staging that was read to its end; removes it where that failed.
    pub(crate) fn note_hashed(
        &self,
        path: &PayloadPath,
        file: &File,
        read: io::Result<(Digest, u64)>,
        shared: bool,
    ) -> Result<FileEntry, StoreError> {
        let noted = read.and_then(|(sha256, size)| {
            let entry = FileEntry { path: path.clone(), size, sha256 };
            Ok((entry, Stamp::of_file(file)?))
        });
        match noted {
            Ok((entry, stamp)) => {
                self.remember(entry.clone(), stamp, shared);
                Ok(entry)
            }
            Err(e) => {
                let _ = durable::remove_beneath(self.dir(), path.as_path());
                Err(self.failed("read", path, e))
            }
        }
    }
}

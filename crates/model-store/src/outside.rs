//! Files outside the store that the store takes over: hard-linked because the user asked, or moved.
//!
//! A moved file keeps its old name until the version is published for good. Until then a failure gives it its
//! mode back, and from then on only a name is removed that still is of what was taken.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use crate::digest::Digest;
use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::import::{Tree, sort_out};
use crate::manifest::{FileEntry, Manifest};
use crate::names::PayloadPath;
use crate::payload::{PayloadFile, Stamp};
use crate::staging::Staging;
use crate::streams::{self, Begun, Work};
use crate::transfer::Imported;

/// A file outside that was taken over.
#[derive(Debug)]
pub(crate) struct Taken {
    tree: Arc<Tree>,
    path: PayloadPath,
    how: How,
    /// Whether its name outside goes away with the publish.
    moved: bool,
}

#[derive(Debug)]
enum How {
    /// Copied, when it was like this.
    Copied(Stamp),
    /// Linked: it is this inode, and had this mode and group.
    Linked { stamp: Stamp, mode: u32, group: u32 },
}

impl Taken {
    pub(crate) fn copied(tree: &Arc<Tree>, path: &PayloadPath, stamp: Stamp) -> Self {
        Self { tree: tree.clone(), path: path.clone(), how: How::Copied(stamp), moved: true }
    }

    /// Whether the name outside is still of what was taken.
    fn is_there(&self) -> bool {
        let stat = self.tree.open(&self.path).and_then(|file| {
            Stamp::of_file(file).map_err(|e| StoreError::io("look at", &self.tree.path_of(&self.path), e))
        });
        stat.is_ok_and(|now| match self.how {
            How::Copied(stamp) => stamp == now,
            How::Linked { stamp, .. } => stamp.is_same_file(now),
        })
    }

    fn remove(&self) -> bool {
        durable::remove_beneath(self.tree.handle(), self.path.as_path()).is_ok()
    }

    fn give_back(&self) {
        if let How::Linked { stamp, mode, group } = self.how
            && let Ok(file) = self.tree.open(&self.path)
            && Stamp::of_file(&file).is_ok_and(|now| stamp.is_same_file(now))
        {
            // In this order: a change of the group takes bits of the mode away.
            let _ = durable::set_group_if_other(file.as_fd(), group);
            let _ = durable::give_mode_back(file.as_fd(), mode);
        }
    }
}

impl Staging {
    /// The files whose name outside goes away with the publish, and that are the same inode.
    pub(crate) fn moved_by_link(&self) -> BTreeSet<PayloadPath> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let linked = taken.iter().filter(|one| one.moved && matches!(one.how, How::Linked { .. }));
        linked.map(|one| one.path.clone()).collect()
    }

    pub(crate) fn took(&self, taken: Taken) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).push(taken);
    }

    fn all_taken(&self) -> Vec<Taken> {
        std::mem::take(&mut *self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The publish failed: what was taken gets its mode back.
    pub(crate) fn give_back(&self) {
        // A file with two names was taken twice: what it was before the first time is given back last.
        for taken in self.all_taken().into_iter().rev() {
            taken.give_back();
        }
    }

    /// The version is published for good: what was moved loses its name outside. Gives what had to stay.
    pub(crate) fn take_away(&self, manifest: &Manifest) -> Vec<PathBuf> {
        let mut left = Vec::new();
        let mut trees: Vec<Arc<Tree>> = Vec::new();
        let all = self.all_taken();
        let moved = || all.iter().filter(|taken| taken.moved);
        // Looked at before anything is removed: that changes what another name of the same file says.
        let there: Vec<bool> = moved().map(Taken::is_there).collect();
        for (taken, is_there) in moved().zip(there) {
            if manifest.file(&taken.path).is_none() || !is_there || !taken.remove() {
                left.push(taken.tree.path_of(&taken.path));
            }
            if !trees.iter().any(|tree| Arc::ptr_eq(tree, &taken.tree)) {
                trees.push(taken.tree.clone());
            }
        }
        for tree in trees {
            take_away_rest(&tree, manifest);
        }
        left
    }

    /// Makes every file of a folder a hard link of the staging. Gives what has to be copied to be moved.
    pub(crate) fn link_all<'t>(
        &self,
        tree: &'t Arc<Tree>,
        files: Vec<&'t PayloadFile>,
        moves: bool,
        imported: &mut Imported,
    ) -> Result<Vec<&'t PayloadFile>, StoreError> {
        let done = streams::run(&Linking { staging: self, tree, moves }, &files, self.store.progress())?;
        Ok(sort_out(files, done, &mut imported.entries, &mut imported.linked_bytes))
    }
}

/// Links and directories of a moved folder; a directory that something is left in stays.
fn take_away_rest(tree: &Tree, manifest: &Manifest) {
    for link in manifest.links.iter().filter(|link| tree.payload.links.contains(link)) {
        let now = rustix::fs::readlinkat(tree.handle(), link.path.as_path(), Vec::new());
        if now.is_ok_and(|target| target.to_bytes() == link.target.as_bytes()) {
            let _ = durable::remove_beneath(tree.handle(), link.path.as_path());
        }
    }
    let files = manifest.files.iter().map(|file| &file.path);
    let published = files.chain(manifest.links.iter().map(|link| &link.path));
    let taken: BTreeSet<PathBuf> = published
        .flat_map(|path| tree.path_of(path).ancestors().skip(1).map(PathBuf::from).collect::<Vec<_>>())
        .collect();
    // One that was empty already is not in the version, and stays.
    let dirs = tree.payload.dirs.iter().map(|dir| tree.path_of(dir)).filter(|dir| taken.contains(dir));
    for dir in dirs.collect::<BTreeSet<_>>().iter().rev() {
        durable::remove_dir_if_empty(dir);
    }
    durable::remove_dir_if_empty(tree.path());
}

struct Linking<'a> {
    staging: &'a Staging,
    tree: &'a Arc<Tree>,
    moves: bool,
}

impl Linking<'_> {
    /// Links and seals one file; an error leaves nothing behind.
    fn link(&self, file: &PayloadFile, source: &File) -> io::Result<()> {
        let stat = rustix::fs::fstat(source)?;
        if self.moves && stat.st_nlink > 1 {
            return Err(io::Error::other("it has another name, under which it could be written to"));
        }
        if self.moves && stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("it is somebody else's, who could make it writable again"));
        }
        let parent = dir_of(self.staging, &file.path)?;
        let group = rustix::fs::fstat(&parent)?.st_gid;
        durable::hard_link_open(source, parent.as_fd(), file.path.file_name())?;
        let how = How::Linked { stamp: Stamp::of(&stat), mode: stat.st_mode, group: stat.st_gid };
        let taken = Taken { tree: self.tree.clone(), path: file.path.clone(), how, moved: self.moves };
        // As a file that is made there: of the store's group, which may read it.
        let adopted = durable::set_group_if_other(source.as_fd(), group)
            .and_then(|()| durable::seal_like(source.as_fd(), source.as_fd()));
        if let Err(e) = adopted {
            taken.give_back();
            let _ = durable::remove_file(parent.as_fd(), file.path.file_name());
            return Err(e);
        }
        self.staging.took(taken);
        Ok(())
    }
}

fn explained(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::CrossesDevices => {
            io::Error::new(e.kind(), "it is on another file system than the store; copy or move it instead")
        }
        _ => e,
    }
}

/// The directory of the staging that a payload file is to lie in; it is there.
pub(crate) fn dir_of(staging: &Staging, path: &PayloadPath) -> io::Result<OwnedFd> {
    match path.as_path().parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => dir::open_payload_dir(staging.dir(), parent),
        None => staging.dir().try_clone_to_owned(),
    }
}

impl<'a> Work for Linking<'a> {
    type Item = &'a PayloadFile;
    type Stream = File;
    type Done = Option<FileEntry>;

    fn begin(&self, file: &&'a PayloadFile) -> Result<Begun<File, Option<FileEntry>>, StoreError> {
        let source = self.tree.open(&file.path)?;
        match self.link(file, &source) {
            Ok(()) => Ok(Begun::Stream(source)),
            // A move falls back to a copy.
            Err(_) if self.moves => Ok(Begun::Done(None)),
            Err(e) => Err(StoreError::io("hard-link", &self.tree.path_of(&file.path), explained(e))),
        }
    }

    fn end(
        &self,
        file: &&'a PayloadFile,
        source: File,
        read: io::Result<(Digest, u64)>,
    ) -> Result<Option<FileEntry>, StoreError> {
        self.staging.note_hashed(&file.path, &source, read, true).map(Some)
    }
}

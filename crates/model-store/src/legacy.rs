//! The checksum of the old Python helper.
//!
//! One SHA-256 over, for each directory from the top down in the order the file system lists them and for its
//! files by name, the file's path and its bytes. Every file called `manifest.json` is left out. The order of
//! directories makes it fragile: a copy of the same bytes on another disk may list them otherwise.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::FileType;

use crate::digest::{Digest, read_chunks};
use crate::dir;
use crate::error::StoreError;
use crate::names::MANIFEST_FILE;
use crate::progress::Progress;
use crate::sha256::Hasher;

/// What a legacy version adds up to.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) checksum: Digest,
    pub(crate) files: usize,
    pub(crate) bytes: u64,
}

/// Computes the legacy checksum of a version.
pub(crate) fn tally(version: BorrowedFd<'_>, shown: &Path, progress: &Progress) -> Result<Tally, StoreError> {
    let mut walk = Walk { top: version, hasher: Hasher::default(), files: 0, bytes: 0, progress };
    walk.descend(version, shown, Path::new(""))?;
    Ok(Tally { checksum: walk.hasher.finish(), files: walk.files, bytes: walk.bytes })
}

struct Walk<'a> {
    top: BorrowedFd<'a>,
    hasher: Hasher,
    files: usize,
    bytes: u64,
    progress: &'a Progress,
}

impl Walk<'_> {
    fn descend(&mut self, here: BorrowedFd<'_>, shown: &Path, prefix: &Path) -> Result<(), StoreError> {
        let failed = |e| StoreError::io("read", &shown.join(prefix), e);
        let listed = dir::entries(here).map_err(failed)?;
        let (dirs, mut files): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|entry| entry.kind == FileType::Directory);
        files.sort_by(|a, b| a.name.cmp(&b.name));
        for entry in files.iter().filter(|entry| entry.name.to_bytes() != MANIFEST_FILE.as_bytes()) {
            let path = prefix.join(OsStr::from_bytes(entry.name.to_bytes()));
            let failed = |e| StoreError::io("read", &shown.join(&path), e);
            // The helper followed links to files, here as far as they stay in the version, and did not descend
            // into linked directories.
            let mut file = dir::open_beneath(self.top, &path).map_err(failed)?;
            if !file.metadata().map_err(failed)?.is_file() {
                continue;
            }
            self.hasher.update(path.as_os_str().as_bytes());
            self.bytes += self.feed(&mut file).map_err(failed)?;
            self.files += 1;
        }
        for entry in dirs {
            let below = dir::open_cstr(here, &entry.name).map_err(|e| failed(e.into()))?;
            self.descend(below.as_fd(), shown, &prefix.join(OsStr::from_bytes(entry.name.to_bytes())))?;
        }
        Ok(())
    }

    fn feed(&mut self, file: &mut dyn Read) -> std::io::Result<u64> {
        let hasher = &mut self.hasher;
        read_chunks(file, self.progress, |chunk| {
            hasher.update(chunk);
            Ok(())
        })
    }
}

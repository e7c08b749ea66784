//! Hashing the files of a version, on all cores.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rayon::prelude::*;

use crate::digest::hash_reader;
use crate::dir;
use crate::error::StoreError;
use crate::manifest::FileEntry;
use crate::names::PayloadPath;
use crate::progress::Progress;

/// Hashes files below a directory; the entries come in the order of the paths.
pub(crate) fn hash_all(
    version: BorrowedFd<'_>,
    shown: &Path,
    paths: Vec<PayloadPath>,
    progress: &Progress,
) -> Result<Vec<FileEntry>, StoreError> {
    paths.into_par_iter().map(|path| hash_one(version, shown, path, progress)).collect()
}

/// Hashes one file below a directory.
pub(crate) fn hash_one(
    version: BorrowedFd<'_>,
    shown: &Path,
    path: PayloadPath,
    progress: &Progress,
) -> Result<FileEntry, StoreError> {
    let hashed =
        dir::open_payload(version, path.as_path()).and_then(|mut file| hash_reader(&mut file, progress));
    match hashed {
        Ok((sha256, size)) => Ok(FileEntry { path, size, sha256 }),
        Err(e) => Err(StoreError::io("read", &shown.join(path.as_path()), e)),
    }
}

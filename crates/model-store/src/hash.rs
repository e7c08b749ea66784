//! Hashing the files of a version, on all cores.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::digest::{Digest, hash_reader};
use crate::dir;
use crate::error::StoreError;
use crate::manifest::FileEntry;
use crate::names::PayloadPath;
use crate::payload::PayloadFile;
use crate::progress::Progress;
use crate::streams::{self, Begun, Work};

/// A file's entry, or why there is none.
pub(crate) type Hashed = (PayloadPath, Result<FileEntry, StoreError>);

/// Hashes files below a directory; the entries come in the order of the files.
pub(crate) fn hash_all(
    version: BorrowedFd<'_>,
    shown: &Path,
    files: Vec<PayloadFile>,
    progress: &Progress,
) -> Result<Vec<FileEntry>, StoreError> {
    hash_each(version, shown, files, progress)?.into_iter().map(|(_, entry)| entry).collect()
}

/// Hashes files below a directory; a file that cannot be read stops no other. An error is a stop on request.
pub(crate) fn hash_each(
    version: BorrowedFd<'_>,
    shown: &Path,
    mut files: Vec<PayloadFile>,
    progress: &Progress,
) -> Result<Vec<Hashed>, StoreError> {
    files.sort_by_key(|file| std::cmp::Reverse(file.size_bytes));
    let mut hashed = streams::run(&Hashing { version, shown }, &files, progress)?;
    hashed.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(hashed)
}

struct Hashing<'a> {
    version: BorrowedFd<'a>,
    shown: &'a Path,
}

impl Hashing<'_> {
    fn hashed(&self, path: &PayloadPath, read: io::Result<(Digest, u64)>) -> Result<Hashed, StoreError> {
        let entry = match read {
            Ok((sha256, size)) => Ok(FileEntry { path: path.clone(), size, sha256 }),
            Err(e) => match StoreError::io("read", &self.shown.join(path.as_path()), e) {
                StoreError::Interrupted => return Err(StoreError::Interrupted),
                unreadable => Err(unreadable),
            },
        };
        Ok((path.clone(), entry))
    }
}

impl Work for Hashing<'_> {
    type Item = PayloadFile;
    type Stream = File;
    type Done = Hashed;

    fn begin(&self, file: &PayloadFile) -> Result<Begun<File, Hashed>, StoreError> {
        match dir::open_payload(self.version, file.path.as_path()) {
            Ok(opened) => Ok(Begun::Stream(opened)),
            Err(e) => self.hashed(&file.path, Err(e)).map(Begun::Done),
        }
    }

    fn end(
        &self,
        file: &PayloadFile,
        _: File,
        read: io::Result<(Digest, u64)>,
    ) -> Result<Hashed, StoreError> {
        self.hashed(&file.path, read)
    }
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

//! Writing one payload file.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};

use crate::durable;
use crate::error::StoreError;
use crate::manifest::FileEntry;
use crate::names::PayloadPath;
use crate::payload::Stamp;
use crate::sha256::Hasher;
use crate::staging::Staging;

const WRITE_BUFFER_BYTES: usize = 256 * 1024;

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

impl<'a> PayloadWriter<'a> {
    pub(crate) fn begin(staging: &'a Staging, path: &PayloadPath) -> Result<Self, StoreError> {
        let (parent, file) = staging.create(path)?;
        Ok(Self {
            staging,
            path: path.clone(),
            parent,
            file: Some(BufWriter::with_capacity(WRITE_BUFFER_BYTES, file)),
            hasher: Hasher::default(),
            size: 0,
        })
    }

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
        let stamp = self.flush_and_seal().map_err(|e| self.staging.failed("write", &self.path, e))?;
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

//! Files of a model folder, opened as something that anyone may have put there: a named pipe does not block, a device is
//! not read, and a file has to be of a size that its kind can have.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;

use crate::LoadError;

/// More than any configuration or tokenizer has; the largest tokenizers are below 40 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Opens a regular file for reading; `None` when there is nothing.
pub(crate) fn open(path: &Path) -> Result<Option<File>, LoadError> {
    // A pipe without a writer would block in the open itself.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(source) => return Err(LoadError::Read { path: path.to_owned(), source }),
    };
    let metadata = file.metadata().map_err(LoadError::read(path))?;
    if !metadata.is_file() {
        return Err(LoadError::NotRegular { path: path.to_owned() });
    }
    Ok(Some(file))
}

/// Reads a small file whole; `None` when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let Some(file) = open(path)? else { return Ok(None) };
    let size = file.metadata().map_err(LoadError::read(path))?.len();
    let mut bytes = Vec::new();
    if size <= MAX_BYTES {
        // The limit again: a file may grow between the two.
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(LoadError::read(path))?;
    }
    let found = size.max(bytes.len() as u64);
    if found > MAX_BYTES {
        return Err(LoadError::TooLarge { path: path.to_owned(), bytes: found, max_bytes: MAX_BYTES });
    }
    Ok(Some(bytes))
}

/// Reads a JSON file; `None` when there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LoadError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|source| LoadError::Json { path: path.to_owned(), source })
}

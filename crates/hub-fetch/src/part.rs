//! A file that is on its way: `blobs/<blob>.incomplete`.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::cache::{open_file, sync_folder};
use crate::digest::{Digest, Hasher};
use crate::error::FetchError;

/// The bytes that are here so far, hashed as they come.
#[derive(Debug)]
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    have: u64,
    /// Whether an earlier run has left some of it.
    is_inherited: bool,
    digest: Option<Digest>,
    size: Option<u64>,
    hasher: Option<Hasher>,
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

/// What came is not the file.
#[derive(Debug)]
pub(crate) struct Damage(pub(crate) String);

impl Part {
    /// Opens what an earlier run has left, and hashes it; nothing yet if there is none, or more than the whole, or no
    /// digest to tell whether it is of the same file.
    pub(crate) fn open(path: &Path, size: Option<u64>, digest: Option<&Digest>) -> Result<Self, FetchError> {
        let failed = |error| FetchError::io("open", path, error);
        let file = open_file(path).map_err(failed)?;
        let have = file.metadata().map_err(failed)?.len();
        let mut part = Self {
            path: path.to_owned(),
            file,
            have,
            is_inherited: have > 0,
            digest: digest.cloned(),
            size,
            hasher: None,
        };
        if digest.is_none() || size.is_some_and(|size| have > size) {
            part.restart()?;
            return Ok(part);
        }
        part.hasher = part.fresh_hasher();
        if let Some(hasher) = &mut part.hasher {
            part.have = hasher.read(&mut part.file, have).map_err(failed)?;
        }
        part.file.seek(SeekFrom::Start(part.have)).map_err(failed)?;
        Ok(part)
    }

    /// A git digest begins with the size; where that is not known the whole is hashed at the end.
    fn fresh_hasher(&self) -> Option<Hasher> {
        Some(Hasher::new(self.digest.as_ref()?, self.size?))
    }

    pub(crate) fn have(&self) -> u64 {
        self.have
    }

    /// Whether some of what is here came in an earlier run.
    pub(crate) fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    /// Whether what is here can be gone on with: without a digest nobody would know if the rest is of another file.
    pub(crate) fn is_resumable(&self) -> bool {
        self.digest.is_some()
    }

    /// Forgets everything.
    pub(crate) fn restart(&mut self) -> Result<(), FetchError> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.rewind());
        cleared.map_err(|error| FetchError::io("write", &self.path, error))?;
        self.have = 0;
        self.is_inherited = false;
        self.hasher = self.fresh_hasher();
        Ok(())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file.write_all(bytes).map_err(|error| FetchError::io("write", &self.path, error))?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// Whether this is the file, now that all of it should be here.
    pub(crate) fn check(&mut self) -> Result<Result<(), Damage>, FetchError> {
        if let Some(size) = self.size
            && size != self.have
        {
            return Ok(Err(Damage(format!("expected {size} bytes, got {}", self.have))));
        }
        let Some(digest) = &self.digest else { return Ok(Ok(())) };
        let found = if let Some(hasher) = self.hasher.clone() {
            hasher.finish()
        } else {
            let mut hasher = Hasher::new(digest, self.have);
            let hashed = self.file.rewind().and_then(|()| hasher.read(&mut self.file, u64::MAX));
            hashed.map_err(|error| FetchError::io("read", &self.path, error))?;
            hasher.finish()
        };
        Ok(if found == *digest { Ok(()) } else { Err(Damage(format!("expected {digest}, got {found}"))) })
    }

    /// Gives the file its name. From here on everybody trusts it, so its bytes are on the disk first.
    pub(crate) fn publish(self, blob: &Path) -> Result<(), FetchError> {
        self.file.sync_all().map_err(|error| FetchError::io("write", &self.path, error))?;
        fs::rename(&self.path, blob).map_err(|error| FetchError::io("make", blob, error))?;
        let folder = blob.parent().unwrap_or(blob);
        sync_folder(folder).map_err(|error| FetchError::io("write", folder, error))
    }
}

//! SHA-256 of files, and the checksum of a version made of them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use crate::manifest::FileEntry;
use crate::progress::Progress;
use crate::sha256::Hasher;
use serde::{Deserialize, Serialize};

/// Bytes read at a time: big enough to keep the hash instructions busy, small enough for the L2 cache.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// A SHA-256 digest; shown, parsed and serialised as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A string that is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a SHA-256 digest: 64 lower-case hexadecimal digits")]
pub struct DigestError(String);

impl Digest {
    /// The digest of some bytes.
    ///
    /// ```
    /// let empty = model_store::Digest::of(b"");
    /// assert_eq!(empty.to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    /// ```
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest and the number of the bytes that `reader` still has.
    pub fn of_reader(reader: &mut dyn Read) -> io::Result<(Self, u64)> {
        hash_reader(reader, &Progress::none())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(value: &str) -> Result<Self, DigestError> {
        let mut bytes = [0; 32];
        let lower = !value.bytes().any(|b| b.is_ascii_uppercase());
        match hex::decode_to_slice(value, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => Err(DigestError(value.to_owned())),
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(value: String) -> Result<Self, DigestError> {
        value.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads to the end, feeding every chunk to `sink`. Reports to `progress` and stops where that says so.
pub(crate) fn read_chunks(
    reader: &mut dyn Read,
    progress: &Progress,
    mut sink: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut size = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        sink(&buffer[..count])?;
        size += count as u64;
        progress.advance(count as u64)?;
    }
}

/// The digest and size of what `reader` still has.
pub(crate) fn hash_reader(reader: &mut dyn Read, progress: &Progress) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::default();
    let size = read_chunks(reader, progress, |chunk| {
        hasher.update(chunk);
        Ok(())
    })?;
    Ok((hasher.finish(), size))
}

/// The checksum of a version: the SHA-256 of what `sha256sum` prints for its files in the order of their path
/// bytes.
///
/// The entries must be sorted by path; a [`Manifest`](crate::Manifest)'s are.
#[must_use]
pub fn checksum_of_listing(files: &[FileEntry]) -> Digest {
    debug_assert!(files.is_sorted_by(|a, b| a.path < b.path), "the listing is sorted by path bytes");
    let mut hasher = Hasher::default();
    for file in files {
        hasher.update(format!("{}  {}\n", file.sha256, file.path).as_bytes());
    }
    hasher.finish()
}

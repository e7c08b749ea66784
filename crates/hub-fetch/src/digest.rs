//! What a file's bytes must hash to.

use std::fmt;
use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::names::is_hex;

/// The digest of a whole file, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Digest {
    /// Of an LFS file: the SHA-256 of its bytes.
    Sha256(String),
    /// Of a file in git: the SHA-1 of `blob <size>\0` and its bytes.
    Git(String),
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "SHA-256 {hex}"),
            Self::Git(hex) => write!(f, "git digest {hex}"),
        }
    }
}

impl Digest {
    /// What an entity tag says of the bytes, going by its length; `None` if it is no digest.
    pub(crate) fn of_etag(etag: &str) -> Option<Self> {
        if is_hex(etag, 64) {
            Some(Self::Sha256(etag.to_owned()))
        } else if is_hex(etag, 40) {
            Some(Self::Git(etag.to_owned()))
        } else {
            None
        }
    }

    /// Hashes what a reader gives, which has `size` bytes, and compares. `Err(found)` if it is something else.
    pub(crate) fn check(&self, reader: &mut dyn Read, size: u64) -> io::Result<Result<(), Self>> {
        let mut hasher = Hasher::new(self, size);
        hasher.read(reader, u64::MAX)?;
        let found = hasher.finish();
        Ok(if found == *self { Ok(()) } else { Err(found) })
    }
}

/// A digest in the making.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    /// For the kind of digest that `expected` is, of a file of `size` bytes.
    pub(crate) fn new(expected: &Digest, size: u64) -> Self {
        match expected {
            Digest::Sha256(_) => Self::Sha256(Sha256::new()),
            Digest::Git(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {size}\0"));
                Self::Git(hasher)
            }
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    /// Takes at most `most` bytes from a reader, and says how many it took.
    pub(crate) fn read(&mut self, reader: &mut dyn Read, most: u64) -> io::Result<u64> {
        let mut block = vec![0; 1 << 20];
        let mut reader = reader.take(most);
        let mut taken = 0;
        loop {
            match reader.read(&mut block)? {
                0 => return Ok(taken),
                read => {
                    self.update(&block[..read]);
                    taken += read as u64;
                }
            }
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hex::encode(hasher.finalize())),
            Self::Git(hasher) => Digest::Git(hex::encode(hasher.finalize())),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn digests_of_what_sha256sum_and_git_know() {
        let check = |expected: Digest, bytes: &[u8], sound: bool| {
            let found = expected.check(&mut &*bytes, bytes.len() as u64).unwrap();
            assert_eq!(found.is_ok(), sound, "{expected}");
        };
        let hello = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        check(Digest::of_etag(hello).unwrap(), b"hello\n", true);
        check(Digest::of_etag(hello).unwrap(), b"hello", false);
        check(Digest::of_etag("ce013625030ba8dba906f756967f9e9ca394464a").unwrap(), b"hello\n", true);
        check(Digest::of_etag("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391").unwrap(), b"", true);
        assert_eq!(Digest::of_etag("d41d8cd98f00b204e9800998ecf8427e"), None);
    }
}

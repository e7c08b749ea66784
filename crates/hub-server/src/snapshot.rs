//! The files of a model at one commit, with what the Hub says of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::path::PathBuf;

use model_store::{Current, PayloadPath};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files of these endings are kept in git-lfs, as the Hub's default `.gitattributes` has it.
const LFS_ENDINGS: [&str; 13] = [
    "bin",
    "ckpt",
    "engine",
    "gguf",
    "h5",
    "model",
    "msgpack",
    "npz",
    "onnx",
    "onnx_data",
    "pt",
    "pth",
    "safetensors",
];
/// So are files from this size on.
const LFS_FROM_BYTES: u64 = 10 << 20;

/// A model at one commit.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// 40 hexadecimal digits: a digest of the contents.
    pub(crate) commit: String,
    /// The files by their path.
    pub(crate) files: BTreeMap<String, Entry>,
}

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// In bytes.
    pub(crate) size: u64,
    /// What git calls it: of an LFS file that is the name of its pointer.
    pub(crate) oid: String,
    /// The SHA-256 of an LFS file.
    pub(crate) sha256: Option<String>,
    /// Where its bytes are.
    pub(crate) place: Place,
}

/// Where a file's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// In a file on disk that was of this state when it was hashed.
    File(PathBuf),
    /// In a version of the store.
    Version(Current, PayloadPath),
}

impl Place {
    pub(crate) fn open(&self) -> io::Result<File> {
        match self {
            Self::File(path) => File::open(path),
            Self::Version(version, path) => version.open(path).map_err(io::Error::other),
        }
    }
}

impl Entry {
    /// A file in LFS, whose SHA-256 is known.
    pub(crate) fn lfs(size: u64, sha256: String, place: Place) -> Self {
        let oid = blob_id(pointer(&sha256, size).as_bytes());
        Self { size, oid, sha256: Some(sha256), place }
    }

    /// The entity tag: what the file's bytes are called in a client's cache.
    pub(crate) fn etag(&self) -> &str {
        self.sha256.as_ref().unwrap_or(&self.oid)
    }

    /// As `/api/models/{id}?blobs=true` lists it.
    pub(crate) fn sibling(&self, path: &str) -> Value {
        let mut value = json!({"rfilename": path, "blobId": self.oid, "size": self.size});
        if let Some(sha256) = &self.sha256 {
            let pointer_size = pointer(sha256, self.size).len();
            value["lfs"] = json!({"sha256": sha256, "size": self.size, "pointerSize": pointer_size});
        }
        value
    }

    /// As `/api/models/{id}/tree/{revision}` lists it.
    pub(crate) fn leaf(&self, path: &str) -> Value {
        let mut value = json!({"type": "file", "oid": self.oid, "size": self.size, "path": path});
        if let Some(sha256) = &self.sha256 {
            let pointer_size = pointer(sha256, self.size).len();
            value["lfs"] = json!({"oid": sha256, "size": self.size, "pointerSize": pointer_size});
        }
        value
    }
}

impl Snapshot {
    /// The files, and a commit that is made of nothing but their names and contents.
    pub(crate) fn of(files: BTreeMap<String, Entry>) -> Self {
        let mut hasher = Sha256::new();
        for (path, entry) in &files {
            hasher.update(format!("{} {} {path}\n", entry.etag(), entry.size));
        }
        Self { commit: shortened(&hex::encode(hasher.finalize())), files }
    }
}

/// As many digits as a git commit has.
pub(crate) fn shortened(digest: &str) -> String {
    digest.chars().take(40).collect()
}

/// Whether a file of this name and size is kept in LFS.
pub(crate) fn is_lfs(path: &Path, size: u64) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    size >= LFS_FROM_BYTES || LFS_ENDINGS.contains(&ending)
}

/// The SHA-256 of a file.
pub(crate) fn sha256_of(file: &mut File) -> io::Result<String> {
    let (digest, _) = model_store::Digest::of_reader(file)?;
    Ok(hex::encode(digest.as_bytes()))
}

/// What git calls a file of `size` bytes.
pub(crate) fn blob_id_of(file: &mut impl Read, size: u64) -> io::Result<String> {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {size}\0"));
    let mut block = vec![0; 64 << 10];
    loop {
        match file.read(&mut block)? {
            0 => break,
            read => hasher.update(&block[..read]),
        }
    }
    Ok(hex::encode(hasher.finalize()))
}

fn blob_id(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hex::encode(hasher.finalize())
}

/// What git holds in place of an LFS file.
fn pointer(sha256: &str, size: u64) -> String {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_called_as_git_calls_it() {
        // `printf 'hello\n' | git hash-object --stdin`, and of an empty file.
        assert_eq!(blob_id(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(blob_id_of(&mut io::empty(), 0).unwrap(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    }

    #[test]
    fn what_is_kept_in_lfs() {
        let check = |path: &str, size: u64, expected: bool| {
            assert_eq!(is_lfs(Path::new(path), size), expected, "{path} of {size}");
        };
        check("model.safetensors", 1, true);
        check("onnx/model.onnx_data", 1, true);
        check("tokenizer.json", 9_000_000, false);
        check("tokenizer.json", 17_000_000, true);
        check("config.json", 500, false);
        check("LICENSE", 500, false);
    }
}

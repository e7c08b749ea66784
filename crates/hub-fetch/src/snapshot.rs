//! What a fetch ends with.

use std::path::PathBuf;

/// A model's files, all of them here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder with the files; each is a link into the cache.
    pub path: PathBuf,
    /// The commit they are of.
    pub commit: String,
    /// The files, sorted by path.
    pub files: Vec<SnapshotFile>,
    /// Whether the list of the commit's files is known. Where it is not, what another program left was taken for the
    /// whole: it has what the model's own files name, and may lack a file that none of them does.
    pub is_listed: bool,
    /// The repository's own ONNX graph, whether it was asked for or not: `onnx/model.onnx` or `model.onnx`. `None` where
    /// there is none, and where the list of files is not known.
    pub graph: Option<String>,
    /// What the Hub calls the model now, where that is not the name it was asked for.
    pub renamed_to: Option<String>,
    /// Who said that this is the commit.
    pub source: Source,
    /// How much came over the network.
    pub downloaded_bytes: u64,
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Where it is below [`Snapshot::path`].
    pub path: String,
    /// Its length.
    pub size_bytes: u64,
    /// What its bytes were checked by.
    pub proof: Proof,
}

/// What a file's bytes were checked by when they were downloaded, or now with
/// [`Existing::ByDigest`](crate::Existing::ByDigest).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The SHA-256 of its bytes, in hexadecimal digits.
    Sha256(String),
    /// What git calls it: a SHA-1, in hexadecimal digits.
    Git(String),
    /// Its length alone: the server named no digest.
    Size,
}

/// Who said what the revision is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The Hub, now.
    Hub,
    /// Nobody had to: it was asked for by its commit, and is here.
    Commit,
    /// The cache, because `HF_HUB_OFFLINE` is set. A branch may have moved on.
    Offline,
    /// The cache, because the Hub could not be asked; this is why. A branch may have moved on.
    Unreachable(String),
}

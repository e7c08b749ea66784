//! `manifest.json`: what a version is made of.

use jiff::Timestamp;
use serde::de::Error as _;
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::digest::{Digest, checksum_of_listing};
use crate::names::{AgentName, PayloadPath, VersionName};

/// The format this crate writes.
pub const FORMAT: u32 = 1;
/// How a format 1 `checksum` is made: the SHA-256 of the `sha256sum` listing of the sorted payload.
pub const CHECKSUM_ALGORITHM: &str = "sha256-of-sha256sum";

/// One payload file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Where it is within the version.
    pub path: PayloadPath,
    /// Its length in bytes.
    pub size: u64,
    /// The SHA-256 of its bytes.
    pub sha256: Digest,
}

/// One symbolic link of the payload; its target lies within the version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkEntry {
    /// Where the link is within the version.
    pub path: PayloadPath,
    /// What it says, as `readlink` prints it.
    pub target: String,
}

/// The manifest of a version.
///
/// The first three keys are the seed's, in its order and meaning, and are all that an older or newer manifest
/// promises: with a [`format`](Self::format) other than [`FORMAT`] the rest stays in [`extra`](Self::extra),
/// unread.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The version this is the manifest of.
    pub version: VersionName,
    /// The checksum of the payload; see [`checksum_of_listing`] for format 1.
    pub checksum: Digest,
    /// Whatever the publisher said about the version: source, commit, precision, figures of the gate.
    pub metadata: Map<String, Value>,
    /// The format's number; `None` for a manifest of the old Python helper.
    pub format: Option<u32>,
    /// [`CHECKSUM_ALGORITHM`] in format 1.
    pub checksum_algorithm: Option<String>,
    /// The agent it was published for.
    pub agent: Option<AgentName>,
    /// When it was published.
    pub created_at: Option<Timestamp>,
    /// Every payload file, sorted by path bytes; empty where [`format`](Self::format) is not 1.
    pub files: Vec<FileEntry>,
    /// Every symbolic link of the payload, sorted by path bytes. The key is absent when there is none.
    pub links: Vec<LinkEntry>,
    /// Keys that this crate does not know, as they were read.
    pub extra: Map<String, Value>,
}

impl Manifest {
    /// The manifest of a payload about to be published. `files` must be sorted by path.
    pub(crate) fn new(
        agent: AgentName,
        version: VersionName,
        metadata: Map<String, Value>,
        created_at: Timestamp,
        files: Vec<FileEntry>,
        links: Vec<LinkEntry>,
    ) -> Self {
        Self {
            version,
            checksum: checksum_of_listing(&files),
            metadata,
            format: Some(FORMAT),
            checksum_algorithm: Some(CHECKSUM_ALGORITHM.to_owned()),
            agent: Some(agent),
            created_at: Some(created_at),
            files,
            links,
            extra: Map::new(),
        }
    }

    /// The manifest that the old Python helper would have written, with its checksum.
    pub(crate) fn as_legacy(&self, checksum: Digest) -> Self {
        Self {
            version: self.version.clone(),
            checksum,
            metadata: self.metadata.clone(),
            format: None,
            checksum_algorithm: None,
            agent: None,
            created_at: None,
            files: Vec::new(),
            links: Vec::new(),
            extra: Map::new(),
        }
    }

    /// Reads a manifest of any format.
    pub fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }

    /// The bytes of `manifest.json`: indented, keys in the documented order, a newline at the end.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Which rules this manifest follows.
    #[must_use]
    pub fn generation(&self) -> Generation {
        match self.format {
            None => Generation::Legacy,
            Some(FORMAT) => Generation::Current,
            Some(format) => Generation::Newer(format),
        }
    }

    /// The entry of one payload file.
    #[must_use]
    pub fn file(&self, path: &PayloadPath) -> Option<&FileEntry> {
        self.files.binary_search_by(|entry| entry.path.cmp(path)).ok().map(|i| &self.files[i])
    }

    /// The bytes of the whole payload, as the manifest has it; [`u64::MAX`] where that claims more.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        saturating_sum(self.files.iter().map(|file| file.size))
    }
}

/// The sum of sizes that may be made up.
pub(crate) fn saturating_sum(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// Which rules a manifest follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Written by the Python helper: three keys, a checksum over names and bytes in directory order.
    Legacy,
    /// [`FORMAT`].
    Current,
    /// Of a format that this crate does not know; readable for its first three keys only.
    Newer(u32),
}

impl Serialize for Manifest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("version", &self.version)?;
        map.serialize_entry("checksum", &self.checksum)?;
        map.serialize_entry("metadata", &self.metadata)?;
        if let Some(format) = self.format {
            map.serialize_entry("format", &format)?;
        }
        if let Some(algorithm) = &self.checksum_algorithm {
            map.serialize_entry("checksum_algorithm", algorithm)?;
        }
        if let Some(agent) = &self.agent {
            map.serialize_entry("agent", agent)?;
        }
        if let Some(created_at) = &self.created_at {
            map.serialize_entry("created_at", created_at)?;
        }
        // Format 1 cannot be read without a list, be it empty; elsewhere the key is not ours.
        if self.generation() == Generation::Current || !self.files.is_empty() {
            map.serialize_entry("files", &self.files)?;
        }
        if !self.links.is_empty() {
            map.serialize_entry("links", &self.links)?;
        }
        for (key, value) in &self.extra {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// What every generation has; the rest is read once `format` says that it is understood.
#[derive(Deserialize)]
struct Head {
    version: VersionName,
    checksum: Digest,
    #[serde(default)]
    metadata: Map<String, Value>,
    format: Option<u32>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Body {
    checksum_algorithm: Option<String>,
    agent: Option<AgentName>,
    created_at: Option<Timestamp>,
    files: Vec<FileEntry>,
    #[serde(default)]
    links: Vec<LinkEntry>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl<'de> Deserialize<'de> for Manifest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Head { version, checksum, metadata, format, rest } = Head::deserialize(deserializer)?;
        let body = match format {
            Some(FORMAT) => Body::deserialize(Value::Object(rest)).map_err(D::Error::custom)?,
            _ => Body {
                checksum_algorithm: None,
                agent: None,
                created_at: None,
                files: Vec::new(),
                links: Vec::new(),
                extra: rest,
            },
        };
        if !body.files.is_sorted_by(|a, b| a.path < b.path) {
            return Err(D::Error::custom("`files` is not sorted by path, or names a path twice"));
        }
        Ok(Self {
            version,
            checksum,
            metadata,
            format,
            checksum_algorithm: body.checksum_algorithm,
            agent: body.agent,
            created_at: body.created_at,
            files: body.files,
            links: body.links,
            extra: body.extra,
        })
    }
}

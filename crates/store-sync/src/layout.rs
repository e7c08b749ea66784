//! Where things are at a remote, and the small documents there. docs/remote-format.md is the same in words.

use jiff::Timestamp;
use model_store::{AgentName, Digest, VersionName};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

/// The format of `store.json`, `current.json` and leases.
pub const REMOTE_FORMAT: u32 = 1;

/// What says that this is a remote.
pub(crate) const STORE_FILE: &str = "store.json";
pub(crate) const AGENTS: &str = "agents";
pub(crate) const BLOBS: &str = "blobs/sha256";
/// Pushes that are under way, and a collection that is.
pub(crate) const LEASES: &str = "leases";
const SIGNATURE_SUFFIX: &str = ".sig.json";
const MANIFEST_SUFFIX: &str = ".json";

pub(crate) fn blob(digest: &Digest) -> Path {
    let digest = digest.to_string();
    Path::from(format!("{BLOBS}/{}/{digest}", &digest[..2]))
}

/// The digest that a blob's path ends with.
pub(crate) fn digest_of(path: &Path) -> Option<Digest> {
    let digest = path.filename()?.parse().ok()?;
    (blob(&digest) == *path).then_some(digest)
}

pub(crate) fn versions(agent: &AgentName) -> Path {
    Path::from(format!("{AGENTS}/{agent}/versions"))
}

pub(crate) fn manifest(agent: &AgentName, version: &VersionName) -> Path {
    Path::from(format!("{AGENTS}/{agent}/versions/{version}{MANIFEST_SUFFIX}"))
}

pub(crate) fn signature(agent: &AgentName, version: &VersionName) -> Path {
    Path::from(format!("{AGENTS}/{agent}/versions/{version}{SIGNATURE_SUFFIX}"))
}

/// The version that a manifest's path is of; `None` for a signature's.
pub(crate) fn version_of(path: &Path) -> Option<VersionName> {
    let name = path.filename()?;
    if name.ends_with(SIGNATURE_SUFFIX) {
        return None;
    }
    VersionName::try_from(name.strip_suffix(MANIFEST_SUFFIX)?).ok()
}

pub(crate) fn pointer(agent: &AgentName) -> Path {
    Path::from(format!("{AGENTS}/{agent}/current.json"))
}

pub(crate) fn pointer_lease(agent: &AgentName) -> Path {
    Path::from(format!("{AGENTS}/{agent}/lease.json"))
}

/// `store.json`: that this is a remote, and what its server can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreFile {
    /// [`REMOTE_FORMAT`].
    pub format: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// What the probe found.
    pub conditional_puts: ConditionalPuts,
}

/// Which conditions of a put the server honours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionalPuts {
    /// `If-None-Match: *`: only where there is nothing yet.
    pub create: bool,
    /// `If-Match`: only where it is what was read.
    pub update: bool,
}

/// `agents/<agent>/current.json`: which version the fleet is to use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemotePointer {
    /// [`REMOTE_FORMAT`].
    pub format: u32,
    /// The agent; a pointer of another one is refused.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
    /// The version's checksum.
    pub checksum: Digest,
    /// One more with every move, forward or back.
    pub serial: u64,
    /// When it was moved.
    pub time: Timestamp,
    /// Who moved it.
    pub who: String,
    /// From when on nobody is to follow it.
    #[serde(default)]
    pub expires: Option<Timestamp>,
}

/// Who is writing, and until when others have to wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseFile {
    pub(crate) format: u32,
    /// Tells one attempt from every other.
    pub(crate) holder: String,
    pub(crate) who: String,
    pub(crate) expires: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_what_they_are_of() {
        let digest = Digest::of(b"");
        let path = blob(&digest);
        assert_eq!(
            path.as_ref(),
            "blobs/sha256/e3/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        let rows = [
            (path.to_string(), Some(digest)),
            (path.to_string().replace("/e3/", "/e4/"), None),
            (format!("{BLOBS}/e3/e3b0"), None),
            ("agents/a/current.json".to_owned(), None),
        ];
        for (path, expected) in rows {
            assert_eq!(digest_of(&Path::from(path.clone())), expected, "{path}");
        }
        let rows = [
            ("agents/scout/versions/v1.json", Some("v1")),
            ("agents/scout/versions/v1.sig.json", None),
            ("agents/scout/versions/v1.tmp.json", None),
            ("agents/scout/versions/v1", None),
        ];
        for (path, expected) in rows {
            assert_eq!(version_of(&Path::from(path)).as_ref().map(VersionName::as_str), expected, "{path}");
        }
    }
}

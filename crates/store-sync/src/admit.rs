//! What may come in.

use model_store::{
    AgentName, CHECKSUM_ALGORITHM, Digest, Generation, Manifest, VersionName, checksum_of_listing,
};

use crate::error::SyncError;
use crate::layout;
use crate::remote::Remote;

/// A version that a remote offers, before any of its bytes is asked for.
pub(crate) struct Candidate<'a> {
    pub(crate) agent: &'a AgentName,
    pub(crate) version: &'a VersionName,
    /// What the pointer says, where it was a pointer that led here.
    pub(crate) checksum: Option<Digest>,
    pub(crate) manifest_json: &'a [u8],
}

/// Whether a version may come in by its manifest, which is given if so. Called before the first byte of it is fetched, so
/// before it is published and before it is activated. Whether it is signed is for the store's policy.
///
/// The manifest must be of this agent and version, and its checksum that of its own list and the pointer's.
pub(crate) fn admit(remote: &Remote, candidate: &Candidate<'_>) -> Result<Manifest, SyncError> {
    let Candidate { agent, version, checksum, manifest_json } = candidate;
    let path = layout::manifest(agent, version);
    let manifest = Manifest::from_json(manifest_json)
        .map_err(|e| remote.damaged(&path, format!("it is no manifest: {e}")))?;
    let refused = |what: String| SyncError::Refused {
        agent: (*agent).clone(),
        version: (*version).clone(),
        remote: remote.address().to_string(),
        what,
    };
    match manifest.generation() {
        Generation::Current => {}
        Generation::Legacy => {
            return Err(refused("its manifest is of the old kind, without a list".to_owned()));
        }
        Generation::Newer(format) => return Err(refused(format!("its manifest is of format {format}"))),
    }
    if manifest.agent.as_ref() != Some(agent) || manifest.version != **version {
        let of = manifest.agent.as_ref().map_or("nobody", AgentName::as_str);
        return Err(refused(format!("its manifest is of {of}/{}", manifest.version)));
    }
    if manifest.checksum_algorithm.as_deref() != Some(CHECKSUM_ALGORITHM) {
        return Err(refused("its checksum is made in a way that is not known here".to_owned()));
    }
    let listed = checksum_of_listing(&manifest.files);
    if listed != manifest.checksum {
        return Err(
            remote.damaged(&path, format!("its checksum is {}, its list's is {listed}", manifest.checksum))
        );
    }
    if let Some(expected) = checksum.filter(|expected| *expected != manifest.checksum) {
        return Err(refused(format!(
            "the pointer says checksum {expected}, its manifest {}",
            manifest.checksum
        )));
    }
    if manifest.files.is_empty() {
        return Err(refused("it has no files".to_owned()));
    }
    Ok(manifest)
}

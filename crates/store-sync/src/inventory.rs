//! `remote ls`: what there is.

use jiff::Timestamp;
use model_store::{AgentName, Digest, VersionName};
use serde::Serialize;

use crate::error::SyncError;
use crate::layout::RemotePointer;
use crate::remote::Remote;

/// An agent at a remote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentAtRemote {
    /// The agent.
    pub agent: AgentName,
    /// Where the fleet is.
    pub pointer: Option<RemotePointer>,
    /// Its versions, by name.
    pub versions: Vec<VersionAtRemote>,
}

/// A version at a remote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionAtRemote {
    /// The version.
    pub version: VersionName,
    /// Its checksum.
    pub checksum: Digest,
    /// When it was published.
    pub created_at: Option<Timestamp>,
    /// The number of its files.
    pub files: usize,
    /// Their bytes, shared or not.
    pub bytes: u64,
}

impl Remote {
    /// The agents, their pointers and their versions; of some agents where some are named.
    pub fn inventory(&self, agents: &[AgentName]) -> Result<Vec<AgentAtRemote>, SyncError> {
        self.store_file()?;
        let agents = if agents.is_empty() { self.agents()? } else { agents.to_vec() };
        let of = |agent: AgentName| {
            let mut versions = Vec::new();
            for version in self.versions(&agent)? {
                // One that is gone by now was retired meanwhile.
                if let Some(manifest) = self.manifest(&agent, &version)? {
                    versions.push(VersionAtRemote {
                        version,
                        checksum: manifest.checksum,
                        created_at: manifest.created_at,
                        files: manifest.files.len(),
                        bytes: manifest.size_bytes(),
                    });
                }
            }
            Ok(AgentAtRemote { pointer: self.pointer(&agent)?, agent, versions })
        };
        agents.into_iter().map(of).collect()
    }
}

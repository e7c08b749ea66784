//! `remote gc`: removes what nothing names any more.

use std::collections::HashSet;
use std::time::Duration;

use jiff::Timestamp;
use model_store::{AgentName, Digest, VersionName};
use object_store::path::Path;
use serde::Serialize;

use crate::error::SyncError;
use crate::layout;
use crate::marks::{Mark, Marks};
use crate::remote::Remote;

/// What a collection may remove.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// A blob that was written less than this ago stays, even if nothing names it.
    pub grace: Duration,
    /// Retire the versions that are neither current nor among so many newest of their agent; `None` keeps all.
    pub keep: Option<usize>,
    /// Only find out.
    pub dry_run: bool,
    /// Who, for those who want to push meanwhile.
    pub who: String,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self { grace: Duration::from_hours(24), keep: None, dry_run: false, who: String::new() }
    }
}

/// A version at a remote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RemoteVersion {
    /// The agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
}

/// What was removed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CollectedRemote {
    /// Versions whose manifests went.
    pub retired: Vec<RemoteVersion>,
    /// How many versions stay.
    pub kept_versions: usize,
    /// Blobs that went.
    pub removed_blobs: usize,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Blobs that stay because a version names them.
    pub kept_blobs: usize,
    /// Blobs that nothing names and that are younger than the grace time.
    pub young_blobs: usize,
}

impl Remote {
    /// Removes blobs that no manifest names, and versions where that was asked for. While somebody pushes, and
    /// where a manifest cannot be read, nothing is removed.
    pub fn collect(&self, options: &CollectOptions) -> Result<CollectedRemote, SyncError> {
        self.store_file()?;
        self.ensure_writable()?;
        let mark = if options.dry_run { None } else { Some(Mark::set(self, Marks::Collect, &options.who)?) };
        let mut collected = CollectedRemote::default();
        let mut named: HashSet<Digest> = HashSet::new();
        for agent in self.agents()? {
            let retired = match options.keep {
                Some(keep) => self.to_retire(&agent, keep)?,
                None => HashSet::new(),
            };
            for version in self.versions(&agent)? {
                if let Some(mark) = &mark {
                    mark.renew_if_old()?;
                }
                if retired.contains(&version) {
                    collected.retired.push(RemoteVersion { agent: agent.clone(), version });
                } else if let Some(manifest) = self.manifest(&agent, &version)? {
                    collected.kept_versions += 1;
                    named.extend(manifest.files.iter().map(|entry| entry.sha256));
                }
            }
        }
        if let Some(mark) = &mark {
            for RemoteVersion { agent, version } in &collected.retired {
                mark.renew_if_old()?;
                // The manifest last: a signature without one would stay for good.
                self.delete(&layout::signature(agent, version))?;
                self.delete(&layout::manifest(agent, version))?;
                tracing::info!(%agent, %version, remote = %self.address(), "retired");
            }
        }
        let now = Timestamp::now().as_second();
        let grace = i64::try_from(options.grace.as_secs()).unwrap_or(i64::MAX);
        for blob in self.list(&Path::from(layout::BLOBS))? {
            let Some(digest) = layout::digest_of(&blob.location) else { continue };
            if named.contains(&digest) {
                collected.kept_blobs += 1;
                continue;
            }
            if now.saturating_sub(blob.last_modified.timestamp()) < grace {
                collected.young_blobs += 1;
                continue;
            }
            if let Some(mark) = &mark {
                mark.renew_if_old()?;
                self.delete(&blob.location)?;
                self.observer().advance(blob.size);
            }
            collected.removed_blobs += 1;
            collected.freed_bytes += blob.size;
        }
        let CollectedRemote { removed_blobs, freed_bytes, .. } = collected;
        tracing::info!(remote = %self.address(), removed_blobs, freed_bytes, options.dry_run, "collected");
        Ok(collected)
    }

    /// The versions of an agent that are neither current nor among its newest, by when they came here.
    fn to_retire(&self, agent: &AgentName, keep: usize) -> Result<HashSet<VersionName>, SyncError> {
        let current = self.pointer(agent)?.map(|pointer| pointer.version);
        let listed = self.list(&layout::versions(agent))?;
        let mut versions: Vec<_> = listed
            .iter()
            .filter_map(|meta| Some((meta.last_modified, layout::version_of(&meta.location)?)))
            .collect();
        versions.sort_by(|a, b| b.cmp(a));
        let old = versions.into_iter().skip(keep).map(|(_, version)| version);
        Ok(old.filter(|version| current.as_ref() != Some(version)).collect())
    }
}

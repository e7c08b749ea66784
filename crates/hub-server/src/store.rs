//! The agents of a model store as models: `store/<agent>`, whose revisions are its versions and refs.

use std::collections::BTreeMap;

use model_store::{AgentEntry, AgentName, Current, ModelStore, PayloadPath, StoreError, VersionName};

use crate::route::MAIN;
use crate::snapshot::{Entry, Place, Snapshot, shortened};

/// The organisation that a store's agents belong to.
pub(crate) const ORGANISATION: &str = "store";

/// The agent that a model is, if it is one of a store.
pub(crate) fn agent_of(id: &str) -> Option<AgentName> {
    let (organisation, agent) = id.split_once('/')?;
    (organisation == ORGANISATION).then(|| agent.parse().ok()).flatten()
}

/// Every agent and alias that has a current version, as a model.
pub(crate) fn models(store: &ModelStore) -> Result<Vec<String>, StoreError> {
    let agents = store.agents()?;
    Ok(agents.iter().map(|entry| format!("{ORGANISATION}/{}", entry.name())).collect())
}

/// The model that an alias leads to; `None` for an agent.
pub(crate) fn meant_by(store: &ModelStore, name: &AgentName) -> Result<Option<String>, StoreError> {
    let agents = store.agents()?;
    Ok(agents.iter().find_map(|entry| match entry {
        AgentEntry::Alias { alias, target } if alias == name => Some(format!("{ORGANISATION}/{target}")),
        _ => None,
    }))
}

/// A version of an agent: `main` is what is current, else a version, a ref or the commit of a version.
pub(crate) fn snapshot(
    store: &ModelStore,
    agent: &AgentName,
    revision: &str,
) -> Result<Option<Snapshot>, StoreError> {
    if revision == MAIN {
        return Ok(store.get_current(agent)?.as_ref().map(of_version));
    }
    if let Ok(selector) = revision.parse() {
        match store.select(agent, &selector) {
            Ok(version) => return Ok(Some(of_version(&version))),
            Err(StoreError::VersionNotFound { .. } | StoreError::NothingCurrent { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    for version in store.versions(agent)? {
        if let Some(version) = by_commit(store, agent, &version, revision)? {
            return Ok(Some(of_version(&version)));
        }
    }
    Ok(None)
}

fn by_commit(
    store: &ModelStore,
    agent: &AgentName,
    version: &VersionName,
    commit: &str,
) -> Result<Option<Current>, StoreError> {
    let version = store.get_version(agent, version)?;
    Ok(version.filter(|version| commit_of(version) == commit))
}

/// The manifest's checksum: it is the digest of the files already.
fn commit_of(version: &Current) -> String {
    shortened(&hex::encode(version.checksum().as_bytes()))
}

/// Every file is served as one of LFS, since its SHA-256 is what the manifest knows.
fn of_version(version: &Current) -> Snapshot {
    let manifest = version.manifest();
    let entry = |size, sha256: &model_store::Digest, path: &PayloadPath| {
        Entry::lfs(size, hex::encode(sha256.as_bytes()), Place::Version(version.clone(), path.clone()))
    };
    let mut files: BTreeMap<String, Entry> = manifest
        .files
        .iter()
        .map(|file| (file.path.to_string(), entry(file.size, &file.sha256, &file.path)))
        .collect();
    // A client has no use for a link; it gets the file that one leads to.
    for link in &manifest.links {
        let target = led_to(link.path.as_ref(), &link.target);
        if let Some(entry) = target.and_then(|target| files.get(&target).cloned()) {
            files.insert(link.path.to_string(), entry);
        }
    }
    Snapshot { commit: commit_of(version), files }
}

/// The payload path that a link at `path` leads to; `None` if that is out of the version.
fn led_to(path: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!target.starts_with('/')).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_links_lead() {
        let check = |path: &str, target: &str, expected: Option<&str>| {
            assert_eq!(led_to(path, target).as_deref(), expected, "{path} -> {target}");
        };
        check("a.json", "b.json", Some("b.json"));
        check("sub/a.json", "../b.json", Some("b.json"));
        check("sub/a.json", "./x/b.json", Some("sub/x/b.json"));
        check("a.json", "../b.json", None);
        check("a.json", "/etc/passwd", None);
    }
}

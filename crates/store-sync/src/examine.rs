//! `remote check` and `remote verify`: whether a remote has what it says that it has.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use model_store::{AgentName, Digest, VersionName};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::admit::{Candidate, admit};
use crate::download::{FIRST_PAUSE, LONGEST_PAUSE, Stumble, range_of};
use crate::error::SyncError;
use crate::layout;
use crate::pointer::is_expired;
use crate::push::in_threads;
use crate::remote::{MAX_MANIFEST_BYTES, Remote};

/// How many blobs are read at a time.
const READERS: usize = 4;

/// What was looked at, and what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Examined {
    /// Agents.
    pub agents: usize,
    /// Versions.
    pub versions: usize,
    /// Different blobs that they name.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes that were read and hashed.
    pub read_bytes: u64,
    /// What is wrong; empty where all is well.
    pub findings: Vec<RemoteFinding>,
}

/// Something that is wrong at a remote.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RemoteFinding {
    /// The object.
    pub path: String,
    /// What is wrong with it, and whom that concerns.
    pub what: String,
}

/// A blob, how large it is to be, and a version that names it.
type Named = BTreeMap<Digest, (u64, AgentName, VersionName)>;

impl Remote {
    /// Looks whether every pointer leads to a version, and every version has its blobs in their sizes. Reads no
    /// blob.
    pub fn check(&self, agents: &[AgentName]) -> Result<Examined, SyncError> {
        let (mut examined, named) = self.survey(agents)?;
        let paths: Vec<_> = named.keys().map(layout::blob).collect();
        let heads = self.heads(&paths)?;
        for ((path, head), (size, agent, version)) in paths.iter().zip(heads).zip(named.values()) {
            let what = match head {
                Some(head) if head.size == *size => continue,
                Some(head) => format!("has {} bytes, {agent}/{version} says {size}", head.size),
                None => format!("is missing, {agent}/{version} names it"),
            };
            examined.findings.push(RemoteFinding { path: path.to_string(), what });
        }
        Ok(examined)
    }

    /// As [`check`](Self::check), and reads every blob and compares its digest.
    pub fn verify(&self, agents: &[AgentName]) -> Result<Examined, SyncError> {
        let (mut examined, named) = self.survey(agents)?;
        self.observer().expect(examined.bytes);
        let (queue, read) = (Mutex::new(named.iter()), AtomicU64::new(0));
        let findings = Mutex::new(Vec::new());
        let serve = || -> Result<(), SyncError> {
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((digest, (size, agent, version))) = next else { return Ok(()) };
                if let Err(what) = self.hash_blob(digest, *size, &read)? {
                    let what = format!("{what}; {agent}/{version} names it");
                    let finding = RemoteFinding { path: layout::blob(digest).to_string(), what };
                    findings.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
                }
            }
        };
        in_threads(READERS.min(named.len()), serve)?;
        let mut findings = findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        findings.sort();
        examined.findings.extend(findings);
        examined.read_bytes = read.into_inner();
        Ok(examined)
    }

    /// Pointers and manifests, and the blobs that they name.
    fn survey(&self, agents: &[AgentName]) -> Result<(Examined, Named), SyncError> {
        self.store_file()?;
        let agents = if agents.is_empty() { self.agents()? } else { agents.to_vec() };
        let (mut examined, mut named) =
            (Examined { agents: agents.len(), ..Examined::default() }, Named::new());
        for agent in &agents {
            let versions = self.versions(agent)?;
            let mut wrong = |path: &object_store::path::Path, what: String| {
                examined.findings.push(RemoteFinding { path: path.to_string(), what });
            };
            let path = layout::pointer(agent);
            let pointer = match self.pointer(agent) {
                Ok(pointer) => pointer,
                Err(e @ (SyncError::Damaged { .. } | SyncError::NewerFormat { .. })) => {
                    wrong(&path, e.to_string());
                    None
                }
                Err(e) => return Err(e),
            };
            if let Some(pointer) = &pointer {
                if is_expired(pointer) {
                    wrong(&path, format!("expired at {}", pointer.expires.unwrap_or(pointer.time)));
                }
                if !versions.contains(&pointer.version) {
                    wrong(&path, format!("leads to {}, which is not there", pointer.version));
                }
            }
            for version in &versions {
                examined.versions += 1;
                let path = layout::manifest(agent, version);
                let Some(object) = self.read(&path, MAX_MANIFEST_BYTES)? else { continue };
                let pointer = pointer.as_ref().filter(|pointer| pointer.version == *version);
                let candidate = Candidate {
                    agent,
                    version,
                    checksum: pointer.map(|pointer| pointer.checksum),
                    manifest_json: &object.bytes,
                };
                match admit(self, &candidate) {
                    Ok(manifest) => named.extend(
                        manifest
                            .files
                            .iter()
                            .map(|entry| (entry.sha256, (entry.size, agent.clone(), version.clone()))),
                    ),
                    Err(e) => {
                        let finding = RemoteFinding { path: path.to_string(), what: e.to_string() };
                        examined.findings.push(finding);
                    }
                }
            }
        }
        examined.blobs = named.len();
        examined.bytes = named.values().map(|(size, ..)| size).sum();
        Ok((examined, named))
    }

    /// Whether a blob is what its name says; the inner error says what it is instead.
    fn hash_blob(
        &self,
        digest: &Digest,
        size: u64,
        read: &AtomicU64,
    ) -> Result<Result<(), String>, SyncError> {
        let path = layout::blob(digest);
        if size == 0 {
            let head = self.head(&path)?;
            return Ok(match head {
                Some(head) if head.size == 0 => Ok(()),
                Some(head) => Err(format!("has {} bytes, expected none", head.size)),
                None => Err("is missing".to_owned()),
            });
        }
        let mut hasher = Sha256::new();
        let mut at = 0;
        let (mut since, mut pause) = (Instant::now(), FIRST_PAUSE);
        while at < size {
            let end = at.saturating_add(self.options.range_bytes).min(size);
            let range = range_of(self.reader().clone(), path.clone(), at..end, size, self.options.stall);
            match self.wait(range)? {
                Ok(bytes) => {
                    hasher.update(&bytes);
                    read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    self.observer().advance(bytes.len() as u64);
                    at = end;
                    (since, pause) = (Instant::now(), FIRST_PAUSE);
                }
                Err(Stumble::Missing) => return Ok(Err("is missing".to_owned())),
                Err(Stumble::Size(found)) => return Ok(Err(format!("has {found} bytes, expected {size}"))),
                Err(Stumble::Passing(what)) if since.elapsed() >= self.options.retry => {
                    return Err(self.failed("read", &path, what));
                }
                Err(Stumble::Passing(_)) => {
                    self.pause(pause)?;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        let found: Digest = <[u8; 32]>::from(hasher.finalize()).into();
        Ok(if found == *digest { Ok(()) } else { Err(format!("has digest {found}")) })
    }
}

//! From a remote to a store: the manifest, the blobs that no version here has, and the local publish protocol.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use model_store::{
    Activation, AgentName, Current, Digest, FileEntry, FinalizeOptions, Incoming, MAX_BUNDLE_BYTES, Manifest,
    ModelStore, MoveOptions, NewSignature, SignaturePolicy, SignatureState, Staging, VersionName,
};
use serde::Serialize;

use crate::admit::{Candidate, admit};
use crate::error::SyncError;
use crate::layout::{self, RemotePointer};
use crate::observer::local_progress;
use crate::pointer::is_expired;
use crate::push::in_threads;
use crate::remote::{MAX_MANIFEST_BYTES, Remote};

/// How many blobs come at a time.
const WRITERS: usize = 4;

/// What a pull is to do.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Leave `current` where it is.
    pub stage_only: bool,
    /// Why, for the history; says where it comes from unless given.
    pub reason: Option<String>,
}

/// A version that was pulled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// The agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
    /// Its checksum.
    pub checksum: Digest,
    /// The serial of the pointer that led to it.
    pub serial: Option<u64>,
    /// Whether it was not here before.
    pub new: bool,
    /// What was current before.
    pub previous: Option<VersionName>,
    /// Whether `current` was moved.
    pub activated: bool,
    /// The bytes of its files.
    pub bytes: u64,
    /// The part of them that some version here had already.
    pub shared_bytes: u64,
    /// The part that came over the network in this run.
    pub received_bytes: u64,
    /// What the store's policy has to say of it, where that lets a version in and warns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caution: Option<String>,
}

impl Remote {
    /// Pulls what the pointer of an agent is at, and makes it current. What is here already is not fetched
    /// again; a pull that was killed goes on where it stopped.
    ///
    /// An old pointer, or one whose time is over, is refused. `current` serves all the while, and moves in one
    /// step.
    pub fn pull(
        &self,
        store: &ModelStore,
        agent: &AgentName,
        options: &PullOptions,
    ) -> Result<Pulled, SyncError> {
        self.store_file()?;
        let Some(pointer) = self.pointer(agent)? else {
            return Err(self.not_found(format!("agent {agent} with a current version")));
        };
        let mut seen = self.seen(store, agent)?;
        self.ensure_new(&seen, &pointer)?;
        if is_expired(&pointer) {
            return Err(SyncError::Expired {
                agent: agent.clone(),
                remote: self.address().to_string(),
                expired: pointer.expires.unwrap_or(pointer.time),
            });
        }
        let pulled = self.bring(store, agent, &pointer.version, Some(&pointer), options)?;
        seen.note(&pointer);
        seen.apply(&pointer);
        seen.received_bytes += pulled.received_bytes;
        seen.contact = Some(jiff::Timestamp::now());
        self.remember(store, agent, &seen)?;
        Ok(pulled)
    }

    /// Pulls a version by its name, whatever the pointer says; `current` stays unless it is to be activated.
    pub fn pull_version(
        &self,
        store: &ModelStore,
        agent: &AgentName,
        version: &VersionName,
        options: &PullOptions,
    ) -> Result<Pulled, SyncError> {
        self.store_file()?;
        self.bring(store, agent, version, None, options)
    }

    /// The signature beside a version's manifest.
    pub fn signature(&self, agent: &AgentName, version: &VersionName) -> Result<Option<Vec<u8>>, SyncError> {
        Ok(self.read(&layout::signature(agent, version), MAX_BUNDLE_BYTES as u64)?.map(|object| object.bytes))
    }

    pub(crate) fn bring(
        &self,
        store: &ModelStore,
        agent: &AgentName,
        version: &VersionName,
        pointer: Option<&RemotePointer>,
        options: &PullOptions,
    ) -> Result<Pulled, SyncError> {
        let store = store.clone().with_progress(local_progress(self.observer()));
        let path = layout::manifest(agent, version);
        let Some(object) = self.read(&path, MAX_MANIFEST_BYTES)? else {
            return Err(self.not_found(format!("version {version} of agent {agent}")));
        };
        let json = object.bytes;
        let signature = self.signature(agent, version)?;
        let manifest = admit(
            self,
            &Candidate {
                agent,
                version,
                checksum: pointer.map(|pointer| pointer.checksum),
                manifest_json: &json,
            },
        )?;
        let here = store.get_version(agent, version)?;
        if let Some(here) = here.as_ref().filter(|here| here.checksum() != manifest.checksum) {
            return Err(SyncError::Different {
                agent: agent.clone(),
                version: version.clone(),
                remote: self.address().to_string(),
                what: format!("its checksum is {}, here it is {}", manifest.checksum, here.checksum()),
            });
        }
        let policy = store.signature_policy()?;
        let state = policy.judge(agent, version, &json, signature.as_deref());
        let caution = match &here {
            // Signed by a key that is trusted: the remote's signature says nothing about it that is not known.
            Some(here) if is_signed(here, &policy)? => None,
            _ => policy.admit(agent, version, &state)?,
        };
        if let Some(caution) = &caution {
            tracing::warn!(%agent, %version, "{caution}");
        }
        let mut pulled = Pulled {
            agent: agent.clone(),
            version: version.clone(),
            checksum: manifest.checksum,
            serial: pointer.map(|pointer| pointer.serial),
            new: false,
            previous: store.get_current(agent)?.map(|current| current.version().clone()),
            activated: false,
            bytes: manifest.size_bytes(),
            shared_bytes: 0,
            received_bytes: 0,
            caution,
        };
        let reason = options.reason.clone().unwrap_or_else(|| match pointer {
            Some(pointer) => format!("{} (serial {}, {})", self.address(), pointer.serial, pointer.who),
            None => self.address().to_string(),
        });
        if let Some(here) = here {
            adopt_signature(&store, &here, signature.as_deref(), &state)?;
        } else {
            let staging = store.stage_new(agent, version).map_err(SyncError::of_store)?;
            let activation = Activation::Keep;
            let came = self.fill(&staging, &manifest)?;
            let options = FinalizeOptions {
                activation,
                actor: None,
                reason: Some(reason.clone()),
                signature: signature.map_or(NewSignature::None, NewSignature::Take),
                ..FinalizeOptions::default()
            };
            staging.finalize_as(&json, options).map_err(SyncError::of_store)?;
            came.incoming.keep_only(&HashSet::new())?;
            pulled.new = true;
            pulled.shared_bytes = came.shared_bytes;
            pulled.received_bytes = came.received_bytes;
        }
        if !options.stage_only && pulled.previous.as_ref() != Some(version) {
            let options = MoveOptions { actor: None, reason: Some(reason) };
            let moved = store.activate(agent, version, &options).map_err(SyncError::of_store)?;
            pulled.activated = moved.from != moved.to;
            pulled.previous = moved.from;
        }
        let Pulled { received_bytes, shared_bytes, activated, serial, .. } = &pulled;
        tracing::info!(%agent, %version, serial, received_bytes, shared_bytes, activated, "pulled");
        Ok(pulled)
    }

    /// Brings every file of a manifest into a staging.
    fn fill(&self, staging: &Staging, manifest: &Manifest) -> Result<Came, SyncError> {
        let store = SyncError::of_store;
        let incoming = staging.incoming().map_err(store)?;
        let shared = staging.share_published(&manifest.files).map_err(store)?;
        let have: HashSet<_> = shared.iter().map(|entry| &entry.path).collect();
        let mut wanted: BTreeMap<Digest, (u64, Vec<&FileEntry>)> = BTreeMap::new();
        for entry in manifest.files.iter().filter(|entry| !have.contains(&entry.path)) {
            let (size, places) = wanted.entry(entry.sha256).or_default();
            *size = entry.size;
            places.push(entry);
        }
        let digests: HashSet<_> = wanted.keys().copied().collect();
        incoming.keep_only(&digests).map_err(store)?;
        let to_come = wanted.iter().map(|(digest, (size, _))| size.saturating_sub(incoming.have(digest)));
        let to_come: Vec<_> = to_come.filter(|bytes| *bytes > 0).collect();
        staging.ensure_room(to_come.iter().copied()).map_err(store)?;
        self.observer().expect(to_come.iter().sum());
        let received_bytes = self.fetch_all(staging, &incoming, &wanted)?;
        for link in &manifest.links {
            staging.link(link).map_err(store)?;
        }
        let shared_bytes = shared.iter().map(|entry| entry.size).sum();
        Ok(Came { incoming, shared_bytes, received_bytes })
    }

    fn fetch_all(
        &self,
        staging: &Staging,
        incoming: &Incoming,
        wanted: &BTreeMap<Digest, (u64, Vec<&FileEntry>)>,
    ) -> Result<u64, SyncError> {
        // The biggest first, so that none is left alone at the end.
        let mut order: Vec<_> = wanted.iter().collect();
        order.sort_by_key(|(_, (size, _))| std::cmp::Reverse(*size));
        let writers = WRITERS.min(order.len());
        let at_a_time = (self.options.parallel / writers.max(1)).max(2);
        let queue = Mutex::new(order.into_iter());
        let (received, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
        let fetch = |digest: Digest, size: u64, places: &[&FileEntry]| -> Result<(), SyncError> {
            for entry in places {
                let mut file = incoming.file(digest, size).map_err(SyncError::of_store)?;
                let came = self.download(&mut file, digest, at_a_time)?;
                received.fetch_add(came, Ordering::Relaxed);
                staging.adopt(file, &entry.path).map_err(SyncError::of_store)?;
            }
            Ok(())
        };
        let serve = || -> Result<(), SyncError> {
            while !stopped.load(Ordering::Relaxed) {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((digest, (size, places))) = next else { break };
                fetch(*digest, *size, places).inspect_err(|_| stopped.store(true, Ordering::Relaxed))?;
            }
            Ok(())
        };
        in_threads(writers, serve)?;
        Ok(received.into_inner())
    }

    /// The versions of an agent that have a manifest here, by name.
    pub fn versions(&self, agent: &AgentName) -> Result<Vec<VersionName>, SyncError> {
        let listed = self.list(&layout::versions(agent))?;
        let mut versions: Vec<_> =
            listed.iter().filter_map(|meta| layout::version_of(&meta.location)).collect();
        versions.sort();
        Ok(versions)
    }

    /// The agents that have anything here.
    pub fn agents(&self) -> Result<Vec<AgentName>, SyncError> {
        let names = self.list_dirs(&object_store::path::Path::from(layout::AGENTS))?;
        Ok(names.into_iter().filter_map(|name| AgentName::try_from(name.as_str()).ok()).collect())
    }

    /// The manifest of a version, as far as it can be read.
    pub(crate) fn manifest(
        &self,
        agent: &AgentName,
        version: &VersionName,
    ) -> Result<Option<Manifest>, SyncError> {
        let path = layout::manifest(agent, version);
        let Some(object) = self.read(&path, MAX_MANIFEST_BYTES)? else { return Ok(None) };
        let read = Manifest::from_json(&object.bytes);
        read.map(Some).map_err(|e| self.damaged(&path, format!("it is no manifest: {e}")))
    }
}

/// What filling a staging brought.
struct Came {
    incoming: Incoming,
    shared_bytes: u64,
    received_bytes: u64,
}

fn is_signed(here: &Current, policy: &SignaturePolicy) -> Result<bool, SyncError> {
    Ok(matches!(here.signature_state(policy.trusted())?, SignatureState::Signed { .. }))
}

/// A version that is here already gets the signature that was made since, unless it has one that counts and the new one
/// does not.
fn adopt_signature(
    store: &ModelStore,
    here: &Current,
    signature: Option<&[u8]>,
    state: &SignatureState,
) -> Result<(), SyncError> {
    let Some(signature) = signature else { return Ok(()) };
    let (agent, version) = (here.agent(), here.version());
    match here.signature()? {
        Some(ours) if ours == signature => return Ok(()),
        Some(_) if !matches!(state, SignatureState::Signed { .. }) => {
            tracing::warn!(%agent, %version, ?state, "the remote's signature does not count; ours stays");
            return Ok(());
        }
        _ => {}
    }
    store.put_signature(agent, version, signature).map_err(SyncError::of_store)
}

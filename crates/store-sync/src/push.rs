//! From a store to a remote: the blobs that are missing, then the manifest, then the pointer.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path as FsPath;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use model_store::{
    AgentName, Current, Digest, Generation, MANIFEST_FILE, MAX_BUNDLE_BYTES, ModelStore, PayloadPath,
    VersionName,
};
use object_store::{ObjectStoreExt, PutMode};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use crate::error::SyncError;
use crate::layout::{self, RemotePointer};
use crate::marks::{Mark, Marks};
use crate::pointer::Move;
use crate::remote::{LAST_WORD, MAX_MANIFEST_BYTES, Remote, said};

/// As many parts as S3 takes in one upload.
const MAX_PARTS: u64 = 10_000;
/// How many files are read at a time.
const READERS: usize = 4;

/// What a push is to do beside sending a version.
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    /// Leave the pointer where it is.
    pub keep_pointer: bool,
    /// Move the pointer even if it was moved since this host looked last.
    pub over: bool,
    /// How long the pointer is to be followed; for good unless given.
    pub expires: Option<Duration>,
    /// Who, for the pointer.
    pub who: String,
}

/// A version that was pushed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// The agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
    /// Its checksum.
    pub checksum: Digest,
    /// The different contents that its files have.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The blobs that were missing.
    pub sent_blobs: usize,
    /// Their bytes: what went over the network.
    pub sent_bytes: u64,
    /// Whether the manifest was missing.
    pub new: bool,
    /// Where the pointer is now.
    pub pointer: Option<RemotePointer>,
    /// Whether it was moved.
    pub moved: bool,
}

/// One content and a file that has it.
struct Blob<'a> {
    digest: Digest,
    size: u64,
    file: &'a PayloadPath,
}

impl Remote {
    /// Pushes a version and its signature: what the remote has already is not sent again, so a push that was broken off goes on
    /// where it stopped, blob by blob. Every byte is hashed on its way: a rotten file is not sent.
    pub fn push(
        &self,
        store: &ModelStore,
        agent: &AgentName,
        version: &VersionName,
        options: &PushOptions,
    ) -> Result<Pushed, SyncError> {
        self.ensure_writable()?;
        let current = store.require_version(agent, version)?;
        let _lease = current.lease()?;
        // An alias is pushed as what it leads to.
        let agent = current.agent();
        let json = manifest_of(&current)?;
        let signature = current.signature()?;
        let seen = self.seen(store, agent)?;
        let puts = self.store_file()?.conditional_puts;
        let mark = Mark::set(self, Marks::Push, &options.who)?;
        let there = self.manifest_there(&current, &json)?;
        let blobs = blobs_of(&current);
        let (mut sent_blobs, mut sent_bytes) = (0, 0);
        // Once more after the manifest: what was there before may have been collected meanwhile.
        for round in 0..2 {
            let missing = self.missing(&blobs)?;
            if round == 1 && missing.is_empty() {
                break;
            }
            mark.renew_if_old()?;
            self.observer().expect(missing.iter().map(|blob| blob.size).sum());
            let sent = self.send_all(&current, &missing, &mark)?;
            sent_blobs += missing.len();
            sent_bytes += sent;
            if round == 0 {
                if let Some(signature) = &signature {
                    self.put_signature(agent, version, signature)?;
                }
                if !there {
                    let mode = if puts.create { PutMode::Create } else { PutMode::Overwrite };
                    match self.put(&layout::manifest(agent, version), json.clone(), mode) {
                        // Somebody was quicker: with the same bytes that is fine.
                        Err(SyncError::Busy { .. }) => drop(self.manifest_there(&current, &json)?),
                        other => other?,
                    }
                }
            }
        }
        let mut pushed = Pushed {
            agent: agent.clone(),
            version: version.clone(),
            checksum: current.checksum(),
            blobs: blobs.len(),
            bytes: blobs.iter().map(|blob| blob.size).sum(),
            sent_blobs,
            sent_bytes,
            new: !there,
            pointer: None,
            moved: false,
        };
        let mut seen = crate::seen::Seen {
            sent_bytes: seen.sent_bytes + sent_bytes,
            contact: Some(Timestamp::now()),
            ..seen
        };
        if !options.keep_pointer {
            let (pointer, moved) = self.move_pointer(&Move {
                agent,
                version,
                checksum: current.checksum(),
                who: &options.who,
                expires: options.expires,
                seen: (!options.over).then_some(seen.serial),
                above: seen.serial,
            })?;
            seen.note(&pointer);
            seen.apply(&pointer);
            (pushed.pointer, pushed.moved) = (Some(pointer), moved);
        }
        // Until the pointer is there, a collection might retire what it is to lead to.
        drop(mark);
        self.remember(store, agent, &seen)?;
        let serial = pushed.pointer.as_ref().map(|pointer| pointer.serial);
        tracing::info!(%agent, %version, sent_blobs, sent_bytes, serial, moved = pushed.moved, "pushed");
        Ok(pushed)
    }

    /// Whether the remote has this very manifest; another one of that name is an error.
    fn manifest_there(&self, current: &Current, json: &[u8]) -> Result<bool, SyncError> {
        let (agent, version) = (current.agent(), current.version());
        let Some(there) = self.read(&layout::manifest(agent, version), MAX_MANIFEST_BYTES)? else {
            return Ok(false);
        };
        if there.bytes == json {
            return Ok(true);
        }
        let what = match model_store::Manifest::from_json(&there.bytes) {
            Ok(other) if other.checksum == current.checksum() => {
                "the files are the same, the manifests differ (who published it, or when)".to_owned()
            }
            Ok(other) => format!("its checksum is {}, here it is {}", other.checksum, current.checksum()),
            Err(e) => format!("what is there is no manifest: {e}"),
        };
        Err(SyncError::Different {
            agent: agent.clone(),
            version: version.clone(),
            remote: self.address().to_string(),
            what,
        })
    }

    /// The blobs that are not there in their size.
    fn missing<'a>(&self, blobs: &'a [Blob<'a>]) -> Result<Vec<&'a Blob<'a>>, SyncError> {
        let paths: Vec<_> = blobs.iter().map(|blob| layout::blob(&blob.digest)).collect();
        let heads = self.heads(&paths)?;
        let is_missing = |(blob, head): &(&Blob<'_>, Option<object_store::ObjectMeta>)| {
            head.as_ref().is_none_or(|head| head.size != blob.size)
        };
        Ok(blobs.iter().zip(heads).filter(is_missing).map(|(blob, _)| blob).collect())
    }

    fn send_all(&self, current: &Current, blobs: &[&Blob<'_>], mark: &Mark<'_>) -> Result<u64, SyncError> {
        let queue = Mutex::new(blobs.iter());
        let (sent, stopped) = (AtomicU64::new(0), AtomicBool::new(false));
        let serve = || -> Result<(), SyncError> {
            while !stopped.load(Ordering::Relaxed) {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(blob) = next else { break };
                mark.renew_if_old()?;
                self.send(current, blob).inspect_err(|_| stopped.store(true, Ordering::Relaxed))?;
                sent.fetch_add(blob.size, Ordering::Relaxed);
            }
            Ok(())
        };
        in_threads(READERS.min(blobs.len()), serve)?;
        Ok(sent.into_inner())
    }

    /// Reads a file once, hashing what is sent. Only what has the right digest becomes an object.
    fn send(&self, current: &Current, blob: &Blob<'_>) -> Result<(), SyncError> {
        let path = layout::blob(&blob.digest);
        let part_bytes = self.options.part_bytes.max(blob.size.div_ceil(MAX_PARTS));
        let mut source = current.open(blob.file)?;
        let shown = current.path().join(blob.file.as_path());
        if blob.size <= part_bytes {
            let mut whole = Source::of(&mut source, &shown, blob.size);
            let bytes = whole.next(blob.size)?;
            whole.check(current, blob)?;
            self.put(&path, bytes, PutMode::Overwrite)?;
            self.observer().advance(blob.size);
            return Ok(());
        }
        let failed = |e: &object_store::Error| self.failed("send", &path, said(e));
        let mut upload = self.wait(self.object_store().put_multipart(&path))?.map_err(|e| failed(&e))?;
        let mut send_parts = || -> Result<(), SyncError> {
            let mut whole = Source::of(&mut source, &shown, blob.size);
            let mut parts = JoinSet::new();
            let at_a_time = (self.options.parallel / READERS).max(2);
            loop {
                let bytes = whole.next(part_bytes)?;
                if !bytes.is_empty() {
                    let size = bytes.len() as u64;
                    let part = upload.put_part(bytes.into());
                    parts.spawn_on(async move { part.await.map(|()| size) }, self.runtime().handle());
                }
                let is_last = whole.left == 0;
                while parts.len() >= at_a_time || (is_last && !parts.is_empty()) {
                    match self.wait(parts.join_next())? {
                        Some(Ok(Ok(size))) => self.observer().advance(size),
                        Some(Ok(Err(e))) => return Err(failed(&e)),
                        Some(Err(e)) => return Err(self.failed("send", &path, e)),
                        None => {}
                    }
                }
                if is_last {
                    break;
                }
            }
            whole.check(current, blob)
        };
        let sent = send_parts();
        match sent {
            Ok(()) => self.wait(upload.complete())?.map(drop).map_err(|e| failed(&e)),
            Err(error) => {
                // Parts that stay cost room until the bucket's own rule removes them. A stop must not wait long.
                let abort = async { tokio::time::timeout(LAST_WORD, upload.abort()).await };
                let _ = self.runtime().block_on(abort);
                Err(error)
            }
        }
    }

    /// Puts a version's signature beside its manifest, instead of the one before.
    fn put_signature(
        &self,
        agent: &AgentName,
        version: &VersionName,
        signature: &[u8],
    ) -> Result<(), SyncError> {
        self.ensure_writable()?;
        let path = layout::signature(agent, version);
        match self.read(&path, MAX_BUNDLE_BYTES as u64)? {
            Some(there) if there.bytes == signature => Ok(()),
            _ => self.put(&path, signature.to_vec(), PutMode::Overwrite),
        }
    }
}

/// A file that is read from its beginning to its end, and hashed.
struct Source<'a> {
    file: &'a mut std::fs::File,
    shown: &'a FsPath,
    left: u64,
    hasher: Sha256,
}

impl<'a> Source<'a> {
    fn of(file: &'a mut std::fs::File, shown: &'a FsPath, size: u64) -> Self {
        Self { file, shown, left: size, hasher: Sha256::new() }
    }

    /// At most so many bytes more; fewer where the file ends early, which its digest will tell.
    fn next(&mut self, bytes: u64) -> Result<Vec<u8>, SyncError> {
        let wanted = bytes.min(self.left);
        let mut part = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
        (&mut *self.file).take(wanted).read_to_end(&mut part).map_err(|source| {
            model_store::StoreError::Io { action: "read", path: self.shown.to_owned(), source }
        })?;
        self.hasher.update(&part);
        self.left = if (part.len() as u64) < wanted { 0 } else { self.left - wanted };
        Ok(part)
    }

    fn check(&self, current: &Current, blob: &Blob<'_>) -> Result<(), SyncError> {
        let found: Digest = <[u8; 32]>::from(self.hasher.clone().finalize()).into();
        if found == blob.digest {
            return Ok(());
        }
        Err(SyncError::Rotten {
            agent: current.agent().clone(),
            version: current.version().clone(),
            path: blob.file.to_string(),
            what: format!("has digest {found}, its manifest says {}", blob.digest),
        })
    }
}

/// The manifest's own bytes.
fn manifest_of(current: &Current) -> Result<Vec<u8>, SyncError> {
    let refused = |what: &str| SyncError::NotPushable {
        agent: current.agent().clone(),
        version: current.version().clone(),
        what: what.to_owned(),
    };
    match current.manifest().generation() {
        Generation::Current => {}
        Generation::Legacy => {
            return Err(refused("its manifest is of the old kind, without digests; publish it again"));
        }
        Generation::Newer(_) => return Err(refused("its manifest is of a newer format")),
    }
    if current.manifest().agent.as_ref() != Some(current.agent()) {
        return Err(refused("its manifest is of another agent; publish it again under this one"));
    }
    if let Some(quarantine) = current.quarantine()? {
        return Err(refused(&format!("it is quarantined: {}", quarantine.reason)));
    }
    let path = current.path().join(MANIFEST_FILE);
    let json = std::fs::read(&path).map_err(|source| model_store::StoreError::Io {
        action: "read",
        path: path.clone(),
        source,
    })?;
    let is_it = model_store::Manifest::from_json(&json).is_ok_and(|read| read == *current.manifest());
    if is_it { Ok(json) } else { Err(refused("its manifest has just changed")) }
}

/// Each content once, the biggest first.
fn blobs_of(current: &Current) -> Vec<Blob<'_>> {
    let mut blobs = BTreeMap::new();
    for entry in &current.manifest().files {
        let blob = Blob { digest: entry.sha256, size: entry.size, file: &entry.path };
        blobs.entry(entry.sha256).or_insert(blob);
    }
    let mut blobs: Vec<_> = blobs.into_values().collect();
    blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
    blobs
}

/// Runs the same in several threads; the first error is the outcome.
pub(crate) fn in_threads(
    count: usize,
    serve: impl Fn() -> Result<(), SyncError> + Sync,
) -> Result<(), SyncError> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..count).map(|_| scope.spawn(&serve)).collect();
        let mut outcome = if count == 0 { Ok(()) } else { serve() };
        for thread in threads {
            let joined = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            outcome = match outcome {
                // What stopped the others says more than that they were stopped.
                Ok(()) | Err(SyncError::Stopped) if joined.is_err() => joined,
                other => other,
            };
        }
        outcome
    })
}

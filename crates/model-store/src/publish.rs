//! From a staging to a published version: steps 3 to 7 of the protocol, under the agent's lock.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use model_signing::Fingerprint;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::hash::hash_one;
use crate::history::{self, Action, MoveOptions, PointerName, Record};
use crate::holder::now;
use crate::human::human_size;
use crate::layout::{self, Place, Pointer, SIGNATURES_DIR, VERSIONS_DIR};
use crate::legacy;
use crate::manifest::{CHECKSUM_ALGORITHM, FileEntry, Generation, Manifest};
use crate::names::{AgentName, MANIFEST_FILE, PayloadPath, VersionName};
use crate::notes;
use crate::payload::{Payload, PayloadFile, PayloadProblem, Stamp};
use crate::pointers::{confirm, intend_and_move};
use crate::read::MAX_MANIFEST_BYTES;
use crate::signature::{NewSignature, SignatureState};
use crate::signed::Described;
use crate::staging::{Known, Staging};
use crate::transfer::Links;
use crate::trust::{SignaturePolicy, judge};

/// From so many files on, one `syncfs` is cheaper than an `fsync` for each, as long as they are small.
const SYNCFS_FILES: usize = 128;
/// The mean size up to which files count as small for that.
const SYNCFS_MEAN_BYTES: u64 = 1024 * 1024;

/// Whether publishing a version also makes it current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// Point `current` at it.
    #[default]
    Activate,
    /// Leave `current` where it is.
    Keep,
}

/// Which checksum, and so which manifest, a version gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumKind {
    /// Format 1: the digest of the listing that `sha256sum` prints.
    #[default]
    Listing,
    /// The old Python helper's three keys, for hosts where its readers still verify. Without digests of the
    /// files a damaged version cannot be mended, and a copy of it may not verify.
    Legacy,
}

/// What [`Staging::finalize`] wants to know.
#[derive(Clone, Debug, Default)]
pub struct FinalizeOptions {
    /// For the manifest: whatever an auditor may ask for.
    pub metadata: Map<String, Value>,
    /// Whether the version becomes current.
    pub activation: Activation,
    /// Which manifest it gets.
    pub checksum: ChecksumKind,
    /// The manifest's `created_at`; now unless given. Fixed by generators whose output must be reproducible.
    pub created_at: Option<Timestamp>,
    /// Who, for the history; `user@host` unless given.
    pub actor: Option<String>,
    /// Why, for the history.
    pub reason: Option<String>,
    /// Whose signature it gets. It is there before the version is, so that a store which refuses what is not
    /// signed can make it current in the same step.
    pub signature: NewSignature,
}

/// A version that was published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
    /// The checksum of its payload.
    pub checksum: Digest,
    /// Its absolute path.
    pub path: PathBuf,
    /// What was current before.
    pub previous: Option<VersionName>,
    /// Whether it is current now.
    pub activated: bool,
    /// The number of its payload files.
    pub files: usize,
    /// The bytes of its payload.
    pub bytes: u64,
    /// The key that signed it, if it is one that the store trusts or that was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<Fingerprint>,
    /// What the store's policy on signatures warns of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caution: Option<String>,
    /// Files that were to be moved and had to stay where they were: changed meanwhile, or not removable.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_outside: Vec<PathBuf>,
}

impl Staging {
    /// Publishes the staging: validates and hashes the payload, writes the manifest, makes everything
    /// durable, renames the directory to its final name and points `current` at it.
    ///
    /// Whatever fails up to that rename leaves the store as it was, and removes the staging. A failure
    /// between the rename and the move of `current` takes the version back.
    pub fn finalize(self, options: FinalizeOptions) -> Result<Published, StoreError> {
        self.publish(options, None)
    }

    /// As [`finalize`](Self::finalize), with a manifest that was written elsewhere, for this agent and version:
    /// its bytes are kept as they are. Refused where the payload is not exactly what it lists. Of the options,
    /// those about the manifest count for nothing.
    pub fn finalize_as(
        self,
        manifest_json: &[u8],
        options: FinalizeOptions,
    ) -> Result<Published, StoreError> {
        self.publish(options, Some(manifest_json))
    }

    fn publish(
        mut self,
        options: FinalizeOptions,
        manifest_json: Option<&[u8]>,
    ) -> Result<Published, StoreError> {
        let FinalizeOptions { metadata, activation, checksum, created_at, actor, reason, signature } =
            options;
        // What cannot be moved later is said before the work.
        self.agent.current_to_move()?;
        let policy = self.store.signature_policy()?;
        if activation == Activation::Activate && matches!(signature, NewSignature::None) {
            policy.admit(self.agent(), &self.version, &SignatureState::Unsigned)?;
        }
        let payload = self.validated()?;
        let files = self.hashed(&payload.files)?;
        let (agent, version) = (self.agent().clone(), self.version.clone());
        let created_at = created_at.unwrap_or_else(now);
        let links = payload.links.clone();
        let listed = Manifest::new(agent.clone(), version.clone(), metadata, created_at, files, links);
        let (manifest, sha256) = match manifest_json {
            Some(json) => self.write_foreign_manifest(&listed, json)?,
            None => self.write_manifest(&listed, checksum)?,
        };
        let signing = Signing::of(&manifest, sha256, &self, signature, &policy, activation)?;
        self.sync_all(&payload)?;
        // Hashing gigabytes is nobody else's business; from here on it is.
        let Some(_lock) = self.store.lock(&self.agent)? else {
            let what = "was removed while a version was staged in it";
            return Err(StoreError::corrupt(self.agent.path(), what));
        };
        let previous = self.agent.current_to_move()?.map(|pointer| pointer.version);
        self.put_signature(&signing)?;
        self.make_it_exist(previous.is_none()).inspect_err(|_| self.take_signature_back(&signing))?;
        let pointer = match activation {
            Activation::Activate => PointerName::Current,
            Activation::Keep => PointerName::Version(version.clone()),
        };
        let from = previous.clone().filter(|_| activation == Activation::Activate);
        let record = Record {
            checksum: Some(manifest.checksum),
            bytes: Some(self.own_bytes(&payload)?),
            ..MoveOptions { actor, reason }.record(Action::Publish, pointer, from, Some(version.clone()))
        };
        self.announce(&record).inspect_err(|_| self.take_signature_back(&signing))?;
        self.name = None;
        let left_outside = self.take_away(&listed);
        Ok(Published {
            path: self.agent.version_path(&version, Place::Versions),
            agent,
            version,
            checksum: manifest.checksum,
            previous,
            activated: activation == Activation::Activate,
            files: listed.files.len(),
            bytes: listed.size_bytes(),
            signed_by: signing.by,
            caution: signing.caution,
            left_outside,
        })
    }

    /// What the version adds to the store. Files with several names may have become copies since they were
    /// looked at.
    fn own_bytes(&self, payload: &Payload) -> Result<u64, StoreError> {
        let mut moved = self.moved_by_link();
        moved.extend(self.adopted());
        if payload.files.iter().all(|file| file.names == 1) {
            return Ok(payload.own_bytes(&moved));
        }
        let now =
            Payload::scan(self.dir(), Links::Keep).map_err(|e| StoreError::io("read", self.path(), e))?;
        Ok(now.own_bytes(&moved))
    }

    /// Step 3: nothing but what a version may contain.
    fn validated(&self) -> Result<Payload, StoreError> {
        let mut payload =
            Payload::scan(self.dir(), Links::Keep).map_err(|e| StoreError::io("read", self.path(), e))?;
        if payload.has_manifest {
            payload.refuse_manifest();
        }
        if payload.files.is_empty() && payload.problems.is_empty() {
            payload.refuse_emptiness();
        }
        if payload.problems.is_empty() {
            return Ok(payload);
        }
        Err(self.refused(payload.problems))
    }

    fn refused(&self, problems: Vec<PayloadProblem>) -> StoreError {
        StoreError::PayloadRefused { agent: self.agent().clone(), version: self.version.clone(), problems }
    }

    /// Step 3: the digest of every file; what came through this staging's own writers is not read again.
    fn hashed(&self, files: &[PayloadFile]) -> Result<Vec<FileEntry>, StoreError> {
        let known = self.take_known();
        files.par_iter().map(|file| self.hashed_one(file, known.get(&file.path))).collect()
    }

    fn hashed_one(&self, found: &PayloadFile, known: Option<&Known>) -> Result<FileEntry, StoreError> {
        // Nothing is opened that is as it was when it was hashed.
        if let Some(known) = known.filter(|known| known.stamp == found.stamp) {
            return Ok(known.entry.clone());
        }
        let failed = |e| self.failed("read", &found.path, e);
        let file = dir::open_payload(self.dir(), found.path.as_path()).map_err(failed)?;
        let stamp = Stamp::of_file(&file).map_err(failed)?;
        let shared = known.is_some_and(|known| known.shared && known.stamp.is_same_file(stamp));
        if found.names > 1 && !shared {
            // Another name of this file is outside our hands, and so are its bytes: take a copy of our own.
            let parent = self.parent_of(&found.path)?;
            durable::remove_file(parent.as_fd(), found.path.file_name()).map_err(failed)?;
            return self.copy(file, &self.path().join(found.path.as_path()), &found.path);
        }
        durable::seal(file.as_fd()).map_err(|e| self.failed("make read-only", &found.path, e))?;
        hash_one(self.dir(), self.path(), found.path.clone(), self.store.progress())
    }

    /// Step 3, at its end: writes the manifest and gives the one that was written. What no reader could read
    /// again is refused here, before it exists.
    fn write_manifest(
        &self,
        listed: &Manifest,
        checksum: ChecksumKind,
    ) -> Result<(Manifest, Digest), StoreError> {
        let path = self.path().join(MANIFEST_FILE);
        let failed = |e| StoreError::io("write", &path, e);
        let mut file = durable::create_file(self.dir(), MANIFEST_FILE).map_err(failed)?;
        let manifest = match checksum {
            ChecksumKind::Listing => listed.clone(),
            // The manifest's own name is there by now: it may change the order in which a directory is listed.
            ChecksumKind::Legacy => {
                listed.as_legacy(legacy::tally(self.dir(), self.path(), self.store.progress())?.checksum)
            }
        };
        let json = manifest.to_json().map_err(|e| failed(e.into()))?;
        if let Err(reason) = check_readable(&manifest, &json) {
            return Err(self.refused(vec![PayloadProblem::new(MANIFEST_FILE, reason)]));
        }
        file.write_all(&json).and_then(|()| durable::seal(file.as_fd())).map_err(failed)?;
        Ok((manifest, Digest::of(&json)))
    }

    /// Step 5, before the rename: the signature lies beside the version before there is one.
    fn put_signature(&self, signing: &Signing) -> Result<(), StoreError> {
        let Some(bundle) = &signing.bundle else { return Ok(()) };
        // Somebody who knows of no locks may have made a version of this name, whose signature is not ours.
        if self.agent.open_version(&self.version, Place::Versions)?.is_some() {
            let (agent, version) = (self.agent().clone(), self.version.clone());
            return Err(StoreError::VersionExists { agent, version });
        }
        notes::write_bytes(&self.agent, SIGNATURES_DIR, &self.version, bundle)
            .inspect_err(|_| self.take_signature_back(signing))
    }

    /// Takes the signature away where the version is a staging again. Should that fail, it is about a version
    /// that is not there, and the next mutation removes it.
    fn take_signature_back(&self, signing: &Signing) {
        if signing.bundle.is_some() && self.name.is_some() {
            let _ = notes::remove(&self.agent, SIGNATURES_DIR, &self.version);
        }
    }

    /// The same with a manifest of somebody else's, which must be of what was staged.
    fn write_foreign_manifest(
        &self,
        listed: &Manifest,
        json: &[u8],
    ) -> Result<(Manifest, Digest), StoreError> {
        let refuse = |reason: String| self.refused(vec![PayloadProblem::new(MANIFEST_FILE, reason)]);
        let manifest = Manifest::from_json(json).map_err(|e| refuse(format!("is no manifest: {e}")))?;
        if let Err(reason) = check_is_of(&manifest, listed) {
            return Err(refuse(reason));
        }
        let path = self.path().join(MANIFEST_FILE);
        let failed = |e| StoreError::io("write", &path, e);
        let mut file = durable::create_file(self.dir(), MANIFEST_FILE).map_err(failed)?;
        file.write_all(json).and_then(|()| durable::seal(file.as_fd())).map_err(failed)?;
        Ok((manifest, Digest::of(json)))
    }

    /// Step 4: every file, then every directory from the innermost out. Directories get the store's mode first.
    fn sync_all(&self, payload: &Payload) -> Result<(), StoreError> {
        self.early.finish()?;
        durable::open_up_dir(self.dir()).map_err(|e| StoreError::io("set the mode of", self.path(), e))?;
        for dir in &payload.dirs {
            dir::open_payload_dir(self.dir(), dir.as_path())
                .and_then(|dir| durable::open_up_dir(dir.as_fd()))
                .map_err(|e| self.failed("set the mode of", dir, e))?;
        }
        let count = payload.files.len();
        if count >= SYNCFS_FILES && payload.size_bytes() / count as u64 <= SYNCFS_MEAN_BYTES {
            return durable::sync_file_system(self.dir())
                .map_err(|e| StoreError::io("sync the file system of", self.path(), e));
        }
        let sync = |path: &Path| {
            self.store.progress().advance(0)?;
            durable::sync(dir::open_payload(self.dir(), path)?.as_fd())
        };
        let manifest = Path::new(MANIFEST_FILE);
        let files: Vec<&Path> =
            payload.files.iter().map(|file| file.path.as_path()).chain([manifest]).collect();
        let failed = |path: &Path, e| StoreError::io("sync", &self.path().join(path), e);
        files.par_iter().try_for_each(|path| sync(path).map_err(|e| failed(path, e)))?;
        for dir in payload.dirs.iter().rev().map(PayloadPath::as_path) {
            dir::open_payload_dir(self.dir(), dir)
                .and_then(|opened| durable::sync(opened.as_fd()))
                .map_err(|e| failed(dir, e))?;
        }
        durable::sync(self.dir()).map_err(|e| failed(Path::new(""), e))
    }

    /// Step 5: from the end of this the version exists.
    fn make_it_exist(&mut self, first: bool) -> Result<(), StoreError> {
        self.store.progress().advance(0).map_err(|e| StoreError::io("publish", self.path(), e))?;
        let sync = |dir, path| durable::sync(dir).map_err(|e| StoreError::io("sync", path, e));
        // `versions/` may be as new as its version, in an agent of the old layout too,
        sync(self.agent.handle(), self.agent.path())?;
        if first {
            // and so may the agent itself.
            sync(layout::open_root(self.store.root())?.as_fd(), self.store.root())?;
        }
        let staging_name = self.version.staging_name();
        let path = self.agent.version_path(&self.version, Place::Versions);
        if !self.is_named(&staging_name).map_err(|e| StoreError::io("look at", self.path(), e))? {
            let what = "is not the directory any more that was staged here; somebody moved or replaced it";
            return Err(StoreError::corrupt(self.path(), what));
        }
        match durable::rename_new(self.versions.as_fd(), &staging_name, self.version.as_str()) {
            Ok(()) => self.name = Some(self.version.to_string()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let (agent, version) = (self.agent().clone(), self.version.clone());
                return Err(StoreError::VersionExists { agent, version });
            }
            Err(e) => return Err(StoreError::io("rename the staging to", &path, e)),
        }
        durable::sync(self.versions.as_fd()).map_err(|e| {
            self.take_back();
            StoreError::io("sync", &self.agent.path().join(VERSIONS_DIR), e)
        })
    }

    /// Steps 6 and 7: the record, and the pointer where it is about that. From the end of this the version is
    /// current.
    fn announce(&mut self, record: &Record) -> Result<(), StoreError> {
        let to = Pointer { version: self.version.clone(), place: Place::Versions };
        let announced = match record.pointer {
            PointerName::Current => intend_and_move(&self.agent, record, Some(&to)),
            _ => history::append(&self.agent, record),
        };
        if let Err(e) = announced {
            self.take_back();
            // The next writer would do the same.
            let _ = history::repair(&self.agent);
            return Err(e);
        }
        // Readers may follow the pointer already: nothing is taken back from here.
        self.name = None;
        confirm(&self.agent, record)
    }

    /// Makes the version a staging again, which goes away with this guard. No reader can have leased it: the
    /// staging's own lock is still on the directory.
    fn take_back(&mut self) {
        let staging_name = self.version.staging_name();
        // Should even this fail, a complete version stays, under a name that readers may know by now.
        let taken_back = self.is_named(self.version.as_str()).unwrap_or(false)
            && durable::rename_new(self.versions.as_fd(), self.version.as_str(), &staging_name).is_ok();
        self.name = taken_back.then_some(staging_name);
    }
}

/// The signature that a version gets, and how it stands with it.
struct Signing {
    bundle: Option<Vec<u8>>,
    by: Option<Fingerprint>,
    caution: Option<String>,
}

impl Signing {
    fn of(
        manifest: &Manifest,
        sha256: Digest,
        staging: &Staging,
        signature: NewSignature,
        policy: &SignaturePolicy,
        activation: Activation,
    ) -> Result<Self, StoreError> {
        let (agent, version) = (staging.agent(), &staging.version);
        let made_with = match &signature {
            NewSignature::Make(key) => Some(key.verifying_key().fingerprint()),
            _ => None,
        };
        let described = Described { agent, version, manifest, sha256 };
        let bundle = signature.into_bytes(&described)?;
        let state = bundle
            .as_deref()
            .map_or(SignatureState::Unsigned, |bundle| judge(&described, bundle, policy.trusted()));
        let caution = match activation {
            Activation::Activate => policy.admit(agent, version, &state)?,
            Activation::Keep => None,
        };
        let by = match state {
            SignatureState::Signed { key } => Some(key),
            _ => made_with,
        };
        Ok(Self { bundle, by, caution })
    }
}

/// Whether a manifest is of this agent, version and payload; the error says what is not.
fn check_is_of(manifest: &Manifest, listed: &Manifest) -> Result<(), String> {
    if manifest.generation() != Generation::Current {
        return Err("is of another format than 1".to_owned());
    }
    if (&manifest.agent, &manifest.version) != (&listed.agent, &listed.version) {
        let agent = manifest.agent.as_ref().map_or("nobody", AgentName::as_str);
        return Err(format!("is of {agent}/{}", manifest.version));
    }
    if manifest.checksum_algorithm.as_deref() != Some(CHECKSUM_ALGORITHM) {
        return Err(format!("does not say `checksum_algorithm` {CHECKSUM_ALGORITHM}"));
    }
    if manifest.checksum != listed.checksum {
        return Err(format!("says checksum {}, the files have {}", manifest.checksum, listed.checksum));
    }
    if (&manifest.files, &manifest.links) != (&listed.files, &listed.links) {
        return Err("lists other files or links than there are".to_owned());
    }
    Ok(())
}

/// Whether a reader will take this text for this manifest; the error says why not.
fn check_readable(manifest: &Manifest, json: &[u8]) -> Result<(), String> {
    if json.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(format!(
            "would be {}, more than the 64 MiB that a reader takes; shorten the metadata or pack the files",
            human_size(json.len() as u64)
        ));
    }
    let read = Manifest::from_json(json)
        .map_err(|e| format!("could not be read again ({e}); make the metadata simpler"))?;
    // A number of the metadata may differ in its last bit when it is read: that is still the same manifest.
    let read = Manifest { metadata: manifest.metadata.clone(), ..read };
    if read == *manifest { Ok(()) } else { Err("would be read as another one than was written".to_owned()) }
}

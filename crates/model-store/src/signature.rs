//! The signature of a version, beside it: `<agent>/.signatures/<version>.json`.
//!
//! It is a bundle as `model_signing` writes and reads it, so any host can check a version without this program:
//! `model_signing verify key <agent>/versions/<v> --signature <agent>/.signatures/<v>.json --public_key KEY.pub`.

use std::os::fd::AsFd;

use model_signing::{Fingerprint, MAX_BUNDLE_BYTES, SigningKey, VerifyingKey};
use serde::Serialize;

use crate::digest::Digest;
use crate::dir;
use crate::error::StoreError;
use crate::history::{self, Action, MoveOptions, PointerName};
use crate::layout::{AgentDir, SIGNATURES_DIR};
use crate::manifest::Manifest;
use crate::names::{AgentName, VersionName};
use crate::notes;
use crate::read::{Current, read_manifest_text};
use crate::signed::Described;
use crate::store::ModelStore;
use crate::trust::judge;

/// How a version stands with the keys that are trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum SignatureState {
    /// A trusted key signed the manifest and, by it, every file. Whether the files are those of the manifest
    /// is for [`ModelStore::verify`].
    Signed {
        /// Which.
        key: Fingerprint,
    },
    /// There is no signature.
    Unsigned,
    /// There is one, and it does not count.
    Bad {
        /// Why not: what the signature is, or does.
        reason: String,
    },
}

/// The signature of a version that is about to be published.
#[derive(Clone, Debug, Default)]
pub enum NewSignature {
    /// It gets none.
    #[default]
    None,
    /// It is signed with this key.
    Make(SigningKey),
    /// It has one already, from where it comes from: a bundle, which must be of this very version.
    Take(Vec<u8>),
}

impl NewSignature {
    /// The signature's bytes, for a version whose manifest is written.
    pub(crate) fn into_bytes(self, described: &Described<'_>) -> Result<Option<Vec<u8>>, StoreError> {
        match self {
            Self::None => Ok(None),
            Self::Make(key) => sign(described, &key).map(Some),
            Self::Take(bundle) => check_claims(described, &bundle).map(|()| Some(bundle)),
        }
    }
}

impl Current {
    /// The bytes of the signature; `None` where there is none.
    pub fn signature(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let failed = |e| StoreError::io("read the signature of", self.path(), e);
        let agent = dir::open_path(self.agent_path()).map_err(failed)?;
        // One more byte than is allowed, so that what is too large is found out.
        notes::read_bytes(agent.as_fd(), SIGNATURES_DIR, self.version(), MAX_BUNDLE_BYTES as u64 + 1)
            .map_err(failed)
    }

    /// How the version stands with some keys. Its files are not read.
    pub fn signature_state(&self, trusted: &[VerifyingKey]) -> Result<SignatureState, StoreError> {
        let Some(bundle) = self.signature()? else { return Ok(SignatureState::Unsigned) };
        Ok(match self.manifest_digest()? {
            Some(sha256) => judge(&described(self, sha256), &bundle, trusted),
            None => SignatureState::Bad { reason: "is of a version that has no manifest.json".to_owned() },
        })
    }

    /// The SHA-256 of `manifest.json`, which must say what this reader was told; `None` where there is none.
    fn manifest_digest(&self) -> Result<Option<Digest>, StoreError> {
        let Some(json) = read_manifest_text(self.handle(), self.path())? else { return Ok(None) };
        if Manifest::from_json(&json).ok().as_ref() == Some(self.manifest()) {
            return Ok(Some(Digest::of(&json)));
        }
        Err(StoreError::corrupt(self.path(), "has another manifest.json than a moment ago"))
    }
}

impl ModelStore {
    /// The bytes of a version's signature; `None` where it has none, or is not there.
    pub fn signature(&self, agent: &AgentName, version: &VersionName) -> Result<Option<Vec<u8>>, StoreError> {
        self.get_version(agent, version)?.map_or(Ok(None), |found| found.signature())
    }

    /// How a version stands with the keys that this store trusts. Its files are not read.
    pub fn check_signature(
        &self,
        agent: &AgentName,
        version: &VersionName,
    ) -> Result<SignatureState, StoreError> {
        let policy = self.signature_policy()?;
        self.require_version(agent, version)?.signature_state(policy.trusted())
    }

    /// Signs a version, replacing the signature that it may have. Its files are not read: they are signed as
    /// the manifest has them.
    pub fn sign(
        &self,
        agent: &AgentName,
        version: &VersionName,
        key: &SigningKey,
        options: &MoveOptions,
    ) -> Result<Fingerprint, StoreError> {
        self.with_lock(agent, |agent| {
            let found = self.unmarked(agent, version)?;
            found.check_sizes()?;
            let bundle = match found.manifest_digest()? {
                Some(sha256) => sign(&described(&found, sha256), key)?,
                None => return Err(refused(&found, "it has no manifest.json")),
            };
            let fingerprint = key.verifying_key().fingerprint();
            put(agent, version, &bundle, &fingerprint.to_string(), options)?;
            Ok(fingerprint)
        })
    }

    /// Puts a signature beside its version, replacing the one that it may have. It must be of this version; by
    /// whom it is does not matter here. Durable when this returns.
    pub fn put_signature(
        &self,
        agent: &AgentName,
        version: &VersionName,
        bundle: &[u8],
    ) -> Result<(), StoreError> {
        self.with_lock(agent, |agent| {
            let Some(found) = Current::open_in(agent, version)? else {
                return self.require_version(agent.name(), version).map(drop);
            };
            let Some(sha256) = found.manifest_digest()? else {
                return Err(refused(&found, "it has no manifest.json"));
            };
            check_claims(&described(&found, sha256), bundle)?;
            let claimed = model_signing::Bundle::parse(bundle).ok().and_then(|bundle| bundle.claimed_key());
            let claimed = claimed.unwrap_or_else(|| "of no name".to_owned());
            put(agent, version, bundle, &claimed, &MoveOptions::default())
        })
    }
}

fn described(found: &Current, sha256: Digest) -> Described<'_> {
    Described { agent: found.agent(), version: found.version(), manifest: found.manifest(), sha256 }
}

fn sign(described: &Described<'_>, key: &SigningKey) -> Result<Vec<u8>, StoreError> {
    let unsignable = |what: String| StoreError::SignatureRefused {
        agent: described.agent.clone(),
        version: described.version.clone(),
        what: format!("a signature {what}"),
    };
    let statement = described.statement().map_err(unsignable)?;
    statement.sign(key).map_err(|e| unsignable(format!("could not be made: {e}")))
}

fn check_claims(described: &Described<'_>, bundle: &[u8]) -> Result<(), StoreError> {
    described.check_claims(bundle).map_err(|what| StoreError::SignatureRefused {
        agent: described.agent.clone(),
        version: described.version.clone(),
        what: format!("it {what}"),
    })
}

fn refused(found: &Current, what: &str) -> StoreError {
    StoreError::SignatureRefused {
        agent: found.agent().clone(),
        version: found.version().clone(),
        what: what.to_owned(),
    }
}

/// Writes the signature, then the record: what is on record was done.
fn put(
    agent: &AgentDir,
    version: &VersionName,
    bundle: &[u8],
    key: &str,
    options: &MoveOptions,
) -> Result<(), StoreError> {
    notes::write_bytes(agent, SIGNATURES_DIR, version, bundle)?;
    let (pointer, at) = (PointerName::Version(version.clone()), Some(version.clone()));
    let reason = match &options.reason {
        Some(reason) => format!("{reason} (key {key})"),
        None => format!("key {key}"),
    };
    let options = MoveOptions { reason: Some(reason), ..options.clone() };
    history::append(agent, &options.record(Action::Sign, pointer, at.clone(), at))
}

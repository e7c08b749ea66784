//! Whose signatures a store takes: `ROOT/.policy.json`.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use model_signing::{Fingerprint, VerifyingKey, verify};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::layout;
use crate::manifest::Manifest;
use crate::names::{AgentName, VersionName};
use crate::notes::{self, UNFINISHED_PREFIX};
use crate::signature::SignatureState;
use crate::signed::Described;
use crate::store::ModelStore;

/// No name that an agent may have.
const POLICY_FILE: &str = ".policy.json";
/// The format that this program knows.
const FORMAT: u32 = 1;
/// A few keys.
const MAX_POLICY_BYTES: u64 = 1024 * 1024;

/// What is done about a version that no trusted key has signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unsigned {
    /// Nothing: signatures are looked at when somebody asks.
    #[default]
    Allow,
    /// It is taken, and said.
    Warn,
    /// No pointer is moved to it, and it is not pulled.
    Refuse,
}

/// Whose signatures a store takes, and what it does about versions without one.
///
/// A version counts as signed where a trusted key signed it as it is. A signature that is wrong, or of a key
/// that is not trusted, is no signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignaturePolicy {
    /// What is done about a version that no trusted key has signed.
    pub unsigned: Unsigned,
    trusted: Vec<VerifyingKey>,
    /// How the file has each key: as PEM, or as the path of a file with it.
    entries: Vec<String>,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    format: u32,
    unsigned: Unsigned,
    trusted_keys: Vec<String>,
}

/// What a file of any format says.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

impl SignaturePolicy {
    /// A policy that trusts nobody yet.
    #[must_use]
    pub fn new(unsigned: Unsigned) -> Self {
        Self { unsigned, ..Self::default() }
    }

    /// The keys whose signatures are taken.
    #[must_use]
    pub fn trusted(&self) -> &[VerifyingKey] {
        &self.trusted
    }

    /// How the policy's file has each trusted key: as PEM, or as the path of a file with it.
    pub fn entries(&self) -> impl Iterator<Item = (&VerifyingKey, &str)> {
        self.trusted.iter().zip(self.entries.iter().map(String::as_str))
    }

    /// Takes a key's signatures from now on; says whether it did not before.
    pub fn trust(&mut self, key: &VerifyingKey) -> bool {
        if self.trusted.contains(key) {
            return false;
        }
        self.entries.push(key.to_pem().to_owned());
        self.trusted.push(key.clone());
        true
    }

    /// Takes a key's signatures no longer; says whether it did.
    pub fn distrust(&mut self, key: Fingerprint) -> bool {
        let before = self.trusted.len();
        while let Some(at) = self.trusted.iter().position(|trusted| trusted.fingerprint() == key) {
            self.trusted.remove(at);
            self.entries.remove(at);
        }
        self.trusted.len() < before
    }

    /// How a version stands, by the bytes of its `manifest.json` and of its signature, wherever they are: for
    /// whoever has them before the version is there. No payload is read: that its files are those of the
    /// manifest is for whoever brings them in, or for [`ModelStore::verify`].
    #[must_use]
    pub fn judge(
        &self,
        agent: &AgentName,
        version: &VersionName,
        manifest_json: &[u8],
        signature: Option<&[u8]>,
    ) -> SignatureState {
        let Some(signature) = signature else { return SignatureState::Unsigned };
        let manifest = match Manifest::from_json(manifest_json) {
            Ok(manifest) => manifest,
            Err(e) => {
                return SignatureState::Bad { reason: format!("is of a manifest that cannot be read: {e}") };
            }
        };
        let sha256 = Digest::of(manifest_json);
        judge(&Described { agent, version, manifest: &manifest, sha256 }, signature, &self.trusted)
    }

    /// Whether a version may be used that stands so. `Some` is what a policy that warns has to say; a policy
    /// that refuses gives [`StoreError::NotSigned`].
    pub fn admit(
        &self,
        agent: &AgentName,
        version: &VersionName,
        state: &SignatureState,
    ) -> Result<Option<String>, StoreError> {
        let (what, next) = match state {
            SignatureState::Signed { .. } => return Ok(None),
            SignatureState::Unsigned => (
                "is not signed".to_owned(),
                format!("`model-store sign {agent} {version} --key KEY` signs it"),
            ),
            SignatureState::Bad { reason } => (
                format!("has a signature that does not count: it {reason}"),
                format!(
                    "`model-store policy trust KEY.pub` takes a key's signatures, `model-store sign {agent} {version} \
                     --key KEY` makes another"
                ),
            ),
        };
        match self.unsigned {
            Unsigned::Allow => Ok(None),
            Unsigned::Warn => Ok(Some(format!("{agent}/{version} {what}; {next}"))),
            Unsigned::Refuse => {
                Err(StoreError::NotSigned { agent: agent.clone(), version: version.clone(), what, next })
            }
        }
    }

    /// [`judge`](Self::judge) and [`admit`](Self::admit) in one.
    pub fn check(
        &self,
        agent: &AgentName,
        version: &VersionName,
        manifest_json: &[u8],
        signature: Option<&[u8]>,
    ) -> Result<Option<String>, StoreError> {
        self.admit(agent, version, &self.judge(agent, version, manifest_json, signature))
    }
}

/// How a version stands that has a signature.
pub(crate) fn judge(described: &Described<'_>, signature: &[u8], trusted: &[VerifyingKey]) -> SignatureState {
    let verified = verify(signature, trusted).map_err(|e| e.to_string());
    match verified.and_then(|verified| described.check(&verified.statement).map(|()| verified.key)) {
        Ok(key) => SignatureState::Signed { key },
        Err(reason) => SignatureState::Bad { reason },
    }
}

impl ModelStore {
    /// The store's policy on signatures; the default where it has none, which allows everything.
    ///
    /// A policy that cannot be read is an error, and so is a key of it: what was meant to be refused must not
    /// come in by a slip of the pen.
    pub fn signature_policy(&self) -> Result<SignaturePolicy, StoreError> {
        let path = self.signature_policy_path();
        let root = layout::open_root(self.root())?;
        let mut json = Vec::new();
        let read = dir::open_file(root.as_fd(), POLICY_FILE)
            .and_then(crate::transfer::regular)
            .and_then(|file| file.take(MAX_POLICY_BYTES + 1).read_to_end(&mut json));
        match read {
            Ok(_) => self.parse_policy(&path, &json),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(SignaturePolicy::default()),
            Err(e) => Err(StoreError::io("read", &path, e)),
        }
    }

    /// Where the policy lies.
    #[must_use]
    pub fn signature_policy_path(&self) -> PathBuf {
        self.root().join(POLICY_FILE)
    }

    fn parse_policy(&self, path: &Path, json: &[u8]) -> Result<SignaturePolicy, StoreError> {
        let unsound = |what: String| {
            let next = "put it right, or set it anew with `model-store policy set`";
            StoreError::corrupt(path, format!("is no sound policy: {what}; {next}"))
        };
        if json.len() as u64 > MAX_POLICY_BYTES {
            return Err(unsound("it is larger than 1 MiB".to_owned()));
        }
        let head: Head = serde_json::from_slice(json).map_err(|e| unsound(e.to_string()))?;
        if head.format != FORMAT {
            let what =
                format!("is of format {}; this program knows format {FORMAT}: use a newer one", head.format);
            return Err(StoreError::corrupt(path, what));
        }
        let file: PolicyFile = serde_json::from_slice(json).map_err(|e| unsound(e.to_string()))?;
        let mut policy = SignaturePolicy::new(file.unsigned);
        for entry in file.trusted_keys {
            let key = if entry.contains("-----BEGIN") {
                VerifyingKey::from_pem(&entry)
            } else {
                // Relative to the store, so that a copy takes it along.
                VerifyingKey::open(&self.root().join(&entry))
            };
            let key =
                key.map_err(|e| unsound(format!("of a trusted key, {}", crate::human::with_causes(&e))))?;
            policy.trusted.push(key);
            policy.entries.push(entry);
        }
        Ok(policy)
    }

    /// Sets the store's policy. Durable when this returns.
    pub fn set_signature_policy(&self, policy: &SignaturePolicy) -> Result<(), StoreError> {
        let path = self.signature_policy_path();
        let failed = |e| StoreError::io("write", &path, e);
        let file =
            PolicyFile { format: FORMAT, unsigned: policy.unsigned, trusted_keys: policy.entries.clone() };
        let mut json = serde_json::to_vec_pretty(&file).map_err(|e| failed(e.into()))?;
        json.push(b'\n');
        let root = layout::open_root(self.root())?;
        notes::remove_unfinished(root.as_fd());
        let temporary = format!("{UNFINISHED_PREFIX}{}-policy", std::process::id());
        durable::put_file(root.as_fd(), &temporary, POLICY_FILE, &json).map_err(failed)
    }
}

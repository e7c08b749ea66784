//! Whether a version is signed, asked before it is used.
//!
//! A signature is of the manifest, which names every file with its digest: two small files are read for it. That the
//! bytes are those of the manifest is for [`Verify`](crate::Verify).

use model_store::{Current, ModelStore, StoreError, Unsigned};

use crate::LoadError;
use crate::resolve::ResolvedModel;

/// Whether a model must be signed by a key that its store trusts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Signatures {
    /// As the store's policy has it (`model-store policy`): refused, warned of, or not looked at. What lies outside the
    /// store has no policy.
    #[default]
    AsPolicy,
    /// It must, and so must its adapter, whatever the policy says. Nothing outside the store is used.
    Require,
    /// Signatures are not looked at, whatever the policy says.
    Ignore,
}

impl Signatures {
    /// What a value of `MODEL_STORE_SIGNATURES` means: `policy` (or nothing), `require` or `ignore`. Anything else is
    /// `require`: a slip of the pen shuts out, and lets nothing in.
    #[must_use]
    pub fn from_value(value: &str) -> Self {
        match value.trim().to_ascii_lowercase().as_str() {
            "" | "policy" => Self::AsPolicy,
            "ignore" => Self::Ignore,
            _ => Self::Require,
        }
    }
}

/// Refuses a model that is not signed as it must be.
pub(crate) fn check(found: &ResolvedModel, signatures: Signatures) -> Result<(), LoadError> {
    match signatures {
        Signatures::Ignore => return Ok(()),
        Signatures::AsPolicy => {}
        Signatures::Require => {
            if let Some(path) = found.outside_versions() {
                let path = path.display();
                return Err(LoadError::NotSigned {
                    what: format!("{path} is no version of the store, and nothing else is signed"),
                    source: None,
                });
            }
        }
    }
    found.held().try_for_each(|held| check_version(&held.store, &held.current, signatures))
}

fn check_version(store: &ModelStore, current: &Current, signatures: Signatures) -> Result<(), LoadError> {
    let mut policy = store.signature_policy()?;
    if signatures == Signatures::Require {
        policy.unsigned = Unsigned::Refuse;
    }
    if policy.unsigned == Unsigned::Allow {
        return Ok(());
    }
    let (agent, version) = (current.agent(), current.version());
    let state = current.signature_state(policy.trusted())?;
    match policy.admit(agent, version, &state) {
        Ok(None) => Ok(()),
        Ok(Some(caution)) => {
            tracing::warn!(%agent, %version, caution, "the version is not signed by a key that the store trusts");
            Ok(())
        }
        Err(error @ StoreError::NotSigned { .. }) => Err(LoadError::NotSigned {
            what: format!("{agent}/{version} is not used"),
            source: Some(Box::new(error)),
        }),
        Err(error) => Err(error.into()),
    }
}

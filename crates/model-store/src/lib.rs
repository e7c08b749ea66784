//! A model store: versions of models, published whole or not at all.
//!
//! Each agent has a directory of immutable versions and a link, `current`, to the one in use. A writer stages
//! a version out of sight, and [`Staging::finalize`] makes it exist and points `current` at it, each by one
//! atomic step. After a crash at any point a reader finds the old version or the new one, complete.
//!
//! ```
//! use model_store::{FinalizeOptions, ModelStore};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let root = tempfile::tempdir()?;
//! let store = ModelStore::create(root.path())?;
//! let (agent, version) = ("scout".parse()?, "v2025-10-28".parse()?);
//!
//! let staging = store.stage_new(&agent, &version)?;
//! staging.write(&"config.json".parse()?, br#"{"model_type": "bert"}"#)?;
//! let published = staging.finalize(FinalizeOptions::default())?;
//!
//! let current = store.require_current(&agent)?;
//! assert_eq!(current.checksum(), published.checksum);
//! assert!(store.verify(&agent, &version)?.is_ok());
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! A store lives on one local Linux file system (ext4, xfs, btrfs; Linux 5.6 or later). The core is
//! synchronous, opens no network connection, and hashes on rayon's global pool.

pub mod exit;

mod copying;
mod diff;
mod digest;
mod dir;
mod doctor;
mod durable;
mod early;
mod error;
mod gc;
mod hash;
mod history;
mod holder;
mod holdings;
mod human;
mod import;
mod incoming;
mod layout;
mod legacy;
mod list;
mod lock;
mod manifest;
mod names;
mod near;
mod notes;
mod outside;
mod payload;
mod pointers;
mod processes;
mod progress;
mod publish;
mod quarantine;
mod read;
mod recover;
mod remotes;
mod repair;
mod retention;
mod sha256;
mod sharing;
mod signature;
mod signed;
mod space;
mod staging;
mod store;
mod streams;
mod transfer;
mod trust;
mod usage;
mod verified;
mod verify;
mod watch;
mod writeback;
mod writer;

pub use diff::{Compared, FileChange, FileRename, LinkChange, Sides, VersionDiff};
pub use digest::{Digest, DigestError, checksum_of_listing};
pub use doctor::{Complaint, Diagnosis, Doctoring, Fix, Severity};
pub use error::StoreError;
pub use gc::{Collected, Retired};
pub use history::{Action, MoveOptions, PointerName, Record};
pub use holder::Holder;
pub use human::{human_size, with_causes};
pub use incoming::{Incoming, IncomingFile};
pub use list::{AgentEntry, StagingEntry};
pub use manifest::{CHECKSUM_ALGORITHM, FORMAT, FileEntry, Generation, LinkEntry, Manifest};
/// What signs a version, and what checks that; see the crate `model-signing`.
pub use model_signing::{Fingerprint, KeyError, MAX_BUNDLE_BYTES, SigningKey, VerifyingKey};
pub use names::{
    AgentName, MANIFEST_FILE, MAX_NAME_BYTES, MAX_PAYLOAD_PATH_BYTES, NameError, PayloadPath, RefName,
    Selector, VersionName,
};
pub use near::near_names;
pub use payload::PayloadProblem;
pub use pointers::{Moved, RefEntry};
pub use progress::Progress;
pub use publish::{Activation, ChecksumKind, FinalizeOptions, Published};
pub use quarantine::Quarantine;
pub use read::{Current, Lease};
pub use repair::{Mended, Repair, RepairOptions, Repaired};
pub use retention::{Decision, Plan, Policy, Verdict};
pub use signature::{NewSignature, SignatureState};
pub use space::Space;
pub use staging::Staging;
pub use store::{DEFAULT_ROOT, ModelStore, ROOT_VARIABLE};
pub use transfer::{ImportOptions, Imported, Links, Transfer};
pub use trust::{SignaturePolicy, Unsigned};
pub use usage::VersionUsage;
pub use verified::Check;
pub use verify::{Finding, Report};
pub use watch::{Change, Watch};
pub use writer::PayloadWriter;

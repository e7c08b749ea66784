//! From folders to a store.

use std::path::PathBuf;

use jiff::Timestamp;
use model_store::{
    Activation, AgentName, Current, Digest, FileEntry, FinalizeOptions, ModelStore, StoreError, VersionName,
    checksum_of_listing, exit,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::folder::Folder;
use crate::toy::{Kind, Toy, ToyVersion, generate};

/// The legacy alias of the toy store; it leads to `synthesizer`.
pub const ALIAS: &str = "news-cleaner-agent";

/// What became of one version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublishedToy {
    /// The agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
    /// What kind of model it is.
    pub kind: &'static str,
    /// Whether this call published it.
    pub outcome: Outcome,
    /// Whether it is the agent's current version now.
    pub is_current: bool,
    /// The number of its files.
    pub files: usize,
    /// The bytes of its files.
    pub bytes: u64,
    /// The checksum of its payload.
    pub checksum: Digest,
    /// Where it is.
    pub path: PathBuf,
}

/// Whether a version was new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Published by this call.
    Published,
    /// There before, with the same checksum.
    AlreadyThere,
}

/// Why a toy store was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToyError {
    /// A version of that name holds something else.
    #[error(
        "refused: {agent}/{version} is there with checksum {found}, and seed {seed} makes {wanted}; published versions \
         never change, so name another store with --store, or give the seed it was made from"
    )]
    Different {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// The seed asked for.
        seed: u64,
        /// The checksum in the store.
        found: Digest,
        /// The checksum of what the seed makes.
        wanted: Digest,
    },

    /// The store said no.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ToyError {
    /// The exit code of a program that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Different { .. } => exit::REFUSED,
            Self::Store(error) => error.exit_code(),
        }
    }
}

/// Publishes what `seed` makes, and the alias [`ALIAS`].
///
/// What is there already with the same checksum stays; what is there with another one is [`ToyError::Different`], and then
/// nothing at all is published. `current` goes to the second version, unless the agent has one that is not the toy's.
pub fn publish(store: &ModelStore, seed: u64) -> Result<Vec<PublishedToy>, ToyError> {
    let toy = generate(seed);
    for kind in Kind::ALL {
        for version in ToyVersion::ALL {
            existing(store, &toy, kind, version)?;
        }
    }
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let first = rows.len();
        for version in ToyVersion::ALL {
            rows.push(publish_one(store, &toy, kind, version)?);
        }
        let current = store.get_current(&kind.agent())?;
        for row in &mut rows[first..] {
            row.is_current = current.as_ref().is_some_and(|current| *current.version() == row.version);
        }
    }
    store.add_alias(&ALIAS.parse().map_err(StoreError::from)?, &Kind::Synthesizer.agent())?;
    Ok(rows)
}

/// The version in the store, if it is there and what the seed makes.
fn existing(
    store: &ModelStore,
    toy: &Toy,
    kind: Kind,
    version: ToyVersion,
) -> Result<Option<Current>, ToyError> {
    let (agent, name) = (kind.agent(), version.name());
    let Some(found) = store.get_version(&agent, &name)? else { return Ok(None) };
    let wanted = toy.folder(kind, version).checksum();
    if found.checksum() == wanted {
        return Ok(Some(found));
    }
    let (seed, found) = (toy.seed(), found.checksum());
    Err(ToyError::Different { agent, version: name, seed, found, wanted })
}

fn publish_one(
    store: &ModelStore,
    toy: &Toy,
    kind: Kind,
    version: ToyVersion,
) -> Result<PublishedToy, ToyError> {
    let folder = toy.folder(kind, version);
    let row = |outcome, path| PublishedToy {
        agent: kind.agent(),
        version: version.name(),
        kind: kind.title(),
        outcome,
        is_current: false,
        files: folder.files().len(),
        bytes: folder.size_bytes(),
        checksum: folder.checksum(),
        path,
    };
    if let Some(found) = existing(store, toy, kind, version)? {
        return Ok(row(Outcome::AlreadyThere, found.path().to_owned()));
    }
    match stage_and_finalize(store, toy, kind, version) {
        Ok(path) => Ok(row(Outcome::Published, path)),
        // Another toy-store was faster; what it published is checked like anything else that was there.
        Err(StoreError::VersionExists { agent, version: name }) => match existing(store, toy, kind, version)?
        {
            Some(found) => Ok(row(Outcome::AlreadyThere, found.path().to_owned())),
            None => Err(StoreError::VersionExists { agent, version: name }.into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn stage_and_finalize(
    store: &ModelStore,
    toy: &Toy,
    kind: Kind,
    version: ToyVersion,
) -> Result<PathBuf, StoreError> {
    let agent = kind.agent();
    let staging = store.stage_new(&agent, &version.name())?;
    let relative = store.get_version(&agent, &ToyVersion::V1.name())?;
    for entry in toy.folder(kind, version).entries() {
        let shared = relative.as_ref().filter(|v1| v1.manifest().file(&entry.path) == Some(&entry));
        if let Some(v1) = shared {
            staging.share(v1, &entry.path)?;
        } else {
            let bytes = toy.folder(kind, version).get(entry.path.as_str()).unwrap_or_default();
            staging.write(&entry.path, bytes)?;
        }
    }
    let published = staging.finalize(FinalizeOptions {
        metadata: metadata(toy.seed(), kind),
        activation: activation(store, toy, kind)?,
        created_at: Some(created_at(version)),
        reason: Some(format!("toy-store, seed {}", toy.seed())),
        ..FinalizeOptions::default()
    })?;
    Ok(published.path)
}

/// An operator's choice of `current` is left alone: the toy only replaces its own first version.
fn activation(store: &ModelStore, toy: &Toy, kind: Kind) -> Result<Activation, StoreError> {
    let own = toy.folder(kind, ToyVersion::V1).checksum();
    let current = store.get_current(&kind.agent())?;
    Ok(match current {
        Some(current) if current.checksum() != own => Activation::Keep,
        _ => Activation::Activate,
    })
}

/// Fixed, so that equal seeds make equal manifests.
fn created_at(version: ToyVersion) -> Timestamp {
    let seconds = match version {
        ToyVersion::V1 => 1_757_665_800, // 2025-09-12T08:30:00Z
        ToyVersion::V2 => 1_761_640_200, // 2025-10-28T08:30:00Z
    };
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn metadata(seed: u64, kind: Kind) -> Map<String, Value> {
    let pairs = [
        ("generator", json!(concat!("toy-store ", env!("CARGO_PKG_VERSION")))),
        ("seed", json!(seed)),
        ("kind", json!(kind.title())),
        ("precision", json!("fp32")),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()
}

impl Folder {
    /// The listing that a manifest will have, sorted by path.
    #[expect(clippy::missing_panics_doc, reason = "every path is fixed and valid")]
    #[must_use]
    pub fn entries(&self) -> Vec<FileEntry> {
        let entry = |(path, bytes): (&str, &[u8])| FileEntry {
            path: path.parse().unwrap_or_else(|e| panic!("a fixed payload path is valid: {e}")),
            size: bytes.len() as u64,
            sha256: Digest::of(bytes),
        };
        self.files().map(entry).collect()
    }

    /// The checksum that this folder has as a payload.
    #[must_use]
    pub fn checksum(&self) -> Digest {
        checksum_of_listing(&self.entries())
    }
}

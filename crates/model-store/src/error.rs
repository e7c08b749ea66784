//! What can go wrong, said with the path or agent it happened to and what to do next.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::exit;
use crate::history::PointerName;
use crate::holder::Holder;
use crate::human::human_size;
use crate::names::{AgentName, NameError, RefName, VersionName};
use crate::payload::PayloadProblem;
use crate::progress::Stopped;

/// The action on a file that is not the store's: how a store is shared says nothing about it.
pub(crate) const IMPORT: &str = "import";

/// The error of every operation on a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A string that no agent, version or payload file may be called.
    #[error(transparent)]
    Name(#[from] NameError),

    /// The root is not there, or not a directory.
    #[error("there is no model store at {}; make one with `mkdir -p -m 2775 {0}`, or name another by MODEL_STORE_ROOT", .root.display())]
    RootNotFound {
        /// Where it was looked for.
        root: PathBuf,
    },

    /// The store has no such agent.
    #[error("no agent {agent} in {}{}", .root.display(), near_names(.near))]
    AgentNotFound {
        /// The agent asked for.
        agent: AgentName,
        /// The store.
        root: PathBuf,
        /// Agents with a similar name.
        near: Vec<String>,
    },

    /// The agent has no such version.
    #[error("no version {version} of agent {agent}{}", near_names(.near))]
    VersionNotFound {
        /// The agent.
        agent: AgentName,
        /// The version asked for.
        version: VersionName,
        /// Versions with a similar name.
        near: Vec<String>,
    },

    /// The agent has versions, but `current` points at none.
    #[error("agent {agent} has no current version; publish one, or name one of its versions: {}", .versions.join(", "))]
    NothingCurrent {
        /// The agent.
        agent: AgentName,
        /// The versions it has.
        versions: Vec<String>,
    },

    /// The agent has no such ref.
    #[error("agent {agent} has no ref {name}{}", near_names(.near))]
    RefNotFound {
        /// The agent.
        agent: AgentName,
        /// The ref asked for.
        name: RefName,
        /// Refs with a similar name.
        near: Vec<String>,
    },

    /// A version and a ref of one name could not be told apart.
    #[error(
        "agent {agent} has a ref of the name {version}; call the version something else, or take the ref away"
    )]
    VersionIsRef {
        /// The agent.
        agent: AgentName,
        /// The name.
        version: VersionName,
    },

    /// A ref and a version of one name could not be told apart.
    #[error("agent {agent} has a version of the name {name}; call the ref something else")]
    RefIsVersion {
        /// The agent.
        agent: AgentName,
        /// The name.
        name: RefName,
    },

    /// Nothing is known that could become current again.
    #[error("agent {agent} cannot be rolled back: {what}{}", ways(.versions))]
    NoWayBack {
        /// The agent.
        agent: AgentName,
        /// Why not.
        what: String,
        /// The versions there are, without the current one.
        versions: Vec<String>,
    },

    /// The version was found damaged and could not be repaired.
    #[error(
        "{agent}/{version} is quarantined: {reason}; choose another version, or restore its files from a backup and \
         run `model-store repair {agent} {version}`"
    )]
    Quarantined {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// What was found.
        reason: String,
    },

    /// The store's policy takes only what a trusted key has signed.
    #[error("{agent}/{version} {what}, and this store takes only what a trusted key has signed; {next}")]
    NotSigned {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// What it is instead.
        what: String,
        /// What to do.
        next: String,
    },

    /// It is no signature of this version, or the version cannot be signed.
    #[error("{agent}/{version} gets no signature: {what}")]
    SignatureRefused {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// Why not.
        what: String,
    },

    /// A published version never changes, so its name is taken for good.
    #[error(
        "version {version} of agent {agent} exists already; published versions never change, so choose another name"
    )]
    VersionExists {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
    },

    /// A write was addressed to a legacy alias.
    #[error("{alias} is a read-only alias of {target}; write to {target} instead")]
    AliasIsReadOnly {
        /// The alias.
        alias: AgentName,
        /// The canonical agent.
        target: AgentName,
    },

    /// Somebody else is writing.
    #[error("{what} is busy{}{}; try again when that has ended", held_by(.holder.as_deref()), after(*.waited))]
    Busy {
        /// What is being written: an agent, or one version's staging.
        what: String,
        /// Who does it, where that is known.
        holder: Option<Box<Holder>>,
        /// How long this call waited.
        waited: Duration,
    },

    /// The payload contains something that no version may contain.
    #[error("refused to publish {agent}/{version}: {}", list(.problems))]
    PayloadRefused {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// Each offending entry; never empty.
        problems: Vec<PayloadProblem>,
    },

    /// A folder to import contains something that no version may contain.
    #[error("refused to import {}: {}", .source_dir.display(), list(.problems))]
    ImportRefused {
        /// The folder.
        source_dir: PathBuf,
        /// Each offending entry; never empty.
        problems: Vec<PayloadProblem>,
    },

    /// The version would not fit on the disk; nothing was written.
    #[error(
        "no room for {agent}/{version} in {}: {} are needed, {} are free; `model-store gc --all --dry-run` shows \
         what could go", .root.display(), human_size(*.needed_bytes), human_size(*.free_bytes)
    )]
    NoRoom {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// The store.
        root: PathBuf,
        /// What the version would take, a small margin included.
        needed_bytes: u64,
        /// What a writer that is not root may still fill.
        free_bytes: u64,
    },

    /// What is on disk is not what a store contains, or not what was published.
    #[error("{}: {what}", .path.display())]
    Corrupt {
        /// Where.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },

    /// The version's manifest is of a format that this program does not know.
    #[error(
        "{agent}/{version} is of format {format}; this program knows format 1, reads only its version, checksum and \
         metadata, and never changes it: use a newer model-store"
    )]
    NewerFormat {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// Its manifest's format.
        format: u32,
    },

    /// A pointer has moved, but the disk did not confirm that it will still be there after a power cut.
    #[error(
        "{pointer} of agent {agent} is at {to} now, but writing that to disk could not be confirmed; check the disk, \
         then `model-store verify {agent}`"
    )]
    NotConfirmed {
        /// The agent.
        agent: AgentName,
        /// Which pointer.
        pointer: PointerName,
        /// Where it is.
        to: String,
        /// What the system said.
        source: io::Error,
    },

    /// Stopped on request; nothing was published.
    #[error("stopped; nothing was published")]
    Interrupted,

    /// The system refused an operation.
    #[error("could not {action} {}{}", .path.display(), advice(.action, .source))]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StoreError {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Name(name) => name.exit_code(),
            Self::RootNotFound { .. }
            | Self::AgentNotFound { .. }
            | Self::VersionNotFound { .. }
            | Self::RefNotFound { .. }
            | Self::NoWayBack { .. }
            | Self::NothingCurrent { .. } => exit::NOT_FOUND,
            Self::NoRoom { .. } => exit::ENVIRONMENT,
            Self::Corrupt { .. } => exit::CORRUPT,
            Self::Busy { .. } => exit::BUSY,
            Self::VersionExists { .. }
            | Self::RefIsVersion { .. }
            | Self::VersionIsRef { .. }
            | Self::Quarantined { .. }
            | Self::NotSigned { .. }
            | Self::SignatureRefused { .. }
            | Self::AliasIsReadOnly { .. }
            | Self::PayloadRefused { .. }
            | Self::ImportRefused { .. }
            | Self::NewerFormat { .. } => exit::REFUSED,
            Self::Io { source, .. } => match Cause::of(source) {
                Cause::Other => exit::FAILURE,
                Cause::NotFound => exit::NOT_FOUND,
                Cause::NoSpace | Cause::ReadOnly | Cause::NoPermission | Cause::Unsupported => {
                    exit::ENVIRONMENT
                }
            },
            Self::NotConfirmed { .. } => exit::FAILURE,
            Self::Interrupted => exit::INTERRUPTED,
        }
    }

    /// Wraps a failure of the system; a stop on request stays what it is.
    pub(crate) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        if Stopped::is_in(&source) {
            return Self::Interrupted;
        }
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), what: what.into() }
    }
}

/// Whether there is no room, on the disk or in somebody's share of it.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The kinds of failure that differ in what to do next.
enum Cause {
    NotFound,
    NoSpace,
    ReadOnly,
    NoPermission,
    Unsupported,
    Other,
}

impl Cause {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NotFound,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            io::ErrorKind::PermissionDenied => Self::NoPermission,
            io::ErrorKind::Unsupported => Self::Unsupported,
            _ => Self::Other,
        }
    }
}

fn advice(action: &str, error: &io::Error) -> &'static str {
    match Cause::of(error) {
        Cause::NoSpace => ": no space is left; free some, then do it again",
        Cause::ReadOnly => ": the file system is mounted read-only; write on the host that owns the store",
        Cause::NoPermission if action == IMPORT => "",
        Cause::NoPermission => {
            ": not permitted; the store's group must be one of yours, and its directories group-writable"
        }
        Cause::Unsupported => {
            ": the file system cannot do this; a store needs a local one such as ext4, xfs or btrfs"
        }
        Cause::NotFound | Cause::Other => "",
    }
}

fn near_names(near: &[String]) -> String {
    match near {
        [] => String::new(),
        near => format!("; did you mean {}?", near.join(" or ")),
    }
}

fn ways(versions: &[String]) -> String {
    match versions {
        [] => "; it has no other version".to_owned(),
        versions => format!("; name one with --to: {}", versions.join(", ")),
    }
}

fn held_by(holder: Option<&Holder>) -> String {
    holder.map_or_else(String::new, |holder| format!(": {holder}"))
}

fn after(waited: Duration) -> String {
    match waited.as_secs() {
        0 => String::new(),
        seconds => format!(" (waited {seconds} s)"),
    }
}

fn list(problems: &[PayloadProblem]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<_> = problems.iter().take(SHOWN).map(ToString::to_string).collect();
    match problems.len().saturating_sub(SHOWN) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

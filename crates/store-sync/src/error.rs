//! What can go wrong between a store and a remote.

use model_store::{AgentName, StoreError, VersionName, exit};

/// The error of every operation on a remote.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The local store said no.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// An address that nothing can be reached by.
    #[error("{url}: {what}")]
    Address {
        /// The address, without what may be secret in it.
        url: String,
        /// What is wrong with it.
        what: String,
    },

    /// The remote was never initialised, or the address is that of something else.
    #[error(
        "there is no model store at {remote}: it has no store.json; make one with `model-store remote init`"
    )]
    NotARemote {
        /// The remote.
        remote: String,
    },

    /// The remote was made by a newer program.
    #[error("{path} at {remote} is of format {format}; this program knows format 1: use a newer model-store")]
    NewerFormat {
        /// The remote.
        remote: String,
        /// The object.
        path: String,
        /// Its format.
        format: u32,
    },

    /// The remote does not have what was asked for.
    #[error("{remote} has no {what}")]
    NotFound {
        /// The remote.
        remote: String,
        /// What was asked for.
        what: String,
    },

    /// The remote did not answer, or not as it should.
    #[error("could not {action} {path} at {remote}: {what}")]
    Remote {
        /// What was being done, as a verb.
        action: &'static str,
        /// To which object.
        path: String,
        /// The remote.
        remote: String,
        /// What went wrong.
        what: String,
    },

    /// The remote has bytes that are not what they are said to be.
    #[error("{path} at {remote} is damaged: {what}; nothing of it was used")]
    Damaged {
        /// The object.
        path: String,
        /// The remote.
        remote: String,
        /// What is wrong with it.
        what: String,
    },

    /// A file of the local store has other bytes than its manifest says.
    #[error(
        "{agent}/{version}: {path} {what}; it was not sent, `model-store repair {agent} {version}` may mend it"
    )]
    Rotten {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// The file within the version.
        path: String,
        /// What it has instead.
        what: String,
    },

    /// A version that cannot be described by its manifest.
    #[error("{agent}/{version} cannot be pushed: {what}")]
    NotPushable {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// Why.
        what: String,
    },

    /// One name, two contents: a version never changes, here as little as there.
    #[error(
        "{agent}/{version} at {remote} is another version of that name: {what}; publish yours under another name"
    )]
    Different {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// The remote.
        remote: String,
        /// How they differ.
        what: String,
    },

    /// The version may not come in.
    #[error("{agent}/{version} of {remote} was refused: {what}")]
    Refused {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// The remote.
        remote: String,
        /// Why.
        what: String,
    },

    /// The pointer is older than one that was seen before.
    #[error(
        "{remote} says that {agent} is at {version} (serial {serial}), but this host has seen serial {seen}: an old \
         pointer came back, and nothing was changed"
    )]
    Replayed {
        /// The agent.
        agent: AgentName,
        /// The remote.
        remote: String,
        /// Where the old pointer leads.
        version: VersionName,
        /// Its serial.
        serial: u64,
        /// The highest that this host has seen.
        seen: u64,
    },

    /// The pointer's time is over.
    #[error("the pointer of {agent} at {remote} expired at {expired}; whoever publishes it has to renew it")]
    Expired {
        /// The agent.
        agent: AgentName,
        /// The remote.
        remote: String,
        /// When.
        expired: jiff::Timestamp,
    },

    /// Somebody else is writing there, or has just done it.
    #[error("{what} at {remote} is busy: {by}; try again")]
    Busy {
        /// What.
        what: String,
        /// The remote.
        remote: String,
        /// Who, or how that was seen.
        by: String,
    },

    /// The pointer is somewhere that this host does not know of.
    #[error(
        "the pointer of {agent} at {remote} was moved to {version} (serial {serial}, by {who}), which this host has \
         not seen: pull it first, or push with --over to move it nevertheless"
    )]
    Unseen {
        /// The agent.
        agent: AgentName,
        /// The remote.
        remote: String,
        /// Where the pointer is.
        version: VersionName,
        /// Its serial.
        serial: u64,
        /// Who moved it.
        who: String,
    },

    /// Stopped on request.
    #[error("stopped; what has come so far is kept, and the same command goes on from there")]
    Stopped,
}

impl SyncError {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) => error.exit_code(),
            Self::Address { .. } => exit::USAGE,
            Self::NotARemote { .. } | Self::NotFound { .. } => exit::NOT_FOUND,
            Self::NewerFormat { .. } | Self::Remote { .. } => exit::REMOTE,
            Self::Damaged { .. } | Self::Rotten { .. } => exit::CORRUPT,
            Self::NotPushable { .. }
            | Self::Different { .. }
            | Self::Refused { .. }
            | Self::Replayed { .. }
            | Self::Expired { .. }
            | Self::Unseen { .. } => exit::REFUSED,
            Self::Busy { .. } => exit::BUSY,
            Self::Stopped => exit::INTERRUPTED,
        }
    }

    /// A stop of the local store's work is one of ours.
    pub(crate) fn of_store(error: StoreError) -> Self {
        match error {
            StoreError::Interrupted => Self::Stopped,
            other => Self::Store(other),
        }
    }
}

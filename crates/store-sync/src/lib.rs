//! One model store, any number of hosts, through an object store that is there already.
//!
//! A remote is a bucket of S3, Google or Azure, a folder, or (for reading) anything that serves files over
//! HTTP. It has each content once under its digest, each version's manifest as it was published, and for each
//! agent a pointer to the version that the fleet is to use. [`Remote::push`] sends what is missing there,
//! [`Remote::pull`] fetches what is missing here and publishes it by the store's own protocol, so that no
//! reader ever sees half of it.
//!
//! ```
//! use model_store::{FinalizeOptions, ModelStore};
//! use store_sync::{Address, Options, PullOptions, PushOptions, Remote};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let (here, there) = (folder.path().join("here"), folder.path().join("there"));
//! let bucket = folder.path().join("bucket");
//! let bucket = Address::parse(bucket.to_str().ok_or("not UTF-8")?)?;
//! let (remote, _) = Remote::init(bucket, Options::default(), "me@here")?;
//!
//! let store = ModelStore::create(here)?;
//! let (agent, version) = ("scout".parse()?, "v1".parse()?);
//! let staging = store.stage_new(&agent, &version)?;
//! staging.write(&"config.json".parse()?, b"{}")?;
//! staging.finalize(FinalizeOptions::default())?;
//! let pushed = remote.push(&store, &agent, &version, &PushOptions::default())?;
//! assert_eq!(pushed.sent_bytes, 2);
//!
//! let other = ModelStore::create(there)?;
//! let pulled = remote.pull(&other, &agent, &PullOptions::default())?;
//! assert_eq!(other.require_current(&agent)?.checksum(), pulled.checksum);
//! # Ok(())
//! # }
//! ```
//!
//! # Limits
//!
//! What a manifest does not list does not travel: `x` bits, empty directories, refs, histories. Versions
//! without digests, as the Python helper published them, cannot be pushed. docs/remote-format.md says what is
//! guaranteed where a server ignores the conditions of a put.

mod address;
mod admit;
mod collect;
mod credentials;
mod download;
mod error;
mod examine;
mod follow;
mod inventory;
mod layout;
mod lease;
mod marks;
mod observer;
mod pointer;
mod probe;
mod pull;
mod push;
mod remote;
mod scrub;
mod seen;
mod tls;

pub use address::{Address, REMOTE_VARIABLE};
pub use collect::{CollectOptions, CollectedRemote, RemoteVersion};
pub use error::SyncError;
pub use examine::{Examined, RemoteFinding};
pub use follow::{Step, pause_between};
pub use inventory::{AgentAtRemote, VersionAtRemote};
pub use layout::{ConditionalPuts, REMOTE_FORMAT, RemotePointer, StoreFile};
pub use observer::{Observer, Unobserved};
pub use probe::Initialised;
pub use pull::{PullOptions, Pulled};
pub use push::{PushOptions, Pushed};
pub use remote::{Options, Remote};
pub use seen::Seen;

//! `remote init`: whether the server keeps the conditions of a put, and `store.json`, which says so.

use jiff::Timestamp;
use object_store::path::Path;
use object_store::{Error, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion};

use crate::address::Address;
use crate::error::SyncError;
use crate::layout::{ConditionalPuts, REMOTE_FORMAT, STORE_FILE, StoreFile};
use crate::remote::{Options, Remote, said, unique};

/// What `init` did.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Initialised {
    /// What is at the remote now.
    #[serde(flatten)]
    pub store_file: StoreFile,
    /// Whether it was there before and was only probed anew.
    pub was_there: bool,
}

impl Remote {
    /// Makes a remote: probes what the server can do and writes `store.json`. One that is there is probed
    /// anew, and everything else of it stays. A folder is made where it is missing.
    pub fn init(address: Address, options: Options, who: &str) -> Result<(Self, Initialised), SyncError> {
        if let Some(folder) = address.folder() {
            std::fs::create_dir_all(folder).map_err(|e| SyncError::Address {
                url: folder.display().to_string(),
                what: format!("could not be made: {e}"),
            })?;
        }
        let remote = Self::open(address, options)?;
        remote.ensure_writable()?;
        let before = match remote.store_file() {
            Ok(there) => Some(there),
            Err(SyncError::NotARemote { .. }) => None,
            Err(e) => return Err(e),
        };
        let conditional_puts = remote.probe()?;
        let was_there = before.is_some();
        let store_file = StoreFile {
            format: REMOTE_FORMAT,
            created_at: before.as_ref().map_or_else(now, |there| there.created_at),
            created_by: before.map_or_else(|| who.to_owned(), |there| there.created_by),
            conditional_puts,
        };
        remote.write_document(&Path::from(STORE_FILE), &store_file, PutMode::Overwrite)?;
        let ConditionalPuts { create, update } = conditional_puts;
        tracing::info!(remote = %remote.address(), create, update, was_there, "initialised");
        Ok((remote, Initialised { store_file, was_there }))
    }

    /// Tries on an object of its own whether conditions are kept. A server that ignores them says yes to
    /// everything, so only its refusals are believed.
    fn probe(&self) -> Result<ConditionalPuts, SyncError> {
        let path = Path::from(format!("leases/probe-{}", unique()));
        let probed = self.probe_at(&path);
        let removed = self.delete(&path);
        let probed = probed?;
        removed?;
        Ok(probed)
    }

    fn probe_at(&self, path: &Path) -> Result<ConditionalPuts, SyncError> {
        let put = |text: &'static str, mode: PutMode| {
            let options = PutOptions { mode, ..PutOptions::default() };
            self.wait(self.object_store().put_opts(path, PutPayload::from_static(text.as_bytes()), options))
        };
        let text = || -> Result<String, SyncError> {
            let object = self.read(path, 64)?.map(|object| object.bytes).unwrap_or_default();
            Ok(String::from_utf8_lossy(&object).into_owned())
        };
        let first = put("first", PutMode::Create)?;
        let first = match first {
            Ok(result) => Some(result),
            // It knows of no such thing: the object has to get there otherwise.
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => None,
            Err(e) => return Err(self.failed("write", path, said(&e))),
        };
        let create = match first {
            Some(_) => self.is_refused(path, put("second", PutMode::Create)?)? && text()? == "first",
            None => false,
        };
        let written = put("third", PutMode::Overwrite)?.map_err(|e| self.failed("write", path, said(&e)))?;
        put("fourth", PutMode::Overwrite)?.map_err(|e| self.failed("write", path, said(&e)))?;
        // The state that it had before the last put: an update from there must not be done.
        let stale = put("stale", PutMode::Update(written.into()))?;
        let update = self.is_refused(path, stale)? && text()? == "fourth" && {
            let meta = self.head(path)?;
            let at = meta.map(|meta| UpdateVersion { e_tag: meta.e_tag, version: meta.version });
            // One that refuses everything keeps no condition either.
            match at {
                Some(at) => put("fifth", PutMode::Update(at))?.is_ok() && text()? == "fifth",
                None => false,
            }
        };
        Ok(ConditionalPuts { create, update })
    }

    /// Whether a put was refused because of its condition, and not for want of a network.
    fn is_refused(&self, path: &Path, put: Result<PutResult, Error>) -> Result<bool, SyncError> {
        match put {
            Ok(_) | Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => Ok(false),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(true),
            Err(e) => Err(self.failed("probe", path, said(&e))),
        }
    }
}

/// Now, in milliseconds.
pub(crate) fn now() -> Timestamp {
    let now = Timestamp::now();
    now.round(jiff::Unit::Millisecond).unwrap_or(now)
}

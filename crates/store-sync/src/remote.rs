//! A remote: an object store with a runtime of its own, asked one thing at a time or many.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use model_store::{Digest, VersionName};
use object_store::path::Path;
use object_store::{
    Error, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, UpdateVersion,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};

use crate::address::Address;
use crate::error::SyncError;
use crate::layout::{REMOTE_FORMAT, STORE_FILE, StoreFile};
use crate::observer::{Observer, Unobserved};
use crate::scrub::scrub;

/// How soon a stop on request is heard.
const LISTENS_EVERY: Duration = Duration::from_millis(50);
/// How long something is tidied up at the end.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(5);
/// Documents other than manifests are a few hundred bytes; nobody has one bigger than this.
const MAX_DOCUMENT_BYTES: u64 = 1024 * 1024;
/// As large as a manifest may be in a store.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 64 * 1024 * 1024;
/// How many requests without much of a body are under way at a time.
const SMALL_REQUESTS: usize = 16;

/// How a remote is used.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many big requests are under way at a time.
    pub parallel: usize,
    /// So many bytes are asked for at a time.
    pub range_bytes: u64,
    /// So many bytes are sent at a time. S3 wants at least 5 MiB.
    pub part_bytes: u64,
    /// How long nothing may come before a request is given up and made again.
    pub stall: Duration,
    /// How long a remote that fails is asked again before that is an error.
    pub retry: Duration,
    /// How long a lease without conditional puts is watched before it is believed; more than a put takes.
    pub settle: Duration,
    /// How long a lease holds others off.
    pub lease: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            parallel: 8,
            range_bytes: 8 * 1024 * 1024,
            part_bytes: 8 * 1024 * 1024,
            stall: Duration::from_secs(30),
            retry: Duration::from_mins(3),
            settle: Duration::from_secs(2),
            lease: Duration::from_mins(1),
        }
    }
}

/// An object store that models are pushed to and pulled from.
pub struct Remote {
    address: Address,
    id: VersionName,
    /// For writing.
    store: Arc<dyn ObjectStore>,
    /// For reading: gives a request up on which nothing comes.
    reader: Arc<dyn ObjectStore>,
    runtime: Runtime,
    pub(crate) options: Options,
    observer: Arc<dyn Observer>,
}

impl Remote {
    /// Gets ready to talk to a remote; nothing is asked of it yet. A folder must be there.
    pub fn open(address: Address, options: Options) -> Result<Self, SyncError> {
        if let Some(folder) = address.folder().filter(|folder| !folder.is_dir()) {
            return Err(SyncError::NotARemote { remote: folder.display().to_string() });
        }
        let id = address
            .id()
            .ok_or_else(|| SyncError::Address { url: address.to_string(), what: "has no name".to_owned() })?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store-sync")
            .enable_all()
            .build()
            .map_err(|e| SyncError::Address { url: address.to_string(), what: e.to_string() })?;
        let (store, reader) = {
            let _in_runtime = runtime.enter();
            (address.connect(options.retry, None)?, address.connect(options.retry, Some(options.stall))?)
        };
        Ok(Self { address, id, store, reader, runtime, options, observer: Arc::new(Unobserved) })
    }

    /// Who is told of long work, and may stop it.
    #[must_use]
    pub fn with_observer(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer, ..self }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What the notes of a local store call it.
    #[must_use]
    pub fn id(&self) -> &VersionName {
        &self.id
    }

    /// `store.json`. Everything begins with it: without one, the address is that of something else.
    pub fn store_file(&self) -> Result<StoreFile, SyncError> {
        let path = Path::from(STORE_FILE);
        let found = self.read_document::<StoreFile>(&path)?;
        let Some(Document { value, .. }) = found else {
            return Err(SyncError::NotARemote { remote: self.address.to_string() });
        };
        Ok(value)
    }

    pub(crate) fn observer(&self) -> &Arc<dyn Observer> {
        &self.observer
    }

    /// The object store, for writing.
    pub(crate) fn object_store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The object store, for reading.
    pub(crate) fn reader(&self) -> &Arc<dyn ObjectStore> {
        &self.reader
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn ensure_writable(&self) -> Result<(), SyncError> {
        if !self.address.is_read_only() {
            return Ok(());
        }
        let what = "is for reading only: push to where its files come from".to_owned();
        Err(SyncError::Address { url: self.address.to_string(), what })
    }

    /// Waits for something, unless that is to end.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> Result<T, SyncError> {
        self.runtime.block_on(async {
            let mut future = std::pin::pin!(future);
            loop {
                if self.observer.is_stopped() {
                    return Err(SyncError::Stopped);
                }
                if let Ok(done) = tokio::time::timeout(LISTENS_EVERY, future.as_mut()).await {
                    return Ok(done);
                }
            }
        })
    }

    /// Removes an object at the end of something, even of what was stopped; a remote that does not answer soon
    /// is left alone.
    pub(crate) fn delete_at_last(&self, path: &Path) {
        let delete = async { tokio::time::timeout(LAST_WORD, self.store.delete(path)).await };
        if !matches!(self.runtime.block_on(delete), Ok(Ok(()) | Err(Error::NotFound { .. }))) {
            tracing::warn!(remote = %self.address, %path, "could not be removed; it ends by itself");
        }
    }

    /// Lets time pass.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), SyncError> {
        self.wait(async { tokio::time::sleep(time).await })
    }

    pub(crate) fn failed(&self, action: &'static str, path: &Path, what: impl fmt::Display) -> SyncError {
        SyncError::Remote {
            action,
            path: path.to_string(),
            remote: self.address.to_string(),
            what: scrub(&what.to_string()),
        }
    }

    pub(crate) fn damaged(&self, path: &Path, what: impl Into<String>) -> SyncError {
        SyncError::Damaged { path: path.to_string(), remote: self.address.to_string(), what: what.into() }
    }

    pub(crate) fn not_found(&self, what: String) -> SyncError {
        SyncError::NotFound { remote: self.address.to_string(), what }
    }

    /// Reads an object of at most so many bytes; `None` where there is none.
    pub(crate) fn read(&self, path: &Path, limit_bytes: u64) -> Result<Option<Object>, SyncError> {
        let stall = self.options.stall;
        let read = async {
            let got = match self.reader.get(path).await {
                Ok(got) => got,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(e) => return Err(self.failed("read", path, said(&e))),
            };
            let GetResult { meta, .. } = &got;
            let at = UpdateVersion { e_tag: meta.e_tag.clone(), version: meta.version.clone() };
            let expected = meta.size;
            if expected > limit_bytes {
                return Err(self.damaged(path, format!("has {expected} bytes, more than anybody writes")));
            }
            let mut bytes = Vec::new();
            let mut stream = got.into_stream();
            loop {
                let next = tokio::time::timeout(stall, stream.next()).await;
                let chunk = next.map_err(|_| {
                    self.failed("read", path, format!("nothing came for {} s", stall.as_secs()))
                })?;
                let Some(chunk) = chunk else { break };
                bytes.extend_from_slice(&chunk.map_err(|e| self.failed("read", path, said(&e)))?);
                if bytes.len() as u64 > limit_bytes {
                    return Err(self.damaged(path, "goes on without end"));
                }
            }
            if bytes.len() as u64 != expected {
                let what = format!("{} of {expected} bytes came", bytes.len());
                return Err(self.failed("read", path, what));
            }
            Ok(Some(Object { bytes, at }))
        };
        self.wait(read)?
    }

    /// Reads a small JSON document and looks at its format before anything else.
    pub(crate) fn read_document<T: DeserializeOwned>(
        &self,
        path: &Path,
    ) -> Result<Option<Document<T>>, SyncError> {
        #[derive(serde::Deserialize)]
        struct Head {
            format: u32,
        }
        let Some(Object { bytes, at }) = self.read(path, MAX_DOCUMENT_BYTES)? else { return Ok(None) };
        let not_ours = |e: serde_json::Error| self.damaged(path, format!("is not what it should be: {e}"));
        let Head { format } = serde_json::from_slice(&bytes).map_err(not_ours)?;
        if format != REMOTE_FORMAT {
            let (remote, path) = (self.address.to_string(), path.to_string());
            return Err(SyncError::NewerFormat { remote, path, format });
        }
        let value = serde_json::from_slice(&bytes).map_err(not_ours)?;
        Ok(Some(Document { value, bytes, at }))
    }

    /// Writes a small document.
    pub(crate) fn write_document(
        &self,
        path: &Path,
        document: &impl Serialize,
        mode: PutMode,
    ) -> Result<Vec<u8>, SyncError> {
        let mut json = serde_json::to_vec_pretty(document).map_err(|e| self.failed("write", path, e))?;
        json.push(b'\n');
        self.put(path, json.clone(), mode)?;
        Ok(json)
    }

    /// Writes an object in one piece. A condition that does not hold is [`SyncError::Busy`].
    pub(crate) fn put(&self, path: &Path, bytes: Vec<u8>, mode: PutMode) -> Result<(), SyncError> {
        let options = PutOptions { mode, ..PutOptions::default() };
        let put = self.store.put_opts(path, PutPayload::from(bytes), options);
        match self.wait(put)? {
            Ok(_) => Ok(()),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Err(SyncError::Busy {
                what: path.to_string(),
                remote: self.address.to_string(),
                by: "somebody has written it meanwhile".to_owned(),
            }),
            Err(e) => Err(self.failed("write", path, said(&e))),
        }
    }

    pub(crate) fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, SyncError> {
        self.wait(self.head_later(path))?
    }

    async fn head_later(&self, path: &Path) -> Result<Option<ObjectMeta>, SyncError> {
        match self.reader.head(path).await {
            Ok(meta) => Ok(Some(meta)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed("look at", path, said(&e))),
        }
    }

    /// What there is of many objects, in their order.
    pub(crate) fn heads(&self, paths: &[Path]) -> Result<Vec<Option<ObjectMeta>>, SyncError> {
        let heads = futures_util::stream::iter(paths.iter().map(|path| self.head_later(path)));
        self.wait(heads.buffered(SMALL_REQUESTS).try_collect())?
    }

    /// Every object below a path.
    pub(crate) fn list(&self, prefix: &Path) -> Result<Vec<ObjectMeta>, SyncError> {
        self.wait(self.reader.list(Some(prefix)).try_collect())?
            .map_err(|e| self.failed("list", prefix, said(&e)))
    }

    /// The last components of what lies directly below a path.
    pub(crate) fn list_dirs(&self, prefix: &Path) -> Result<Vec<String>, SyncError> {
        let listed = self
            .wait(self.reader.list_with_delimiter(Some(prefix)))?
            .map_err(|e| self.failed("list", prefix, said(&e)))?;
        let names = listed.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned));
        let mut names: Vec<_> = names.collect();
        names.sort();
        Ok(names)
    }

    /// Removes an object; one that is not there is fine.
    pub(crate) fn delete(&self, path: &Path) -> Result<(), SyncError> {
        match self.wait(self.store.delete(path))? {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("remove", path, said(&e))),
        }
    }
}

/// An object that was read, and which state of it that was.
pub(crate) struct Object {
    pub(crate) bytes: Vec<u8>,
    pub(crate) at: UpdateVersion,
}

/// A document that was read.
pub(crate) struct Document<T> {
    pub(crate) value: T,
    pub(crate) bytes: Vec<u8>,
    pub(crate) at: UpdateVersion,
}

/// What an error says, with its causes as far as they say more.
pub(crate) fn said(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("address", &self.address).finish_non_exhaustive()
    }
}

/// A name that no other attempt of anybody has.
pub(crate) fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let host = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = since_epoch.map_or(0, |time| time.as_nanos());
    let text = format!("{host} {} {nanos} {count}", std::process::id());
    Digest::of(text.as_bytes()).to_string()[..16].to_owned()
}

//! An engine that is loaded, and the thread that it lives in.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;

use crate::RuntimeError;
#[cfg(not(feature = "tensorrt-enterprise"))]
use crate::cache::{self, CacheFile};
use crate::check::{Fit, fit};
use crate::description::{EngineRecord, InputShape, PlanTrait};
use crate::native::{Loading, Session};
use crate::plan;
use crate::sizes::choose;
use crate::tensor::{Input, Output};
use crate::weights::Weights;

/// How an engine is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuntimeOptions {
    /// TensorRT's library; looked for unless named. The first one opened serves the whole process.
    pub library: Option<PathBuf>,
    /// The number of the GPU.
    pub device: usize,
    /// Whether the GPU's work on a shape is recorded and replayed.
    pub cuda_graphs: CudaGraphs,
    /// Where TensorRT-RTX keeps what it compiled.
    pub caching: Caching,
    /// The folder of the version, where a stripped plan's weights are; three folders above the engine's unless named.
    pub version: Option<PathBuf>,
}

/// Whether the GPU's work on a shape is recorded and replayed, which saves the time to hand over each kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CudaGraphs {
    /// It is not.
    #[default]
    Off,
    /// The second batch of a shape is recorded, and later ones replay it; the graphs of sixteen shapes are kept.
    Recorded,
    /// TensorRT-RTX does it by itself. The enterprise TensorRT has no such thing, so there it is [`Off`](Self::Off).
    BuiltIn,
}

/// Where TensorRT-RTX keeps what it compiled for this GPU. The enterprise TensorRT compiles nothing when it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Caching {
    /// In [`default_cache_folder`].
    #[default]
    Default,
    /// In this folder. It must be the caller's own: what lies there is given to TensorRT.
    Folder(PathBuf),
    /// Nowhere: every process compiles anew.
    Off,
}

/// An engine, loaded. It may be used from any thread; batches run one after another.
#[derive(Debug)]
pub struct Engine {
    folder: PathBuf,
    record: EngineRecord,
    profiles: Vec<Vec<InputShape>>,
    fit: Fit,
    /// `None` only while it is being dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// A batch for the thread, and where its outputs go.
struct Job {
    profile: usize,
    batch: Vec<Input>,
    reply: SyncSender<Result<Vec<Output>, RuntimeError>>,
}

impl Engine {
    /// Loads the engine in a folder: that of `engine.json` and `model.engine`.
    ///
    /// In this order: the description is read, the plan's bytes are read and held against its SHA-256, the host against
    /// the description, and TensorRT gets the plan.
    pub fn open(folder: impl AsRef<Path>, options: &RuntimeOptions) -> Result<Self, RuntimeError> {
        let folder = folder.as_ref().to_owned();
        let record = EngineRecord::of_folder(&folder)?;
        crate::Flavour::HERE.check(&record.flavour)?;
        let plan = plan::read(&folder, &record)?;
        let fit = fit(&record, options.library.as_deref(), options.device)?;
        let weights = if record.is(PlanTrait::Stripped) {
            let version = options.version.clone().or_else(|| folder.ancestors().nth(3).map(Path::to_owned));
            Some(Weights::read(&version.unwrap_or_default(), &record)?)
        } else {
            None
        };
        let profiles = record.profiles();
        let loading = Loading {
            plan,
            weights,
            fit: fit.clone(),
            device: options.device,
            cuda_graphs: options.cuda_graphs,
            #[cfg(not(feature = "tensorrt-enterprise"))]
            cache: cache_file(&record, &fit, &options.caching),
            profiles: profiles.clone(),
            outputs: record.outputs.iter().map(|output| output.name.clone()).collect(),
        };
        let (jobs, inbox) = mpsc::channel();
        let (ready, opened) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("tensorrt".to_owned())
            .spawn(move || serve(loading, &ready, &inbox))
            .map_err(RuntimeError::io("start a thread for", &folder))?;
        opened.recv().map_err(|_| RuntimeError::Ended)??;
        tracing::debug!(path = %folder.display(), gpu = %fit.gpu, version = fit.version, "engine loaded");
        Ok(Self { folder, record, profiles, fit, jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs one batch: each input once, in any order. Returns the outputs in the order of `engine.json`.
    ///
    /// The sizes must lie within one profile ([`EngineRecord::profiles`]).
    pub fn run(&self, batch: Vec<Input>) -> Result<Vec<Output>, RuntimeError> {
        let profile = choose(&self.profiles, &batch)?;
        let (reply, answer) = mpsc::sync_channel(1);
        let jobs = self.jobs.as_ref().ok_or(RuntimeError::Ended)?;
        jobs.send(Job { profile, batch, reply }).map_err(|_| RuntimeError::Ended)?;
        answer.recv().map_err(|_| RuntimeError::Ended)?
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it is.
    #[must_use]
    pub fn record(&self) -> &EngineRecord {
        &self.record
    }

    /// What runs it.
    #[must_use]
    pub fn fit(&self) -> &Fit {
        &self.fit
    }
}

impl Drop for Engine {
    /// Waits for the batch at hand and for what was compiled to be kept.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so, and its callers know.
            let _ = thread.join();
        }
    }
}

/// The folder of caches where none is named: `model-store/tensorrt` in `$XDG_CACHE_HOME`, or in `~/.cache`; `None` for who
/// has no home.
#[must_use]
pub fn default_cache_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let root = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
    Some(root.join("model-store").join("tensorrt"))
}

#[cfg(not(feature = "tensorrt-enterprise"))]
fn cache_file(record: &EngineRecord, fit: &Fit, caching: &Caching) -> Option<CacheFile> {
    let folder = match caching {
        Caching::Off => return None,
        Caching::Folder(folder) => folder.clone(),
        Caching::Default => default_cache_folder()?,
    };
    Some(CacheFile::new(&folder, &record.plan_sha256, fit, &cache::driver_version(fit)))
}

/// The thread: everything that belongs to the engine is made, used and dropped here.
fn serve(loading: Loading, ready: &SyncSender<Result<(), RuntimeError>>, inbox: &Receiver<Job>) {
    let mut session = match Session::load(loading) {
        Ok(session) => session,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if ready.send(Ok(())).is_err() {
        return;
    }
    for Job { profile, batch, reply } in inbox {
        // Who asked may be gone; the next one is not.
        let _ = reply.send(session.run(profile, &batch));
    }
    session.keep_compiled();
}

//! One instance of a model for the whole process, however many ask for it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use crate::LoadError;
use crate::model::{self, Loaded, Model, Tested};
use crate::resolve::{self, ResolveOptions, ResolvedModel, Scope, Source};

/// What tells instances apart: the type, the files, and how they were loaded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    kind: TypeId,
    path: PathBuf,
    source: Source,
    adapter: Option<PathBuf>,
    options: String,
}

/// The instance of a key while anyone uses it. The lock is held while it is being loaded, so that others wait for that.
type Slot = Arc<Mutex<Weak<dyn Any + Send + Sync>>>;

static INSTANCES: LazyLock<Mutex<HashMap<Key, Slot>>> = LazyLock::new(Mutex::default);

/// The model of an agent, loaded once for all who ask for it in this process: the same files, loaded in the same way, are
/// the same instance. Callers that come while it is being loaded wait for that. Its memory is freed with the last of them;
/// a failure is not remembered, so the next caller tries again.
///
/// What each caller gets says how that caller's own agent came to the model, and has a lease of its own. Whoever comes when
/// it is loaded already has it verified as often as their own options say.
///
/// The instance stays what it is when `current` moves; whoever asks after that gets the new version. What changes under
/// its users' hands is a [`Reloading`](crate::Reloading).
///
/// ```no_run
/// use model_loader::{LoadOptions, ResolveOptions, SentenceEmbedder, shared};
///
/// let options = ResolveOptions::from_env();
/// let embedder = shared::<SentenceEmbedder>("memory", &options, &LoadOptions::default())?;
/// let vectors = embedder.embed(&["A sentence."])?;
/// # Ok::<(), model_loader::LoadError>(())
/// ```
pub fn shared<M: Model>(
    agent: &str,
    options: &ResolveOptions,
    load: &M::Options,
) -> Result<Arc<Loaded<M>>, LoadError> {
    let options = &model::search_for::<M>(options, load);
    let (_, model) = resolve::each_place(agent, options, Scope::Allowed, |found| {
        // Reading it all takes threads; that nothing changed since does not.
        if !resolve::is_prepared(found, options)? {
            in_own_pool(|| resolve::prepare(found, options))?;
        }
        let slot = slot(&Key::of::<M>(found, load)?);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(tested)) = slot.upgrade().map(Arc::downcast::<Tested<M>>) {
            tracing::debug!(agent, %found, "this process has the model already");
            return Ok(Loaded::again(tested, found));
        }
        let model = in_own_pool(|| Loaded::<M>::from_resolved(found, load))?;
        resolve::log(found);
        let weak: Weak<Tested<M>> = Arc::downgrade(model.tested());
        *slot = weak;
        Ok(model)
    })?;
    Ok(Arc::new(model))
}

impl Key {
    fn of<M: Model>(found: &ResolvedModel, load: &M::Options) -> Result<Self, LoadError> {
        let path = found.path().canonicalize().map_err(LoadError::read(found.path()))?;
        Ok(Self {
            kind: TypeId::of::<M>(),
            path,
            source: found.source().clone(),
            adapter: found.adapter().map(|adapter| adapter.path().to_owned()),
            options: format!("{load:?}"),
        })
    }
}

/// The slot of a key. Those that nobody uses any more are cleared away.
fn slot(key: &Key) -> Slot {
    let mut instances = INSTANCES.lock().unwrap_or_else(PoisonError::into_inner);
    instances.retain(|_, slot| {
        // Somebody who waits for it, or loads, has a clone.
        Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|instance| instance.strong_count() > 0)
    });
    instances.entry(key.clone()).or_insert_with(|| Arc::new(Mutex::new(Weak::<()>::new()))).clone()
}

/// Runs a load on threads of its own. Callers may be threads of rayon's global pool: if they all waited for a load that
/// runs on that pool, nobody would be left to run it.
fn in_own_pool<T: Send>(load: impl FnOnce() -> T + Send) -> T {
    match rayon::ThreadPoolBuilder::new().thread_name(|index| format!("model-load-{index}")).build() {
        Ok(pool) => {
            // A thread of another pool would go on with that pool's work while it waits, and might come here again.
            std::thread::scope(|scope| match scope.spawn(|| pool.install(load)).join() {
                Ok(loaded) => loaded,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        }
        Err(error) => {
            tracing::debug!(%error, "no threads of its own for loading a model");
            load()
        }
    }
}

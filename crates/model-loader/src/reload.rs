//! A model that follows `current` while it is in use.
//!
//! One thread looks after the store. A new version is loaded beside the old one and tested, then one pointer is swapped:
//! whoever asks next gets the new one, and whoever is at work keeps the old one to the end. What does not load, fails its
//! test or changes what its users build on is refused, and the old one goes on. What was refused is tried again after a
//! while, since a repair may mend it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use model_store::{AgentName, Digest, ModelStore, Selector, StoreError, VersionName, Watch, with_causes};
use serde::Serialize;

use crate::LoadError;
use crate::model::{self, Contract, Loaded, Model};
use crate::resolve::{self, ResolveOptions, ResolvedModel, Scope, Search};

/// How often the store is looked at, unless set otherwise.
const INTERVAL: Duration = Duration::from_millis(500);
/// More often would keep a core busy.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);
/// Less often would be never, and the clock cannot add much more.
const LONGEST_INTERVAL: Duration = Duration::from_hours(1);
/// When a refused version is tried again first, unless set otherwise.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// A refused version is tried again at least this often: it may take as long to verify and load as a good one.
const LONGEST_RETRY: Duration = Duration::from_mins(8);

/// Who is told of what happens.
type Observer = Arc<dyn Fn(&ReloadEvent) + Send + Sync>;

/// How a [`Reloading`] looks after its agent.
#[derive(Clone)]
pub struct Watching {
    interval: Duration,
    retry_after: Duration,
    observer: Option<Observer>,
}

/// Something that happened to a model in use.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ReloadEvent {
    /// A new version serves.
    Replaced {
        /// What served before.
        from: Box<ResolvedModel>,
        /// What serves now.
        to: Box<ResolvedModel>,
        /// How long finding, verifying, loading and testing it took.
        took: Duration,
    },
    /// A version was not taken; the one before goes on serving.
    Refused(Refused),
}

/// A version that was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Which; `None` where nothing is current any more, or that could not be told.
    pub version: Option<VersionName>,
    /// Why, with its causes.
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
}

/// What a [`Reloading`] is doing.
#[derive(Debug, Clone, Serialize)]
pub struct ReloadStatus {
    /// What serves.
    pub served: ResolvedModel,
    /// What its users may build on.
    pub contract: Contract,
    /// How many times a version was replaced.
    pub reloads: u64,
    /// What was refused since, and why; `None` once what serves is what should.
    pub refused: Option<Refused>,
    /// Why the store cannot be looked at, while that is so.
    pub trouble: Option<String>,
    /// Replaced models that somebody is still at work with.
    pub replaced_in_use: usize,
}

/// A model that follows what its agent's `current` (or the ref asked for) points at.
///
/// ```no_run
/// use model_loader::{Reloading, SentenceEmbedder};
///
/// let memory = Reloading::<SentenceEmbedder>::for_agent("memory")?;
/// loop {
///     // One model from the beginning of a request to its end.
///     let embedder = memory.get();
///     let vectors = embedder.embed(&["Ships wait for the wind to fall."])?;
/// #   break;
/// }
/// # Ok::<(), model_loader::LoadError>(())
/// ```
///
/// While a new version is being loaded both are in memory. Loading takes one core; the others are left to requests.
///
/// Dropping it ends the looking after; models that were handed out stay what they are.
pub struct Reloading<M> {
    inner: Arc<Inner<M>>,
}

struct Inner<M> {
    served: ArcSwap<Loaded<M>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    reloads: u64,
    refused: Option<Refused>,
    trouble: Option<String>,
    replaced_in_use: usize,
}

impl Default for Watching {
    fn default() -> Self {
        Self { interval: INTERVAL, retry_after: RETRY_AFTER, observer: None }
    }
}

impl Watching {
    /// How often the store is looked at, at least once an hour; twice a second unless set. A notice from the kernel usually
    /// comes before.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self { interval: interval.clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL), ..self }
    }

    /// How long after its refusal a version is tried again that is current still; 30 seconds unless set. Each further try
    /// comes after twice as long, and at least every 8 minutes. A version that would change the
    /// [`Contract`] is not tried again: nothing mends that.
    #[must_use]
    pub fn retrying_after(self, delay: Duration) -> Self {
        Self { retry_after: delay.clamp(SHORTEST_INTERVAL, LONGEST_RETRY), ..self }
    }

    /// Who is told what happens, on the thread that looks after the store: the next version waits until this returns.
    #[must_use]
    pub fn telling(self, observer: impl Fn(&ReloadEvent) + Send + Sync + 'static) -> Self {
        Self { observer: Some(Arc::new(observer)), ..self }
    }
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interval, retry_after, observer } = self;
        let mut shown = f.debug_struct("Watching");
        shown.field("interval", interval).field("retry_after", retry_after);
        shown.field("observer", &observer.is_some()).finish()
    }
}

impl<M: Model> Reloading<M> {
    /// Loads an agent's model, as [`ResolveOptions::from_env`] says, and looks after it from then on.
    pub fn for_agent(agent: &str) -> Result<Self, LoadError> {
        Self::load(agent, &ResolveOptions::from_env(), &M::Options::default(), Watching::default())
    }

    /// Loads an agent's model and looks after it from then on. The first model may come from any place that the options
    /// allow; only the store can replace it.
    pub fn load(
        agent: &str,
        options: &ResolveOptions,
        load: &M::Options,
        watching: Watching,
    ) -> Result<Self, LoadError> {
        let options = model::search_for::<M>(options, load);
        // What is wrong with a name or the agent map, this says best.
        let first = Loaded::<M>::load(agent, &options, load)?;
        let sights = Search::new(agent, &options, Scope::StoreOnly)?.sights()?;
        let inner = Arc::new(Inner {
            served: ArcSwap::from_pointee(first),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let keeper = Keeper {
            inner: Arc::downgrade(&inner),
            agent: agent.to_owned(),
            options,
            load: load.clone(),
            watching,
            seen: vec![None; sights.len()],
            looked: false,
            retry: None,
            sights,
            store: None,
            watch: None,
            replaced: Vec::new(),
        };
        // A pool of one thread, so that what a load would spread over rayon's threads happens here: the others are for
        // requests, and the allocator gets all large blocks back in one place, where the next load finds them.
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .thread_name(|_| "model-reload".to_owned())
            .build()
            .map_err(|error| LoadError::Thread {
                agent: agent.to_owned(),
                source: std::io::Error::other(error),
            })?;
        pool.spawn(move || keeper.run());
        Ok(Self { inner })
    }

    /// The model that serves now: keep it for one request, from its beginning to its end.
    #[must_use]
    pub fn get(&self) -> Arc<Loaded<M>> {
        self.inner.served.load_full()
    }

    /// What serves, what was refused and why, and how often a version was replaced.
    #[must_use]
    pub fn status(&self) -> ReloadStatus {
        let state = self.inner.state();
        let served = self.get();
        ReloadStatus {
            served: served.resolved().clone(),
            contract: served.contract().clone(),
            reloads: state.reloads,
            refused: state.refused.clone(),
            trouble: state.trouble.clone(),
            replaced_in_use: state.replaced_in_use,
        }
    }

    /// Waits until another model serves than the one that the caller has, at most so long; `None` when none did.
    #[must_use]
    pub fn wait_for_change(&self, having: &Arc<Loaded<M>>, timeout: Duration) -> Option<Arc<Loaded<M>>> {
        let is_served = |_: &mut State| Arc::ptr_eq(&self.get(), having);
        let waited = self.inner.changed.wait_timeout_while(self.inner.state(), timeout, is_served);
        drop(waited);
        Some(self.get()).filter(|served| !Arc::ptr_eq(served, having))
    }
}

impl<M: Model> fmt::Debug for Reloading<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("status", &self.status()).finish()
    }
}

impl<M> Inner<M> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a pointer of the store is.
type Seen = Option<(VersionName, Digest)>;

/// The thread that looks after one model. It ends when nobody has the [`Reloading`] any more.
struct Keeper<M: Model> {
    inner: Weak<Inner<M>>,
    agent: String,
    options: ResolveOptions,
    load: M::Options,
    watching: Watching,
    /// What decides which model it is, and where each of them was seen last.
    sights: Vec<(AgentName, Selector)>,
    seen: Vec<Seen>,
    looked: bool,
    /// When what was refused is tried again, and how long that was put off.
    retry: Option<(Instant, Duration)>,
    store: Option<ModelStore>,
    watch: Option<Watch>,
    /// Models that were replaced. The last clone is dropped here, so that no request pays for freeing its memory.
    replaced: Vec<Arc<Loaded<M>>>,
}

impl<M: Model> Keeper<M> {
    fn run(mut self) {
        loop {
            // The first look comes at once: `current` may have moved while the first model was being loaded.
            if self.looked {
                self.pause();
            }
            let Some(inner) = self.inner.upgrade() else { return };
            self.replaced.retain(|model| Arc::strong_count(model) > 1);
            match self.look() {
                Ok(seen) => {
                    inner.state().trouble = None;
                    let moved = !self.looked || seen != self.seen;
                    if moved {
                        self.retry = None;
                    }
                    if moved || self.retry.is_some_and(|(at, _)| at <= Instant::now()) {
                        self.seen = seen;
                        self.looked = true;
                        self.follow(&inner);
                    }
                }
                Err(error) => {
                    self.looked = true;
                    self.tell_trouble(&inner, &with_causes(&error));
                }
            }
            inner.state().replaced_in_use = self.replaced.len();
        }
    }

    /// Waits for the next look, or until the kernel says that something moved.
    fn pause(&mut self) {
        let interval = self.watching.interval;
        // What is replaced and free again by now must not wait for a whole interval.
        let interval =
            if self.replaced.is_empty() { interval } else { interval.min(Duration::from_millis(50)) };
        let interval = match self.retry {
            Some((at, _)) => {
                interval.min(at.saturating_duration_since(Instant::now())).max(SHORTEST_INTERVAL)
            }
            None => interval,
        };
        if self.watch.as_mut().is_none_or(|watch| watch.wait(interval).is_err()) {
            std::thread::sleep(interval);
        }
    }

    /// Where the pointers are. The link itself is what counts; a notice only shortens the wait.
    fn look(&mut self) -> Result<Vec<Seen>, StoreError> {
        if self.store.is_none() {
            let root = self.options.store.clone().unwrap_or_else(ModelStore::root_from_env);
            match ModelStore::open(root) {
                Ok(store) => {
                    let watch = self.sights.first().map(|(agent, _)| store.watch(agent));
                    self.watch = watch.map(|watch| watch.with_interval(self.watching.interval));
                    self.store = Some(store);
                }
                // The first model came from another place; a store may still come to be.
                Err(StoreError::RootNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let Some(store) = &self.store else { return Ok(vec![None; self.sights.len()]) };
        self.sights.iter().map(|(agent, selector)| look_at(store, agent, selector)).collect()
    }

    /// Something moved, or may be mended: takes what is there now, or says once why not.
    fn follow(&mut self, inner: &Arc<Inner<M>>) {
        let waited = self.retry.take().map(|(_, waited)| waited);
        let served = inner.served.load_full();
        let started = Instant::now();
        let mut tried = None;
        // A loader that panics is no reason to stop looking after the store.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.replacement(&served, &mut tried)));
        let reason = match outcome {
            Ok(Ok(None)) => {
                let refused = inner.state().refused.take();
                if let Some(refused) = refused {
                    let agent = &self.agent;
                    tracing::info!(agent, refused = ?refused.version, "the version that serves is current again");
                }
                return;
            }
            Ok(Ok(Some(new))) => return self.replace(inner, served, new, started),
            Ok(Err(error)) => {
                if !matches!(error, LoadError::ContractChanged { .. }) {
                    let wait = waited.map_or(self.watching.retry_after, |waited| {
                        waited.saturating_mul(2).min(LONGEST_RETRY)
                    });
                    self.retry = Some((Instant::now() + wait, wait));
                }
                with_causes(&error)
            }
            Err(_) => "loading it panicked, which is a bug".to_owned(),
        };
        // Another place stands in for a store that has nothing, and goes on doing so.
        if tried.is_none() && served.resolved().version().is_none() {
            inner.state().refused = None;
            return;
        }
        let told = inner.state().refused.clone();
        if told.is_some_and(|told| (told.version, told.reason) == (tried.clone(), reason.clone())) {
            return;
        }
        let refused = Refused { version: tried, reason, at_unix_ms: unix_ms() };
        let (agent, version) = (&self.agent, refused.version.as_ref().map_or("-", VersionName::as_str));
        let serving = served.resolved().short_name();
        tracing::warn!(
            agent,
            version,
            serving,
            cause = refused.reason,
            "a new version is refused; the old one goes on"
        );
        inner.state().refused = Some(refused.clone());
        inner.changed.notify_all();
        self.tell(&ReloadEvent::Refused(refused));
    }

    /// The model that should serve, loaded and tested; `None` where it serves already.
    fn replacement(
        &self,
        served: &Loaded<M>,
        tried: &mut Option<VersionName>,
    ) -> Result<Option<Loaded<M>>, LoadError> {
        let (_, new) = resolve::each_place(&self.agent, &self.options, Scope::StoreOnly, |found| {
            if found.is_same(served.resolved()) {
                return Ok(None);
            }
            *tried = found.version().cloned();
            // A lenient start may do with one; nothing that works is given up for one.
            found.refuse_quarantined()?;
            resolve::prepare(found, &self.options)?;
            let new = Loaded::<M>::from_resolved(found, &self.load)?;
            match served.contract().changed_in(new.contract()) {
                None => Ok(Some(new)),
                Some(what) => Err(LoadError::ContractChanged {
                    model: found.short_name(),
                    served: served.resolved().short_name(),
                    what,
                }),
            }
        })?;
        Ok(new)
    }

    fn replace(&mut self, inner: &Arc<Inner<M>>, served: Arc<Loaded<M>>, new: Loaded<M>, started: Instant) {
        let (from, to) = (served.resolved().clone(), new.resolved().clone());
        drop(served);
        self.replaced.push(inner.served.swap(Arc::new(new)));
        {
            let mut state = inner.state();
            state.reloads += 1;
            state.refused = None;
            state.replaced_in_use = self.replaced.len();
        }
        inner.changed.notify_all();
        let took = started.elapsed();
        let checksum = to.checksum().map(|checksum| checksum.to_string()).unwrap_or_default();
        tracing::info!(
            agent = self.agent, from = from.short_name(), to = to.short_name(), checksum, path = %to.path().display(),
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX), "model replaced"
        );
        self.tell(&ReloadEvent::Replaced { from: Box::new(from), to: Box::new(to), took });
    }

    fn tell(&self, event: &ReloadEvent) {
        let Some(observer) = &self.watching.observer else { return };
        if catch_unwind(AssertUnwindSafe(|| observer(event))).is_err() {
            tracing::error!(agent = self.agent, "who was told of a reload panicked");
        }
    }

    /// Says once what keeps the store from being looked at.
    fn tell_trouble(&self, inner: &Inner<M>, trouble: &str) {
        // What logs may ask for the status, so the state is free again by then.
        let told = inner.state().trouble.replace(trouble.to_owned());
        if told.as_deref() != Some(trouble) {
            tracing::warn!(
                agent = self.agent,
                cause = trouble,
                "the store cannot be looked at; the model stays as it is"
            );
        }
    }
}

/// Where one pointer is.
fn look_at(store: &ModelStore, agent: &AgentName, selector: &Selector) -> Result<Seen, StoreError> {
    let found = match selector {
        Selector::Current => store.get_current(agent),
        Selector::Named(_) => store.select(agent, selector).map(Some),
    };
    match found {
        Ok(current) => Ok(current.map(|current| (current.version().clone(), current.checksum()))),
        Err(StoreError::VersionNotFound { .. } | StoreError::AgentNotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

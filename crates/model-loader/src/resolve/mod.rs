//! Where an agent's model comes from: the store first, and under `STRICT_MODEL_STORE` nothing else.

mod contained;
mod dry_run;
#[cfg(feature = "hub")]
mod fetch;
mod found;
mod places;
mod store;

use std::path::{Path, PathBuf};

use model_store::with_causes;

use crate::signed::{self, Signatures};
use crate::verified::{self, Verify};
use crate::{LoadError, hub_cache};

pub use dry_run::{Looked, Outcome, Resolution, dry_run};
pub(crate) use found::Held;
pub use found::{ResolvedAdapter, ResolvedModel, Source};
pub(crate) use places::{Found, Place, Search};

/// What to look for, and where it may be looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ResolveOptions {
    /// The root of the store; `None` is `MODEL_STORE_ROOT`, else the default root.
    pub store: Option<PathBuf>,
    /// A version, a ref (`model-store tag`) or `current`; `None` is the agent's current one.
    pub version: Option<String>,
    /// A Hub model id: the folder `models--org--name` within a version, or in the local Hub cache.
    pub model_id: Option<String>,
    /// The model id's revision; `None` is `main`.
    pub revision: Option<String>,
    /// A folder to take when the store does not serve the agent.
    pub folder: Option<PathBuf>,
    /// Another Hub cache than this user's.
    pub hub_cache: Option<PathBuf>,
    /// Whether what no place here has may be fetched from the Hub.
    pub hub: HubAccess,
    /// Another agent map than `AGENT_MODEL_MAP`'s.
    pub agent_map: Option<PathBuf>,
    /// The entry of the agent map with this `adapter_name`; `None` is the agent's first.
    pub adapter: Option<String>,
    /// The folder of an adapter to take in the place of the agent map's. Strictly it must lie in the store.
    pub adapter_folder: Option<PathBuf>,
    /// Whether only the store may serve.
    pub strictness: Strictness,
    /// When a version's bytes are compared with what was published.
    pub verify: Verify,
    /// Whether it must be signed.
    pub signatures: Signatures,
    /// Whether anything is loaded at all.
    pub loading: Loading,
}

/// Whether a model may come from outside the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Strictness {
    /// The store is preferred; a folder, the agent map or the Hub cache may stand in, with a warning.
    #[default]
    Lenient,
    /// The store or nothing: `STRICT_MODEL_STORE=1`.
    Strict,
}

/// Whether the Hub itself may be asked, after every place here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HubAccess {
    /// It is not: the local cache is read, and nothing more.
    #[default]
    CacheOnly,
    /// It is, as `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` say: for [`model_id`](ResolveOptions::model_id), or the agent
    /// map's `hf_id`. Never where only the store may serve, and never in a dry run, which says that it would.
    #[cfg(feature = "hub")]
    Fetch,
}

/// How far a search goes, beside what the options allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// As far as they allow.
    Allowed,
    /// No further than the store: a model in use is replaced from there only, however lenient its first loading was.
    StoreOnly,
}

/// Whether a model that was found is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Loading {
    /// It is.
    #[default]
    Allowed,
    /// Models are found, and nothing is loaded: `MODEL_STORE_DRY_RUN=1`.
    DryRun,
}

impl Strictness {
    /// What a value of `STRICT_MODEL_STORE` means: `1`, `true`, `yes` and `on`, in any case, are strict.
    #[must_use]
    pub fn from_value(value: &str) -> Self {
        if is_truthy(value) { Self::Strict } else { Self::Lenient }
    }
}

impl Loading {
    /// What a value of `MODEL_STORE_DRY_RUN` means: `1`, `true`, `yes` and `on`, in any case, are a dry run.
    #[must_use]
    pub fn from_value(value: &str) -> Self {
        if is_truthy(value) { Self::DryRun } else { Self::Allowed }
    }
}

fn is_truthy(value: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|word| value.trim().eq_ignore_ascii_case(word))
}

impl ResolveOptions {
    /// The agent's current version in the store of the environment, as `STRICT_MODEL_STORE`, `MODEL_STORE_VERIFY`,
    /// `MODEL_STORE_SIGNATURES` and `MODEL_STORE_DRY_RUN` say.
    #[must_use]
    pub fn from_env() -> Self {
        let value = |name: &str| std::env::var(name).unwrap_or_default();
        Self {
            strictness: Strictness::from_value(&value("STRICT_MODEL_STORE")),
            verify: Verify::from_value(&value("MODEL_STORE_VERIFY")),
            signatures: Signatures::from_value(&value("MODEL_STORE_SIGNATURES")),
            loading: Loading::from_value(&value("MODEL_STORE_DRY_RUN")),
            ..Self::default()
        }
    }
}

/// Finds an agent's model without loading or verifying it.
///
/// ```no_run
/// use model_loader::{ResolveOptions, resolve};
///
/// let found = resolve("analyst", &ResolveOptions { version: Some("champion".into()), ..ResolveOptions::from_env() })?;
/// println!("{found}");
/// # Ok::<(), model_loader::LoadError>(())
/// ```
pub fn resolve(agent: &str, options: &ResolveOptions) -> Result<ResolvedModel, LoadError> {
    let (found, ()) = each_place(agent, options, Scope::Allowed, |_| Ok(()))?;
    tracing::debug!(agent, %found, "model found");
    Ok(found)
}

/// Finds an agent's model and loads it from its folder; see [`load_resolved`].
pub fn load<T>(
    agent: &str,
    options: &ResolveOptions,
    mut load: impl FnMut(&Path) -> Result<T, LoadError>,
) -> Result<(T, ResolvedModel), LoadError> {
    let warn_of_adapter = |found: &ResolvedModel| {
        if let Some(adapter) = found.adapter() {
            tracing::warn!(agent, %adapter, "an adapter is named, which this kind of model does not merge");
        }
    };
    load_resolved(agent, options, |found| load(found.path()).inspect(|_| warn_of_adapter(found)))
}

/// Finds an agent's model, makes sure that it is what was published, and loads it; `load` is told everything about the
/// place, the adapter too. A place whose model does not load is passed over with a warning, unless only the store may
/// serve. What was loaded from where is logged once.
pub fn load_resolved<T>(
    agent: &str,
    options: &ResolveOptions,
    mut load: impl FnMut(&ResolvedModel) -> Result<T, LoadError>,
) -> Result<(T, ResolvedModel), LoadError> {
    let (found, model) = each_place(agent, options, Scope::Allowed, |found| {
        prepare(found, options)?;
        load(found)
    })?;
    log(&found);
    Ok((model, found))
}

/// What comes between finding a model and reading it: no link of its folder leads out of it, it is signed where it
/// must be, and the bytes are those that were published. A dry run ends here.
pub(crate) fn prepare(found: &ResolvedModel, options: &ResolveOptions) -> Result<(), LoadError> {
    look_over(found, options)?;
    found.held().try_for_each(|held| verified::check(held, options.verify))
}

/// What [`prepare`] does without reading a model's files; whether it has no more to do.
pub(crate) fn is_prepared(found: &ResolvedModel, options: &ResolveOptions) -> Result<bool, LoadError> {
    look_over(found, options)?;
    Ok(found.held().all(|held| verified::is_known(held, options.verify)))
}

fn look_over(found: &ResolvedModel, options: &ResolveOptions) -> Result<(), LoadError> {
    if options.loading == Loading::DryRun {
        return Err(LoadError::DryRun { resolved: Box::new(found.clone()) });
    }
    contained::check(found)?;
    signed::check(found, options.signatures)
}

/// Says once where a model came from.
pub(crate) fn log(found: &ResolvedModel) {
    let field = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    tracing::info!(
        agent = found.agent(),
        source = found.source().name(),
        version = field(found.version().map(ToString::to_string)),
        checksum = field(found.checksum().map(|checksum| checksum.to_string())),
        path = %found.path().display(),
        adapter = field(found.adapter().map(ToString::to_string)),
        "model loaded"
    );
}

/// Tries the places in their order, until one of them has a model with which `attempt` succeeds.
pub(crate) fn each_place<T>(
    agent: &str,
    options: &ResolveOptions,
    scope: Scope,
    mut attempt: impl FnMut(&ResolvedModel) -> Result<T, LoadError>,
) -> Result<(ResolvedModel, T), LoadError> {
    let search = Search::new(agent, options, scope)?;
    let mut searched = Vec::new();
    let mut first_failure = None;
    for place in Place::ALL.iter().copied().filter(|place| search.asks(*place)) {
        let failure = match search.look(place) {
            Ok(Found::NotAsked) => continue,
            Ok(Found::Model(found)) if !search.takes(&found) => {
                searched.push(format!("{} is outside the store", found.path().display()));
                continue;
            }
            Ok(Found::Model(found)) => match attempt(&found) {
                Ok(model) => return Ok((*found, model)),
                // No other place mends that a version is not signed: it would not be either.
                Err(error @ (LoadError::DryRun { .. } | LoadError::NotSigned { .. })) => return Err(error),
                Err(error) if search.is_store_only() => return Err(error),
                Err(error) => {
                    let path = found.path().display();
                    tracing::warn!(agent, %path, cause = %with_causes(&error), "the model does not load; looking elsewhere");
                    error
                }
            },
            Ok(Found::Absent(missing)) => {
                if !search.is_store_only() {
                    let path = missing.path.display();
                    tracing::warn!(agent, %path, cause = missing.what, "no model here; looking elsewhere");
                }
                searched.push(missing.what);
                continue;
            }
            // What was asked for makes no sense, or the map does not: no other place mends that.
            Err(error @ (LoadError::Name { .. } | LoadError::Config { .. })) => return Err(error),
            Err(error) if search.is_strict() => {
                return Err(strict(&search, "it could not be read".to_owned(), Some(error)));
            }
            Err(error) if search.is_store_only() => return Err(error),
            Err(error) => {
                let path = search.root();
                tracing::warn!(agent, path = %path.display(), cause = %with_causes(&error), "looking elsewhere for the model");
                error
            }
        };
        // Whoever has the Hub asked wants to know what it says, whatever was wrong before.
        #[cfg(feature = "hub")]
        if let LoadError::Fetch { .. } = failure {
            first_failure = Some(failure);
            continue;
        }
        first_failure.get_or_insert(failure);
    }
    if search.is_strict() {
        return Err(strict(&search, searched.join("; "), None));
    }
    Err(first_failure.unwrap_or(LoadError::NotFound {
        wanted: format!("agent `{agent}`"),
        searched,
        next: match scope {
            Scope::Allowed => {
                "Publish a version (`model-store publish AGENT VERSION --from DIR`) or name a folder"
            }
            Scope::StoreOnly => {
                "A model in use is replaced from the store only: publish a version, or make one current"
            }
        },
    }))
}

fn strict(search: &Search<'_>, missing: String, source: Option<LoadError>) -> LoadError {
    LoadError::Strict {
        agent: search.agent.to_string(),
        store: search.root(),
        missing,
        source: source.map(Box::new),
    }
}

/// The folder within which the files of a model must lie; a folder that the caller named may hold links to anywhere.
pub(crate) fn boundary(path: &Path, source: &Source, held: Option<&Held>) -> Option<PathBuf> {
    match (source, held) {
        (Source::Store { .. }, Some(held)) => Some(held.current.path().to_owned()),
        (Source::Store { root, .. } | Source::StoreFolder { root }, _) => Some(root.clone()),
        // Its files are links to `../../blobs`.
        (Source::HubCache { .. } | Source::Hub { .. }, _) => hub_cache::repository_of(path),
        (Source::Folder, _) => None,
    }
}

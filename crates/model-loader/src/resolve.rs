//! Where an agent's model comes from: the store first, and under `STRICT_MODEL_STORE` nothing else.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model_store::{AgentName, Current, Digest, Lease, ModelStore, StoreError, VersionName};

use crate::LoadError;
use crate::hub_cache::{self, CachedSnapshot, DEFAULT_REVISION};

/// What to look for, and where it may be looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolveOptions {
    /// The root of the store; `None` is `MODEL_STORE_ROOT`, else the default root.
    pub store: Option<PathBuf>,
    /// A version; `None` is the agent's current one.
    pub version: Option<String>,
    /// A Hub model id: the folder `models--org--name` within a version, or in the local Hub cache.
    pub model_id: Option<String>,
    /// The model id's revision; `None` is `main`.
    pub revision: Option<String>,
    /// A folder to take when the store does not serve the agent.
    pub folder: Option<PathBuf>,
    /// Another Hub cache than this user's.
    pub hub_cache: Option<PathBuf>,
    /// Whether only the store may serve.
    pub strictness: Strictness,
}

/// Whether a model may come from outside the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Strictness {
    /// The store is preferred; a folder or the Hub cache may stand in, with a warning.
    #[default]
    Lenient,
    /// The store or nothing: `STRICT_MODEL_STORE=1`.
    Strict,
}

impl Strictness {
    /// What a value of `STRICT_MODEL_STORE` means: `1`, `true`, `yes` and `on`, in any case, are strict.
    #[must_use]
    pub fn from_value(value: &str) -> Self {
        let truthy = ["1", "true", "yes", "on"];
        if truthy.iter().any(|word| value.trim().eq_ignore_ascii_case(word)) {
            Self::Strict
        } else {
            Self::Lenient
        }
    }
}

impl ResolveOptions {
    /// The agent's current version in the store of the environment, as strict as `STRICT_MODEL_STORE` says.
    #[must_use]
    pub fn from_env() -> Self {
        let strictness = std::env::var("STRICT_MODEL_STORE").map(|value| Strictness::from_value(&value));
        Self { strictness: strictness.unwrap_or_default(), ..Self::default() }
    }
}

/// Where a model was found. Clones share the lease.
#[derive(Debug, Clone)]
pub struct ResolvedModel {
    agent: String,
    path: PathBuf,
    source: Source,
    /// Keeps the version from being retired while the model is in use.
    _held: Option<Arc<(Current, Option<Lease>)>>,
}

/// The kind of place a model came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A published version of the model store.
    Store {
        /// The store's root.
        root: PathBuf,
        /// The version.
        version: VersionName,
        /// Its manifest's checksum.
        checksum: Digest,
    },
    /// A folder that the caller named.
    Folder,
    /// The local Hub cache.
    HubCache {
        /// The model.
        model_id: String,
        /// The commit of its files.
        commit: String,
    },
}

impl ResolvedModel {
    /// Whose model it is.
    #[must_use]
    pub fn agent(&self) -> &str {
        &self.agent
    }

    /// The folder with `config.json` or `modules.json`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it came from.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The version, when it came from the store.
    #[must_use]
    pub fn version(&self) -> Option<&VersionName> {
        match &self.source {
            Source::Store { version, .. } => Some(version),
            _ => None,
        }
    }

    /// The version's checksum, when it came from the store.
    #[must_use]
    pub fn checksum(&self) -> Option<Digest> {
        match &self.source {
            Source::Store { checksum, .. } => Some(*checksum),
            _ => None,
        }
    }
}

impl fmt::Display for ResolvedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agent, path, source, .. } = self;
        match source {
            Source::Store { version, checksum, .. } => {
                write!(f, "{agent}/{version} (checksum {checksum}) from the store: {}", path.display())
            }
            Source::Folder => write!(f, "{agent} from a folder: {}", path.display()),
            Source::HubCache { model_id, commit } => {
                write!(f, "{agent}: {model_id} at {commit} from the Hub cache: {}", path.display())
            }
        }
    }
}

/// Finds an agent's model without loading it.
pub fn resolve(agent: &str, options: &ResolveOptions) -> Result<ResolvedModel, LoadError> {
    load(agent, options, |_| Ok(())).map(|((), resolved)| resolved)
}

/// Finds an agent's model and loads it; a place whose model does not load is passed over with a warning, unless only
/// the store may serve.
pub fn load<T>(
    agent: &str,
    options: &ResolveOptions,
    mut load: impl FnMut(&Path) -> Result<T, LoadError>,
) -> Result<(T, ResolvedModel), LoadError> {
    let strict = options.strictness == Strictness::Strict;
    let places: [Place; 3] = [in_store, in_folder, in_hub_cache];
    let mut searched = Vec::new();
    let mut first_failure = None;
    for place in &places[..if strict { 1 } else { places.len() }] {
        let failure = match place(agent, options) {
            Ok(Found::NotAsked) => continue,
            Ok(Found::Model(resolved)) => match load(resolved.path()) {
                Ok(model) => {
                    tracing::info!(agent, path = %resolved.path.display(), source = ?resolved.source, "model resolved");
                    return Ok((model, resolved));
                }
                Err(error) if strict => return Err(error),
                Err(error) => {
                    let path = resolved.path.display();
                    tracing::warn!(agent, %path, cause = %chain(&error), "the model does not load; looking elsewhere");
                    error
                }
            },
            Ok(Found::Absent { missing, .. }) if strict => {
                return Err(LoadError::Strict {
                    agent: agent.to_owned(),
                    store: root(options),
                    missing,
                    source: None,
                });
            }
            Ok(Found::Absent { path, missing }) => {
                tracing::warn!(agent, path = %path.display(), cause = missing, "no model here; looking elsewhere");
                searched.push(missing);
                continue;
            }
            Err(error @ LoadError::Name { .. }) => return Err(error),
            Err(error) if strict => {
                let missing = "it could not be read".to_owned();
                let source = Some(Box::new(error));
                return Err(LoadError::Strict {
                    agent: agent.to_owned(),
                    store: root(options),
                    missing,
                    source,
                });
            }
            Err(error) => {
                let path = root(options);
                tracing::warn!(agent, path = %path.display(), cause = %chain(&error), "looking elsewhere for the model");
                error
            }
        };
        first_failure.get_or_insert(failure);
    }
    Err(first_failure.unwrap_or(LoadError::NotFound {
        wanted: format!("agent `{agent}`"),
        searched,
        next: "Publish a version (`model-store publish AGENT VERSION --from DIR`) or name a folder",
    }))
}

/// A place to look: the agent and what is asked for, to what was found there.
type Place = fn(&str, &ResolveOptions) -> Result<Found, LoadError>;

enum Found {
    Model(ResolvedModel),
    /// The place and what it lacks.
    Absent {
        path: PathBuf,
        missing: String,
    },
    /// The options do not name such a place.
    NotAsked,
}

fn in_store(agent: &str, options: &ResolveOptions) -> Result<Found, LoadError> {
    let name: AgentName = agent.parse()?;
    let store = ModelStore::open(root(options))?;
    let (current, wanted) = match &options.version {
        Some(version) => {
            let version: VersionName = version.parse()?;
            (store.get_version(&name, &version)?, format!("version `{version}`"))
        }
        None => (store.get_current(&name)?, "`current`".to_owned()),
    };
    let Some(current) = current else {
        let missing = format!("the store {}: agent `{agent}` has no {wanted}", store.root().display());
        return Ok(Found::Absent { path: store.root().join(agent), missing });
    };
    if let Some(quarantine) = current.quarantine()? {
        let (version, reason) = (current.version().clone(), quarantine.reason);
        if options.strictness == Strictness::Strict {
            return Err(StoreError::Quarantined { agent: name, version, reason }.into());
        }
        tracing::warn!(agent, %version, reason, "this version is quarantined: it was found damaged");
    }
    let Some(path) = within(current.path(), options)? else {
        let folder = match &options.model_id {
            Some(id) => format!(" and no {}", hub_cache::folder_name(id)?),
            None => String::new(),
        };
        let missing = format!("{} holds no config.json, no modules.json{folder}", current.path().display());
        return Ok(Found::Absent { path: current.path().to_owned(), missing });
    };
    let lease = current
        .lease()
        .inspect_err(|error| tracing::warn!(agent, %error, "no lease on the version: it could be retired while in use"))
        .ok();
    let source = Source::Store {
        root: store.root().to_owned(),
        version: current.version().clone(),
        checksum: current.checksum(),
    };
    let held = Some(Arc::new((current, lease)));
    Ok(Found::Model(ResolvedModel { agent: agent.to_owned(), path, source, _held: held }))
}

/// The model in a version: the version itself, or the folder of the model id asked for, as the Hub cache lays it out.
fn within(version: &Path, options: &ResolveOptions) -> Result<Option<PathBuf>, LoadError> {
    if is_model(version) {
        return Ok(Some(version.to_owned()));
    }
    let Some(model_id) = &options.model_id else { return Ok(None) };
    if let Some(snapshot) = hub_cache::find_in(version, model_id, revision(options))? {
        return Ok(Some(snapshot.path));
    }
    let folder = version.join(hub_cache::folder_name(model_id)?);
    let named = folder.join("snapshots").join(revision(options));
    Ok([named, folder].into_iter().find(|path| is_model(path)))
}

#[expect(clippy::unnecessary_wraps, reason = "one signature for every place")]
fn in_folder(agent: &str, options: &ResolveOptions) -> Result<Found, LoadError> {
    let Some(path) = options.folder.clone() else { return Ok(Found::NotAsked) };
    if !is_model(&path) {
        let missing = format!("the folder {} holds no config.json and no modules.json", path.display());
        return Ok(Found::Absent { path, missing });
    }
    Ok(Found::Model(ResolvedModel { agent: agent.to_owned(), path, source: Source::Folder, _held: None }))
}

fn in_hub_cache(agent: &str, options: &ResolveOptions) -> Result<Found, LoadError> {
    let Some(model_id) = options.model_id.clone() else { return Ok(Found::NotAsked) };
    let cache = options.hub_cache.clone().or_else(hub_cache::dir);
    let found = match &cache {
        Some(cache) => hub_cache::find_in(cache, &model_id, revision(options))?,
        None => None,
    };
    let Some(CachedSnapshot { path, commit }) = found else {
        let path = cache.unwrap_or_default();
        let missing = format!("the Hub cache {}: no {model_id} at {}", path.display(), revision(options));
        return Ok(Found::Absent { path, missing });
    };
    let source = Source::HubCache { model_id, commit };
    Ok(Found::Model(ResolvedModel { agent: agent.to_owned(), path, source, _held: None }))
}

fn root(options: &ResolveOptions) -> PathBuf {
    options.store.clone().unwrap_or_else(ModelStore::root_from_env)
}

fn revision(options: &ResolveOptions) -> &str {
    options.revision.as_deref().unwrap_or(DEFAULT_REVISION)
}

fn is_model(dir: &Path) -> bool {
    ["config.json", "modules.json"].iter().any(|name| dir.join(name).is_file())
        || crate::lm::is_gguf_folder(dir)
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

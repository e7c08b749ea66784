//! The places where a model may be, one after another.

use std::path::{Path, PathBuf};

use model_store::{AgentName, ModelStore, Selector, with_causes};

use super::found::{Located, ResolvedAdapter, ResolvedModel, Source};
use super::store::{self, Missing, Sought};
use super::{ResolveOptions, Scope, Strictness};
use crate::LoadError;
use crate::agent_map::{AgentMap, MapAdapter, MapEntry};
use crate::hub_cache::{self, CachedSnapshot, DEFAULT_REVISION};

/// A file that every adapter has.
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// What is looked for, and what the agent map says of it.
#[derive(Debug)]
pub(crate) struct Search<'a> {
    pub(super) agent: AgentName,
    pub(super) options: &'a ResolveOptions,
    scope: Scope,
    map: AgentMap,
    pub(crate) entry: Option<MapEntry>,
    /// The adapter that the caller named, which goes before the map's.
    adapter: Option<ResolvedAdapter>,
}

/// A kind of place to look, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The agent's own versions.
    Store,
    /// The folder that the caller named.
    Folder,
    /// Where in the store the agent map says it is.
    AgentMap,
    /// The agent map's `hf_id`, in the local Hub cache.
    MapHub,
    /// The model id that the caller named, in the local Hub cache.
    HubCache,
    /// The Hub, by the agent map's `hf_id`, else the model id that the caller named.
    #[cfg(feature = "hub")]
    Hub,
}

/// What one place has.
#[derive(Debug)]
pub(crate) enum Found {
    Model(Box<ResolvedModel>),
    Absent(Missing),
    /// Nobody named such a place.
    NotAsked,
}

impl Place {
    /// All of them, in their order.
    pub(crate) const ALL: &'static [Self] = &[
        Self::Store,
        Self::Folder,
        Self::AgentMap,
        Self::MapHub,
        Self::HubCache,
        #[cfg(feature = "hub")]
        Self::Hub,
    ];

    /// Its name, as reports have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Folder => "folder",
            Self::AgentMap => "agent-map",
            Self::MapHub => "map-hub",
            Self::HubCache => "hub-cache",
            #[cfg(feature = "hub")]
            Self::Hub => "hub",
        }
    }

    /// Whether it may be looked at. Strictly, the agent map still says where *in the store* a model is.
    pub(crate) fn is_allowed(self, strictness: Strictness) -> bool {
        strictness == Strictness::Lenient || matches!(self, Self::Store | Self::AgentMap)
    }
}

impl<'a> Search<'a> {
    /// Checks the names, reads the agent map, and finds the adapter that the caller named.
    pub(crate) fn new(agent: &str, options: &'a ResolveOptions, scope: Scope) -> Result<Self, LoadError> {
        let agent: AgentName = agent.parse()?;
        let map = match &options.agent_map {
            Some(path) => AgentMap::read(path)?.ok_or_else(|| LoadError::Missing {
                path: path.clone(),
                next: "the options name it as the agent map".to_owned(),
            })?,
            None => AgentMap::from_env()?,
        };
        let entry = map.entry(agent.as_str(), options.adapter.as_deref())?;
        if let (Some(adapter), None) = (&options.adapter, &entry) {
            return Err(LoadError::NotFound {
                wanted: format!("adapter `{adapter}` of agent `{agent}`"),
                searched: vec![format!(
                    "the agent map {}: it says nothing of the agent",
                    map.path().display()
                )],
                next: "Name the adapter in AGENT_MODEL_MAP.json, or load the model without one",
            });
        }
        let search = Self { agent, options, scope, map, entry, adapter: None };
        let adapter = options.adapter_folder.as_deref().map(|folder| search.callers_adapter(folder));
        Ok(Self { adapter: adapter.transpose()?, ..search })
    }

    /// The adapter in a folder that the caller named. In the store it is opened and leased like the map's; strictly it is
    /// nowhere else.
    fn callers_adapter(&self, folder: &Path) -> Result<ResolvedAdapter, LoadError> {
        let path = std::path::absolute(folder).map_err(LoadError::read(folder))?;
        let located = match ModelStore::open(self.root()) {
            Ok(store) => store::locate(&store, &path, self.options)?,
            Err(error) if self.is_strict() => {
                return Err(super::strict(self, "it could not be read".to_owned(), Some(error.into())));
            }
            Err(_) => Ok(Located { path, source: Source::Folder, held: None }),
        };
        let config = match located {
            Ok(Located { path, source, held }) => {
                let config = path.join(ADAPTER_CONFIG);
                if config.is_file() {
                    return Ok(ResolvedAdapter {
                        name: None,
                        path,
                        source,
                        asked: Some(folder.to_owned()),
                        held,
                    });
                }
                config
            }
            Err(missing) if self.is_strict() => {
                return Err(super::strict(self, format!("the adapter asked for: {}", missing.what), None));
            }
            Err(missing) => missing.path.join(ADAPTER_CONFIG),
        };
        let next = "the folder is named as an adapter, and peft writes this file into one".to_owned();
        Err(LoadError::Missing { path: config, next })
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.options.strictness == Strictness::Strict
    }

    /// Whether nothing but the store is asked.
    pub(crate) fn is_store_only(&self) -> bool {
        self.is_strict() || self.scope == Scope::StoreOnly
    }

    /// Whether a place is asked at all.
    pub(crate) fn asks(&self, place: Place) -> bool {
        place.is_allowed(if self.is_store_only() { Strictness::Strict } else { Strictness::Lenient })
    }

    /// Whether a model may be used, by where it is.
    pub(crate) fn takes(&self, found: &ResolvedModel) -> bool {
        self.scope == Scope::Allowed || found.is_in_store()
    }

    pub(super) fn root(&self) -> PathBuf {
        self.options.store.clone().unwrap_or_else(ModelStore::root_from_env)
    }

    /// What a place has.
    pub(crate) fn look(&self, place: Place) -> Result<Found, LoadError> {
        let mut found = match place {
            Place::Store => self.in_store()?,
            Place::Folder => self.in_folder(),
            Place::AgentMap => self.in_map()?,
            Place::MapHub => self.in_hub_cache_by_map()?,
            Place::HubCache => match &self.options.model_id {
                Some(model_id) => Found::of(self.in_hub_cache(model_id)?),
                None => Found::NotAsked,
            },
            #[cfg(feature = "hub")]
            Place::Hub => self.on_hub()?,
        };
        if let (Found::Model(model), Some(adapter)) = (&mut found, &self.adapter) {
            model.adapter = Some(adapter.clone());
        }
        Ok(found)
    }

    fn in_store(&self) -> Result<Found, LoadError> {
        let selector = self.selector()?;
        let store = ModelStore::open(self.root())?;
        let held = match store::open(&store, &self.agent, &selector, self.options)? {
            Ok(held) => held,
            Err(missing) => return Ok(Found::Absent(missing)),
        };
        let hub_id = self.entry.as_ref().and_then(|entry| entry.base.hf_id.as_deref());
        let model_id = self.options.model_id.as_deref().or(hub_id);
        let path = match store::model_in(held.current.path(), model_id, self.options.revision.as_deref())? {
            Ok(path) => path,
            Err(missing) => return Ok(Found::Absent(missing)),
        };
        let located = Located { path, source: store::source_of(&held), held: Some(held) };
        match &self.entry {
            Some(entry) if self.is_own_base(&store, entry, &located)? => {
                Ok(Found::of(self.with_adapter(entry, located)?))
            }
            _ => Ok(Found::of(Ok(self.model(located)))),
        }
    }

    fn in_folder(&self) -> Found {
        let Some(path) = self.options.folder.clone() else { return Found::NotAsked };
        if !store::is_model(&path) {
            let what = format!("the folder {} holds no config.json and no modules.json", path.display());
            return Found::Absent(Missing { path, what });
        }
        Found::of(Ok(self.model(Located { path, source: Source::Folder, held: None })))
    }

    /// The base model of the agent's entry, in the store.
    fn in_map(&self) -> Result<Found, LoadError> {
        let Some(entry) = &self.entry else { return Ok(Found::NotAsked) };
        let base = &entry.base;
        let names_store = base.model_store_path.is_some()
            || base.model_store_agent.is_some()
            || base.model_store_version.is_some();
        if !names_store {
            return Ok(Found::NotAsked);
        }
        match self.base_in_store(&ModelStore::open(self.root())?, entry)? {
            Ok(located) => Ok(Found::of(self.with_adapter(entry, located)?)),
            Err(missing) => {
                let what = format!("the agent map ({}): {}", entry.json_path, missing.what);
                Ok(Found::Absent(Missing { what, ..missing }))
            }
        }
    }

    /// The base model of the agent's entry, in the local Hub cache: a place of its own, so that it is asked as well where
    /// the store cannot be read, or what it has does not load.
    fn in_hub_cache_by_map(&self) -> Result<Found, LoadError> {
        let Some(entry) = &self.entry else { return Ok(Found::NotAsked) };
        let Some(hub_id) = &entry.base.hf_id else { return Ok(Found::NotAsked) };
        match self.in_hub_cache(hub_id)? {
            Ok(ResolvedModel { path, source, .. }) => {
                Ok(Found::of(self.with_adapter(entry, Located { path, source, held: None })?))
            }
            Err(missing) => Ok(Found::Absent(missing)),
        }
    }

    fn in_hub_cache(&self, model_id: &str) -> Sought<ResolvedModel> {
        let revision = self.options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
        let cache = self.options.hub_cache.clone().or_else(hub_cache::dir);
        let found = match &cache {
            Some(cache) => hub_cache::find_in(cache, model_id, revision)?,
            None => None,
        };
        let Some(CachedSnapshot { path, commit }) = found else {
            let path = cache.unwrap_or_default();
            let what = format!("the Hub cache {}: no {model_id} at {revision}", path.display());
            return Ok(Err(Missing { path, what }));
        };
        let source = Source::HubCache { model_id: model_id.to_owned(), commit };
        Ok(Ok(self.model(Located { path, source, held: None })))
    }

    /// What the Hub is asked for, if it may be asked: the base model of the agent's entry, else what the caller named.
    #[cfg(feature = "hub")]
    fn asked_of_hub(&self) -> Option<&str> {
        let of_map = self.entry.as_ref().and_then(|entry| entry.base.hf_id.as_deref());
        of_map.or(self.options.model_id.as_deref()).filter(|_| self.options.hub == super::HubAccess::Fetch)
    }

    #[cfg(feature = "hub")]
    fn on_hub(&self) -> Result<Found, LoadError> {
        let Some(model_id) = self.asked_of_hub() else { return Ok(Found::NotAsked) };
        if self.options.loading == super::Loading::DryRun {
            let (path, what) = self.would_fetch(model_id)?;
            return Ok(Found::Absent(Missing { path, what: format!("the Hub: {what}") }));
        }
        let revision = self.options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
        let CachedSnapshot { path, commit } =
            super::fetch::fetch(model_id, revision, self.options.hub_cache.as_deref())?;
        let source = Source::Hub { model_id: model_id.to_owned(), commit };
        let located = Located { path, source, held: None };
        match &self.entry {
            Some(entry) if entry.base.hf_id.is_some() => Ok(Found::of(self.with_adapter(entry, located)?)),
            _ => Ok(Found::of(Ok(self.model(located)))),
        }
    }

    /// The place and the words of what the Hub would be asked for.
    #[cfg(feature = "hub")]
    fn would_fetch(&self, model_id: &str) -> Result<(PathBuf, String), LoadError> {
        let revision = self.options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
        super::fetch::would(model_id, revision, self.options.hub_cache.as_deref())
    }

    /// What a report says of the Hub: nobody is asked.
    #[cfg(feature = "hub")]
    pub(super) fn hub_in_words(&self) -> Result<Option<(PathBuf, String)>, LoadError> {
        self.asked_of_hub().map(|model_id| self.would_fetch(model_id)).transpose()
    }

    /// The version that the options ask for.
    pub(super) fn selector(&self) -> Result<Selector, LoadError> {
        Ok(self.options.version.as_deref().map_or(Ok(Selector::Current), str::parse)?)
    }

    /// What in the store decides which model it is: when none of these moves, the model stays what it is.
    pub(crate) fn sights(&self) -> Result<Vec<(AgentName, Selector)>, LoadError> {
        let mut sights = vec![(self.agent.clone(), self.selector()?)];
        let callers = self.adapter.as_ref().and_then(|adapter| adapter.asked.as_deref());
        let callers = callers.and_then(|folder| std::path::absolute(folder).ok());
        sights.extend(callers.and_then(|path| store::sight_of_path(&path, self.options)));
        if let Some(entry) = &self.entry {
            let (base, adapter) = (&entry.base, entry.adapter.clone().unwrap_or_default());
            let named = [
                (&base.model_store_path, &base.model_store_agent, &base.model_store_version),
                (&adapter.model_store_path, &adapter.agent, &adapter.version),
            ];
            for (path, agent, version) in named {
                // What makes no sense was an error when the model was looked for, or led to none that serves.
                sights.extend(
                    path.as_deref().and_then(|path| store::sight_of_path(Path::new(path), self.options)),
                );
                let selector = version.as_deref().unwrap_or("current").parse().ok();
                sights.extend(self.owner(agent.as_deref()).ok().zip(selector));
            }
        }
        let mut seen = Vec::new();
        for sight in sights {
            if !seen.contains(&sight) {
                seen.push(sight);
            }
        }
        Ok(seen)
    }

    /// Where in the store the base model of an entry is.
    pub(super) fn base_in_store(&self, store: &ModelStore, entry: &MapEntry) -> Sought<Located> {
        let base = &entry.base;
        let at = |key: &str| format!("base_models.{}.{key}", entry.base_ref);
        let located = if let Some(path) = &base.model_store_path {
            self.named(&at("model_store_path"), store::locate(store, Path::new(path), self.options))?
        } else {
            let owner = self.owner(base.model_store_agent.as_deref());
            let agent = self.named(&at("model_store_agent"), owner)?;
            let version = base.model_store_version.as_deref().unwrap_or("current");
            let selector: Selector =
                self.named(&at("model_store_version"), version.parse().map_err(LoadError::from))?;
            store::open(store, &agent, &selector, self.options)?.map(|held| {
                let path = held.current.path().to_owned();
                Located { path, source: store::source_of(&held), held: Some(held) }
            })
        };
        let located = match located {
            Ok(located) => located,
            Err(missing) => return Ok(Err(missing)),
        };
        let model_id = base.hf_id.as_deref().or(self.options.model_id.as_deref());
        let revision = self.options.revision.as_deref();
        Ok(store::model_in(&located.path, model_id, revision)?.map(|path| Located { path, ..located }))
    }

    /// Whether the agent's own version is the base model that its entry means: the adapter of another base would spoil it.
    /// Whoever asks for an adapter by its name has said so.
    fn is_own_base(&self, store: &ModelStore, entry: &MapEntry, own: &Located) -> Result<bool, LoadError> {
        let base = &entry.base;
        if entry.adapter.is_none() || self.options.adapter.is_some() {
            return Ok(entry.adapter.is_some());
        }
        if base.model_store_path.is_none() && base.model_store_version.is_none() {
            let owner = self.owner(base.model_store_agent.as_deref())?;
            return Ok(
                matches!(&own.source, Source::Store { agent, .. } if *agent == owner || self.agent == owner),
            );
        }
        Ok(self.base_in_store(store, entry)?.is_ok_and(|base| base.source == own.source))
    }

    /// A model with the adapter of the agent's entry. Without its adapter a model is another one, so a missing adapter is
    /// a missing model.
    fn with_adapter(&self, entry: &MapEntry, base: Located) -> Sought<ResolvedModel> {
        // The caller's own takes its place.
        let adapter = match entry.adapter.as_ref().filter(|_| self.adapter.is_none()) {
            None => None,
            Some(adapter) => match self.adapter(&ModelStore::open(self.root())?, entry, adapter)? {
                Ok(adapter) => Some(adapter),
                Err(missing) => return Ok(Err(missing)),
            },
        };
        Ok(Ok(ResolvedModel { base_ref: Some(entry.base_ref.clone()), adapter, ..self.model(base) }))
    }

    /// Where an adapter is: at its path, else in the version that it names, else in the agent's current one.
    pub(super) fn adapter(
        &self,
        store: &ModelStore,
        entry: &MapEntry,
        adapter: &MapAdapter,
    ) -> Sought<ResolvedAdapter> {
        let at = |key: &str| format!("{}.{key}", entry.json_path);
        let mut missing = Vec::new();
        let mut candidates = Vec::new();
        if let Some(path) = &adapter.model_store_path {
            let located = store::locate(store, Path::new(path), self.options);
            match self.named(&at("adapter_model_store_path"), located)? {
                Ok(located) => candidates.push(located),
                Err(one) => missing.push(one),
            }
        }
        if adapter.version.is_some() || adapter.model_store_path.is_none() {
            let agent = self.named(&at("adapter_agent"), self.owner(adapter.agent.as_deref()))?;
            let version = adapter.version.as_deref().unwrap_or("current");
            let selector: Selector =
                self.named(&at("adapter_version"), version.parse().map_err(LoadError::from))?;
            let subdir = match (&adapter.subdir, &adapter.name) {
                (Some(subdir), _) => subdir.clone(),
                (None, Some(name)) => format!("adapters/{name}"),
                (None, None) => ".".to_owned(),
            };
            if !store::stays_below(&subdir) {
                return Err(self
                    .map
                    .wrong(&at("adapter_subdir"), &format!("is {subdir:?}, which leaves its version")));
            }
            match store::open(store, &agent, &selector, self.options)? {
                Ok(held) => {
                    let whole = held.current.path().to_owned();
                    let (source, held) = (store::source_of(&held), Some(held));
                    let below =
                        Located { path: whole.join(subdir), source: source.clone(), held: held.clone() };
                    candidates.push(below);
                    // A version may be the adapter and nothing else.
                    if adapter.version.is_some() && adapter.subdir.is_none() {
                        candidates.push(Located { path: whole, source, held });
                    }
                }
                Err(one) => missing.push(one),
            }
        }
        for Located { path, source, held } in candidates {
            if path.join(ADAPTER_CONFIG).is_file() {
                return Ok(Ok(ResolvedAdapter {
                    name: adapter.name.clone(),
                    path,
                    source,
                    asked: None,
                    held,
                }));
            }
            let what = format!("{} holds no {ADAPTER_CONFIG}", path.display());
            missing.push(Missing { path, what });
        }
        let what = missing.iter().map(|one| one.what.as_str()).collect::<Vec<_>>().join("; ");
        let name = adapter.name.as_deref().unwrap_or("without a name");
        let path = missing.into_iter().next().map(|one| one.path).unwrap_or_default();
        Ok(Err(Missing {
            path,
            what: format!("the adapter `{name}` ({}) is not there: {what}", entry.json_path),
        }))
    }

    fn owner(&self, agent: Option<&str>) -> Result<AgentName, LoadError> {
        agent.map_or_else(|| Ok(self.agent.clone()), |agent| Ok(agent.parse()?))
    }

    /// A name of the map that is none is the map's fault, and is named by its JSON path.
    fn named<T>(&self, json_path: &str, result: Result<T, LoadError>) -> Result<T, LoadError> {
        result.map_err(|error| match error {
            LoadError::Name { .. } => self.map.wrong(json_path, &with_causes(&error)),
            other => other,
        })
    }

    fn model(&self, located: Located) -> ResolvedModel {
        let Located { path, source, held } = located;
        ResolvedModel { agent: self.agent.to_string(), path, source, base_ref: None, adapter: None, held }
    }
}

impl Found {
    fn of(sought: Result<ResolvedModel, Missing>) -> Self {
        match sought {
            Ok(found) => Self::Model(Box::new(found)),
            Err(missing) => Self::Absent(missing),
        }
    }
}

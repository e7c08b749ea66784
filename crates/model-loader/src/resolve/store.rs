//! Models and adapters in the store: which version is meant, whether it may be used, and where in it they lie.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use model_store::{AgentName, Current, ModelStore, Selector, StoreError};

use super::found::{Held, Located, Source};
use super::{ResolveOptions, Strictness};
use crate::LoadError;
use crate::hub_cache::{self, DEFAULT_REVISION};

/// How often a version is looked for that is retired between being found and being leased.
const ATTEMPTS: usize = 3;

/// What is not there, and where it was looked for.
#[derive(Debug)]
pub(crate) struct Missing {
    pub(super) path: PathBuf,
    pub(super) what: String,
}

/// Something, or that it is not there; an error is that nobody knows.
pub(crate) type Sought<T> = Result<Result<T, Missing>, LoadError>;

/// Opens a version, refuses or warns of a quarantined one, and leases it.
pub(super) fn open(
    store: &ModelStore,
    agent: &AgentName,
    selector: &Selector,
    options: &ResolveOptions,
) -> Sought<Arc<Held>> {
    let mut attempt = 1;
    loop {
        let current = match select(store, agent, selector)? {
            Ok(current) => current,
            Err(missing) => return Ok(Err(missing)),
        };
        judge(&current, options)?;
        let lease = match current.lease() {
            Ok(lease) => Some(lease),
            // It is being retired, or was just now: what is meant may be another version by the next look.
            Err(StoreError::VersionNotFound { .. } | StoreError::Busy { .. }) if attempt < ATTEMPTS => {
                attempt += 1;
                continue;
            }
            Err(error @ (StoreError::VersionNotFound { .. } | StoreError::Busy { .. })) => {
                return Err(error.into());
            }
            Err(error) => {
                let (agent, version) = (current.agent(), current.version());
                tracing::warn!(%agent, %version, %error, "no lease on the version: it could be retired while in use");
                None
            }
        };
        return Ok(Ok(Arc::new(Held { store: store.clone(), current, _lease: lease })));
    }
}

fn select(store: &ModelStore, agent: &AgentName, selector: &Selector) -> Sought<Current> {
    let missing = |what: String| Missing {
        path: store.root().join(agent.as_str()),
        what: format!("the store {}: agent `{agent}` has no {what}", store.root().display()),
    };
    if *selector == Selector::Current {
        return Ok(store.get_current(agent)?.ok_or_else(|| missing("`current`".to_owned())));
    }
    match store.select(agent, selector) {
        Ok(current) => Ok(Ok(current)),
        Err(StoreError::VersionNotFound { near, .. }) => {
            let near =
                if near.is_empty() { String::new() } else { format!("; there is {}", near.join(", ")) };
            Ok(Err(missing(format!("version `{selector}` and no ref of that name{near}"))))
        }
        Err(StoreError::AgentNotFound { .. }) => Ok(Err(missing(format!("version `{selector}`")))),
        Err(error) => Err(error.into()),
    }
}

/// Whether a version may be used: a quarantined one only where the store is not all there is, with a warning.
fn judge(current: &Current, options: &ResolveOptions) -> Result<(), LoadError> {
    let Some(quarantine) = current.quarantine()? else { return Ok(()) };
    let (agent, version, reason) = (current.agent().clone(), current.version().clone(), quarantine.reason);
    if options.strictness == Strictness::Strict {
        return Err(StoreError::Quarantined { agent, version, reason }.into());
    }
    tracing::warn!(%agent, %version, reason, "this version is quarantined: it was found damaged");
    Ok(())
}

/// The model below a version: the folder itself, or that of the model id asked for, as the Hub cache lays it out.
pub(super) fn model_in(folder: &Path, model_id: Option<&str>, revision: Option<&str>) -> Sought<PathBuf> {
    if is_model(folder) {
        return Ok(Ok(folder.to_owned()));
    }
    let missing = |name: &str| Missing {
        path: folder.to_owned(),
        what: format!("{} holds no config.json, no modules.json{name}", folder.display()),
    };
    let Some(model_id) = model_id else { return Ok(Err(missing(""))) };
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    if let Some(snapshot) = hub_cache::find_in(folder, model_id, revision)? {
        return Ok(Ok(snapshot.path));
    }
    let name = hub_cache::folder_name(model_id)?;
    let below = folder.join(&name);
    let named = below.join("snapshots").join(revision);
    let found = [named, below].into_iter().find(|path| is_model(path));
    Ok(found.ok_or_else(|| missing(&format!(" and no {name}"))))
}

/// Follows a path of the agent map. Below the store's root it may lead into a version, `<agent>/versions/<version>/…` or
/// `<agent>/current/…`, which is then opened and leased like any other, or to a folder that belongs to none. An absolute
/// path elsewhere is no place of the store.
pub(super) fn locate(store: &ModelStore, given: &Path, options: &ResolveOptions) -> Sought<Located> {
    let root = store.root();
    let Some(below) = below_store(given, root, options) else {
        let (found, shown) = (given.is_dir(), given.display());
        let missing = |what: String| Missing { path: given.to_owned(), what };
        return Ok(if !found {
            Err(missing(format!("there is no folder {shown}")))
        } else if options.strictness == Strictness::Strict {
            Err(missing(format!("{shown} is outside the store {}", root.display())))
        } else {
            Ok(Located { path: given.to_owned(), source: Source::Folder, held: None })
        });
    };
    let Some(names) = names_of(below).filter(|names| !names.is_empty()) else {
        return Err(LoadError::Name {
            name: given.display().to_string(),
            kind: "path in the store",
            reason: "write it relative to the store's root and without `..`",
        });
    };
    if let Some((agent, selector, rest)) = version_in(&names)? {
        return Ok(open(store, &agent, &selector, options)?.map(|held| {
            let path = rest.iter().fold(held.current.path().to_owned(), |path, name| path.join(name));
            Located { path, source: source_of(&held), held: Some(held) }
        }));
    }
    let path = root.join(names.iter().collect::<PathBuf>());
    if !path.is_dir() {
        let what = format!("the store {} has no folder {}", root.display(), names.join("/"));
        return Ok(Err(Missing { path, what }));
    }
    Ok(Ok(Located { path, source: Source::StoreFolder { root: root.to_owned() }, held: None }))
}

/// Whether a relative path stays below where it begins.
pub(super) fn stays_below(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// What a path has below the store's root, by the root's real name or the one that was given; a relative path is below it.
/// `None` is an absolute path elsewhere.
fn below_store<'a>(given: &'a Path, root: &Path, options: &ResolveOptions) -> Option<&'a Path> {
    let named_root = options.store.clone().unwrap_or_else(ModelStore::root_from_env);
    let below = given.strip_prefix(root).or_else(|_| given.strip_prefix(&named_root)).ok();
    below.or(given.is_relative().then_some(given))
}

/// The names on a path; `None` where it climbs, or a name is no text.
fn names_of(path: &Path) -> Option<Vec<&str>> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    let name = |part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    };
    parts.map(name).collect()
}

/// The agent and version that a path leads into, as [`locate`] follows it.
pub(super) fn sight_of_path(path: &Path, options: &ResolveOptions) -> Option<(AgentName, Selector)> {
    let root = options.store.clone().unwrap_or_else(ModelStore::root_from_env);
    let root = root.canonicalize().unwrap_or(root);
    let names = names_of(below_store(path, &root, options)?)?;
    version_in(&names).ok()?.map(|(agent, selector, _)| (agent, selector))
}

type InVersion<'a> = (AgentName, Selector, &'a [&'a str]);

/// The agent and version that a path in the store begins with, and what is left of it.
fn version_in<'a>(names: &'a [&'a str]) -> Result<Option<InVersion<'a>>, LoadError> {
    Ok(match names {
        [agent, "versions" | "refs", version, rest @ ..] => Some((agent.parse()?, version.parse()?, rest)),
        [agent, "current", rest @ ..] => Some((agent.parse()?, Selector::Current, rest)),
        _ => None,
    })
}

pub(super) fn source_of(held: &Held) -> Source {
    Source::Store {
        root: held.store.root().to_owned(),
        agent: held.current.agent().clone(),
        version: held.current.version().clone(),
        checksum: held.current.checksum(),
    }
}

pub(super) fn is_model(dir: &Path) -> bool {
    ["config.json", "modules.json"].iter().any(|name| dir.join(name).is_file())
        || crate::lm::is_gguf_folder(dir)
}

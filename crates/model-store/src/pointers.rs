//! Moving pointers: `current`, forward and back, and refs. Steps 6 and 7 of the protocol.

use std::os::fd::AsFd;
use std::path::PathBuf;

use rustix::fs::FileType;
use serde::Serialize;

use crate::digest::Digest;
use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::history::{self, Action, MoveOptions, PointerName, Record, line_of_current};
use crate::layout::{AgentDir, CURRENT_LINK, Place, Pointer, REFS_DIR, TEMP_LINK_PREFIX, VERSIONS_DIR};
use crate::names::{AgentName, RefName, Selector, VersionName};
use crate::near::near_names;
use crate::read::Current;
use crate::store::ModelStore;
use crate::trust::Unsigned;

/// A pointer that was moved, or was there already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// The agent.
    pub agent: AgentName,
    /// Which pointer.
    pub pointer: PointerName,
    /// Where it was.
    pub from: Option<VersionName>,
    /// Where it is now. The same as `from` where nothing had to be done; then nothing is recorded either.
    pub to: Option<VersionName>,
    /// The checksum of the version it is at now.
    pub checksum: Option<Digest>,
    /// What the store's policy on signatures warns of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caution: Option<String>,
}

/// A ref and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RefEntry {
    /// The ref.
    pub name: RefName,
    /// The version it points at.
    pub version: VersionName,
    /// Whether that version is not there.
    pub dangling: bool,
}

impl ModelStore {
    /// Makes a published version current.
    pub fn activate(
        &self,
        agent: &AgentName,
        version: &VersionName,
        options: &MoveOptions,
    ) -> Result<Moved, StoreError> {
        self.with_lock(agent, |agent| {
            let (target, caution) = self.admitted(agent, version)?;
            let moved =
                self.move_to(agent, &PointerName::Current, Some(&target), Action::Activate, options)?;
            Ok(Moved { caution, ..moved })
        })
    }

    /// Makes current again what was current before, or a version that is named. One durable step; doing it
    /// twice leads back.
    pub fn rollback(
        &self,
        agent: &AgentName,
        to: Option<&VersionName>,
        options: &MoveOptions,
    ) -> Result<Moved, StoreError> {
        self.with_lock(agent, |agent| {
            let (target, caution) = match to {
                Some(version) => self.admitted(agent, version)?,
                None => self.admitted(agent, &self.before_current(agent)?)?,
            };
            let moved =
                self.move_to(agent, &PointerName::Current, Some(&target), Action::Rollback, options)?;
            Ok(Moved { caution, ..moved })
        })
    }

    /// Points a ref at a version, making the ref where it is new.
    pub fn tag(
        &self,
        agent: &AgentName,
        name: &RefName,
        version: &VersionName,
        options: &MoveOptions,
    ) -> Result<Moved, StoreError> {
        self.with_lock(agent, |agent| {
            let (target, caution) = self.admitted(agent, version)?;
            let same_name = VersionName::try_from(name.as_str()).ok();
            if same_name.is_some_and(|same| matches!(Current::open_in(agent, &same), Ok(Some(_)))) {
                return Err(StoreError::RefIsVersion { agent: agent.name().clone(), name: name.clone() });
            }
            let pointer = PointerName::Ref(name.clone());
            let moved = self.move_to(agent, &pointer, Some(&target), Action::Tag, options)?;
            Ok(Moved { caution, ..moved })
        })
    }

    /// Takes a ref away. The version that it pointed at stays.
    pub fn untag(
        &self,
        agent: &AgentName,
        name: &RefName,
        options: &MoveOptions,
    ) -> Result<Moved, StoreError> {
        self.with_lock(agent, |agent| {
            if !has_ref(agent, name)? {
                return Err(ref_not_found(agent, name));
            }
            self.move_to(agent, &PointerName::Ref(name.clone()), None, Action::Untag, options)
        })
    }

    /// The refs of an agent, in the order of their names. One that leads out of the agent is an error.
    pub fn refs(&self, agent: &AgentName) -> Result<Vec<RefEntry>, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), agent)? else {
            return Err(self.agent_not_found(agent));
        };
        let mut refs = Vec::new();
        for name in ref_names(&agent)? {
            // One that is gone by now was taken away meanwhile.
            if let Some(pointer) = agent.read_ref(&name)? {
                let dangling = agent.open_version(&pointer.version, pointer.place)?.is_none();
                refs.push(RefEntry { name, version: pointer.version, dangling });
            }
        }
        Ok(refs)
    }

    /// The version that a ref points at; `None` where there is no such ref.
    pub fn get_ref(&self, agent: &AgentName, name: &RefName) -> Result<Option<Current>, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), agent)? else { return Ok(None) };
        let Some(pointer) = agent.read_ref(name)? else { return Ok(None) };
        if let Some(found) = Current::open_at(&agent, &pointer)? {
            return Ok(Some(found));
        }
        let what = format!(
            "points at {}, which is not there; point it at another with `model-store tag`, or take it away with \
             `model-store untag`",
            pointer.version
        );
        Err(StoreError::corrupt(&ref_path(&agent, name), what))
    }

    /// What a person means by a version's name: that version, else what the ref of that name points at.
    pub fn select(&self, agent: &AgentName, selector: &Selector) -> Result<Current, StoreError> {
        let name = match selector {
            Selector::Current => return self.require_current(agent),
            Selector::Named(name) => name,
        };
        if let Some(version) = self.get_version(agent, name)? {
            return Ok(version);
        }
        if let Ok(reference) = RefName::try_from(name.as_str())
            && let Some(version) = self.get_ref(agent, &reference)?
        {
            return Ok(version);
        }
        let versions = self.versions(agent)?;
        let refs = self.refs(agent).unwrap_or_default();
        let names = versions.iter().map(VersionName::as_str).chain(refs.iter().map(|r| r.name.as_str()));
        let near = near_names(name.as_str(), names);
        Err(StoreError::VersionNotFound { agent: agent.clone(), version: name.clone(), near })
    }

    /// Runs a mutation of an agent that must be there, under its lock.
    pub(crate) fn with_lock<T>(
        &self,
        agent: &AgentName,
        mutate: impl FnOnce(&AgentDir) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let there = AgentDir::open_to_write(self.root(), agent)?;
        match there {
            Some(there) => match self.lock(&there)? {
                Some(_lock) => mutate(&there),
                None => Err(self.agent_not_found(agent)),
            },
            None => Err(self.agent_not_found(agent)),
        }
    }

    /// A version that a pointer may be moved to: there, with every file in its size, not quarantined, and
    /// signed as the store's policy has it; with what that warns of.
    fn admitted(
        &self,
        agent: &AgentDir,
        version: &VersionName,
    ) -> Result<(Current, Option<String>), StoreError> {
        let found = self.unmarked(agent, version)?;
        found.check_sizes()?;
        let policy = self.signature_policy()?;
        let caution = match policy.unsigned {
            Unsigned::Allow => None,
            _ => policy.admit(agent.name(), version, &found.signature_state(policy.trusted())?)?,
        };
        Ok((found, caution))
    }

    /// A version that is there, and not quarantined.
    pub(crate) fn unmarked(&self, agent: &AgentDir, version: &VersionName) -> Result<Current, StoreError> {
        let Some(found) = Current::open_in(agent, version)? else {
            return self.require_version(agent.name(), version);
        };
        if let Some(quarantine) = found.quarantine()? {
            return Err(StoreError::Quarantined {
                agent: agent.name().clone(),
                version: version.clone(),
                reason: quarantine.reason,
            });
        }
        Ok(found)
    }

    /// What was current before the version that is.
    fn before_current(&self, agent: &AgentDir) -> Result<VersionName, StoreError> {
        let now = agent.current_to_move()?.map(|pointer| pointer.version);
        let line = line_of_current(&history::read(agent)?);
        let before = line.into_iter().rev().flatten().find(|version| Some(version) != now.as_ref());
        let others = || -> Result<Vec<String>, StoreError> {
            let versions = self.versions(agent.name())?;
            Ok(versions
                .into_iter()
                .filter(|version| Some(version) != now.as_ref())
                .map(String::from)
                .collect())
        };
        let no_way_back = |what: String| -> Result<VersionName, StoreError> {
            Err(StoreError::NoWayBack { agent: agent.name().clone(), what, versions: others()? })
        };
        match before {
            None => no_way_back("the history names no version that was current before".to_owned()),
            Some(version) if Current::open_in(agent, &version)?.is_none() => {
                no_way_back(format!("{version} was current before, and is retired"))
            }
            Some(version) => Ok(version),
        }
    }

    fn move_to(
        &self,
        agent: &AgentDir,
        pointer: &PointerName,
        target: Option<&Current>,
        action: Action,
        options: &MoveOptions,
    ) -> Result<Moved, StoreError> {
        let from = match pointer {
            PointerName::Current => agent.current_to_move()?,
            // One that leads nowhere is what a move mends.
            PointerName::Ref(name) => agent.read_ref(name).ok().flatten(),
            PointerName::Version(_) => None,
        };
        let to = target.map(Current::pointer);
        let version = |pointer: &Pointer| pointer.version.clone();
        let moved = Moved {
            agent: agent.name().clone(),
            pointer: pointer.clone(),
            from: from.as_ref().map(version),
            to: to.as_ref().map(version),
            checksum: target.map(Current::checksum),
            caution: None,
        };
        if to.is_some() && from == to {
            // Whoever moved it may have died before it was made to last.
            let record = options.record(action, pointer.clone(), moved.from.clone(), moved.to.clone());
            return confirm(agent, &record).map(|()| moved);
        }
        self.progress().advance(0).map_err(|e| StoreError::io("move", agent.path(), e))?;
        let mut record = options.record(action, pointer.clone(), moved.from.clone(), moved.to.clone());
        record.checksum = moved.checksum;
        if let Err(e) = intend_and_move(agent, &record, to.as_ref()) {
            // The next writer would do the same.
            let _ = history::repair(agent);
            return Err(e);
        }
        confirm(agent, &record)?;
        Ok(moved)
    }
}

/// Step 6 and the rename of step 7: the intent, then the pointer. After an error the pointer is where it was,
/// and the intent may be in the history.
pub(crate) fn intend_and_move(
    agent: &AgentDir,
    record: &Record,
    to: Option<&Pointer>,
) -> Result<(), StoreError> {
    if let PointerName::Ref(_) = record.pointer {
        let path = agent.path().join(REFS_DIR);
        durable::make_dir(agent.handle(), REFS_DIR)
            .and_then(|made| if made { durable::sync(agent.handle()) } else { Ok(()) })
            .map_err(|e| StoreError::io("make the directory", &path, e))?;
    }
    history::append(agent, record)?;
    let path = agent.path().join(record.pointer.to_string());
    let failed = |e| StoreError::io("move", &path, e);
    let refs = match &record.pointer {
        PointerName::Ref(_) => agent.refs()?,
        _ => None,
    };
    let (handle, name, up) = match (&record.pointer, &refs) {
        (PointerName::Ref(name), Some(refs)) => (refs.as_fd(), name.as_str(), "../"),
        _ => (agent.handle(), CURRENT_LINK, ""),
    };
    let Some(to) = to else {
        return durable::remove_file(handle, name).map_err(failed);
    };
    let target = match to.place {
        Place::Versions => format!("{up}{VERSIONS_DIR}/{}", to.version),
        Place::Legacy => format!("{up}{}", to.version),
    };
    let temporary = format!("{TEMP_LINK_PREFIX}{}", std::process::id());
    durable::make_link(&target, handle, &temporary)
        .and_then(|()| {
            durable::rename_over(handle, &temporary, name).inspect_err(|_| {
                let _ = durable::remove_file(handle, &temporary);
            })
        })
        .map_err(failed)
}

/// The end of step 7. The pointer has moved and readers may follow it already: nothing is taken back.
pub(crate) fn confirm(agent: &AgentDir, record: &Record) -> Result<(), StoreError> {
    let synced = match record.pointer {
        PointerName::Ref(_) => agent.refs()?.map_or(Ok(()), |refs| durable::sync_link(refs.as_fd())),
        _ => durable::sync_link(agent.handle()),
    };
    synced.map_err(|source| StoreError::NotConfirmed {
        agent: agent.name().clone(),
        pointer: record.pointer.clone(),
        to: record.to.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string),
        source,
    })
}

/// The names in `refs/`, sorted; what is no ref's name is not one.
pub(crate) fn ref_names(agent: &AgentDir) -> Result<Vec<RefName>, StoreError> {
    let Some(refs) = agent.refs()? else { return Ok(Vec::new()) };
    let path = agent.path().join(REFS_DIR);
    let entries = dir::sorted_entries(refs.as_fd()).map_err(|e| StoreError::io("list", &path, e))?;
    let links = entries.into_iter().filter(|entry| entry.kind == FileType::Symlink);
    Ok(links.filter_map(|entry| RefName::try_from(entry.name.into_string().ok()?).ok()).collect())
}

fn ref_not_found(agent: &AgentDir, name: &RefName) -> StoreError {
    let there = ref_names(agent).unwrap_or_default();
    StoreError::RefNotFound {
        agent: agent.name().clone(),
        name: name.clone(),
        near: near_names(name.as_str(), there.iter().map(RefName::as_str)),
    }
}

fn has_ref(agent: &AgentDir, name: &RefName) -> Result<bool, StoreError> {
    let Some(refs) = agent.refs()? else { return Ok(false) };
    dir::exists(refs.as_fd(), name.as_str()).map_err(|e| StoreError::io("look at", &ref_path(agent, name), e))
}

fn ref_path(agent: &AgentDir, name: &RefName) -> PathBuf {
    agent.path().join(REFS_DIR).join(name.as_str())
}

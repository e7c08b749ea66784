//! Mending a damaged version from sound bytes elsewhere in the store, or marking it as damaged.
//!
//! A file that was altered or lost is replaced by a copy of an identical one, hashed while it is copied, under
//! a rename: a reader finds the old bytes or the right ones. A hard link shares its rot, so the bytes always
//! come from another inode.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use serde::Serialize;

use crate::digest::{Digest, read_chunks};
use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::history::{self, Action, MoveOptions, PointerName};
use crate::layout::{AgentDir, TRASH_DIR};
use crate::list::AgentEntry;
use crate::manifest::Generation;
use crate::names::{AgentName, PayloadPath, VersionName};
use crate::processes::FileId;
use crate::quarantine;
use crate::read::Current;
use crate::sha256::Hasher;
use crate::store::ModelStore;
use crate::verify::{Finding, Report};

/// What [`ModelStore::repair`] may do.
#[derive(Clone, Debug, Default)]
pub struct RepairOptions {
    /// Whether files and links that the manifest does not list are removed; otherwise they stay and are
    /// reported.
    pub remove_unlisted: bool,
    /// Who, and why, for the history.
    pub record: MoveOptions,
}

/// What was mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// Which file, link or directory; `.` is the version itself.
    pub path: String,
    /// How.
    #[serde(flatten)]
    pub how: Mended,
}

/// How something was mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "mended", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Mended {
    /// A file was replaced by a copy of an identical one.
    Bytes {
        /// Of which agent's.
        from_agent: AgentName,
        /// Of which version.
        from_version: VersionName,
        /// Where it lies there.
        from_path: PayloadPath,
    },
    /// A link was made anew.
    Link,
    /// Its mode was set right.
    Mode,
    /// Its group was set right.
    Group,
    /// It was removed, since the manifest does not list it.
    Removed,
}

/// What a repair found and did.
#[derive(Clone, Debug, Serialize)]
pub struct Repaired {
    /// What was wrong.
    pub before: Report,
    /// What still is. The same as `before` where nothing was mended.
    pub after: Report,
    /// What was mended.
    pub repairs: Vec<Repair>,
    /// What could not be, and why.
    pub problems: Vec<String>,
    /// Whether the version is quarantined now.
    pub quarantined: bool,
    /// Whether it was, and is no more.
    pub released: bool,
}

impl ModelStore {
    /// Verifies a version and mends what can be mended; what stays damaged is quarantined, what is sound again
    /// is released.
    ///
    /// The agent is locked only while files are replaced, not while they are read. A legacy version has no
    /// digests of its files and a checksum that a copy may change, so it is neither mended nor quarantined.
    pub fn repair(
        &self,
        agent: &AgentName,
        version: &VersionName,
        options: &RepairOptions,
    ) -> Result<Repaired, StoreError> {
        let found = self.require_version(agent, version)?;
        let before = self.verify(agent, version)?;
        let mut mender =
            Mender { store: self, found: &found, options, repairs: Vec::new(), problems: Vec::new() };
        if !before.is_ok() && found.manifest().generation() == Generation::Current {
            self.with_lock(found.agent(), |agent| mender.mend(agent, &before.findings))?;
        }
        let Mender { repairs, problems, .. } = mender;
        let after = if repairs.is_empty() { before.clone() } else { self.verify(agent, version)? };
        let (quarantined, released) = self.judge(&found, &after, options)?;
        Ok(Repaired { before, after, repairs, problems, quarantined, released })
    }

    /// Sets or lifts the quarantine by what a verification found: whether there is one now, and whether one
    /// was lifted.
    fn judge(
        &self,
        found: &Current,
        after: &Report,
        options: &RepairOptions,
    ) -> Result<(bool, bool), StoreError> {
        let damage: Vec<String> = after
            .findings
            .iter()
            .filter(|finding| is_damage(finding, found))
            .map(ToString::to_string)
            .collect();
        let marked = !matches!(self.quarantine(found.agent(), found.version()), Ok(None));
        match (damage.first(), marked) {
            (Some(first), false) if !after.legacy => {
                let more = damage.len() - 1;
                let reason = if more == 0 { first.clone() } else { format!("{first}, and {more} more") };
                self.with_lock(found.agent(), |agent| {
                    quarantine::set(agent, found.version(), reason, &options.record)
                })?;
                Ok((true, false))
            }
            (None, true) => {
                let lift = |agent: &AgentDir| quarantine::lift(agent, found.version(), &options.record);
                self.with_lock(found.agent(), lift).map(|released| (false, released))
            }
            (_, marked) => Ok((marked, false)),
        }
    }
}

/// Whether a reader would get something else than was published. What lies beside the listed files, and
/// modes, are for an operator to look at.
fn is_damage(finding: &Finding, found: &Current) -> bool {
    if let Finding::Forbidden { problem } = finding {
        return is_published(problem.path(), found);
    }
    !matches!(
        finding,
        // Others may be able to read it.
        Finding::Unreadable { denied: true, .. } |
        Finding::Unlisted { .. } | Finding::UnlistedLink { .. } | Finding::WrongMode { .. }
            | Finding::WrongGroup { .. }
            // The listing of what is there differs because of one of those.
            | Finding::Checksum { .. }
    )
}

/// Whether something was published at a path.
fn is_published(path: &str, found: &Current) -> bool {
    let manifest = found.manifest();
    let is_file = PayloadPath::try_from(path).is_ok_and(|path| manifest.file(&path).is_some());
    is_file || manifest.links.iter().any(|link| link.path.as_str() == path)
}

/// The work on one version, under its agent's lock.
struct Mender<'a> {
    store: &'a ModelStore,
    found: &'a Current,
    options: &'a RepairOptions,
    repairs: Vec<Repair>,
    problems: Vec<String>,
}

/// A file with the bytes that are wanted.
struct Source {
    version: Current,
    path: PayloadPath,
}

impl Mender<'_> {
    fn mend(&mut self, agent: &AgentDir, findings: &[Finding]) -> Result<(), StoreError> {
        for finding in findings {
            self.store.progress().advance(0).map_err(|e| StoreError::io("repair", self.found.path(), e))?;
            let mended = match self.mend_one(agent, finding) {
                Ok(mended) => mended,
                Err(StoreError::Interrupted) => return Err(StoreError::Interrupted),
                Err(e) => {
                    self.problems.push(crate::human::with_causes(&e));
                    None
                }
            };
            self.repairs.extend(mended.map(|(path, how)| Repair { path, how }));
        }
        if self.repairs.is_empty() {
            return Ok(());
        }
        let version = self.found.version();
        let record = self.options.record.record(
            Action::Repair,
            PointerName::Version(version.clone()),
            Some(version.clone()),
            Some(version.clone()),
        );
        history::append(agent, &record)
    }

    fn mend_one(
        &mut self,
        agent: &AgentDir,
        finding: &Finding,
    ) -> Result<Option<(String, Mended)>, StoreError> {
        let mended = match finding {
            Finding::Missing { path } | Finding::Changed { path, .. } | Finding::Unreadable { path, .. } => {
                return self.replace(agent, path).map(|how| how.map(|how| (path.to_string(), how)));
            }
            Finding::LinkChanged { path } => (path.to_string(), self.relink(path)?),
            Finding::WrongMode { path, .. } => (path.clone(), self.set_mode(path)?),
            Finding::WrongGroup { path, .. } => (path.clone(), self.set_group(path)?),
            Finding::Unlisted { path } | Finding::UnlistedLink { path } if self.options.remove_unlisted => {
                (path.to_string(), self.remove(path)?)
            }
            Finding::Forbidden { problem } => return self.mend_forbidden(agent, problem.path()),
            _ => return Ok(None),
        };
        Ok(Some(mended))
    }

    /// What no version may contain is replaced where something else was published there.
    fn mend_forbidden(
        &mut self,
        agent: &AgentDir,
        path: &str,
    ) -> Result<Option<(String, Mended)>, StoreError> {
        let Ok(published) = PayloadPath::try_from(path) else { return Ok(None) };
        if !is_published(path, self.found) {
            let remove = self.options.remove_unlisted.then(|| self.remove(&published)).transpose()?;
            return Ok(remove.map(|how| (published.into(), how)));
        }
        let how = if self.found.manifest().links.iter().any(|link| link.path == published) {
            Some(self.relink(&published)?)
        } else {
            self.replace(agent, &published)?
        };
        Ok(how.map(|how| (published.into(), how)))
    }

    /// Replaces a file by a copy of an identical one. `None` where the store has none that is sound.
    fn replace(&mut self, agent: &AgentDir, path: &PayloadPath) -> Result<Option<Mended>, StoreError> {
        let Some(entry) = self.found.manifest().file(path).cloned() else { return Ok(None) };
        let damaged = dir::stat_payload(self.found.handle(), path.as_path()).ok().map(|s| FileId::of(&s));
        for Source { version, path: from_path } in self.sources(entry.sha256) {
            let is_other = |stat| Some(FileId::of(&stat)) != damaged;
            if !dir::stat_payload(version.handle(), from_path.as_path()).is_ok_and(is_other) {
                continue;
            }
            if self.copy_over(agent, &version, &from_path, path, entry.sha256)? {
                return Ok(Some(Mended::Bytes {
                    from_agent: version.agent().clone(),
                    from_version: version.version().clone(),
                    from_path,
                }));
            }
        }
        self.problems.push(format!(
            "{path}: no other version holds a sound copy of it ({}); restore it from a backup",
            entry.sha256
        ));
        Ok(None)
    }

    /// Every file that is listed with a digest anywhere in the store, this agent's first. Versions that cannot
    /// be read offer nothing.
    fn sources(&self, wanted: Digest) -> Vec<Source> {
        let agents = self.store.agents().unwrap_or_default();
        let mut names: Vec<AgentName> = agents
            .into_iter()
            .filter_map(|entry| match entry {
                AgentEntry::Agent(name) => Some(name),
                AgentEntry::Alias { .. } => None,
            })
            .collect();
        names.sort_by_key(|name| name != self.found.agent());
        let mut sources = Vec::new();
        for agent in names {
            for version in self.store.versions(&agent).unwrap_or_default() {
                let Ok(Some(version)) = self.store.get_version(&agent, &version) else { continue };
                let same = version.manifest().files.iter().filter(|entry| entry.sha256 == wanted);
                sources
                    .extend(same.map(|entry| Source { version: version.clone(), path: entry.path.clone() }));
            }
        }
        sources
    }

    /// Copies a file beside the agent's versions and renames it into place; `false` where its bytes are not
    /// the right ones either.
    fn copy_over(
        &self,
        agent: &AgentDir,
        from: &Current,
        from_path: &PayloadPath,
        path: &PayloadPath,
        wanted: Digest,
    ) -> Result<bool, StoreError> {
        let target = self.found.path().join(path.as_path());
        let failed = |e| StoreError::io("replace", &target, e);
        let Ok(mut source) = dir::open_payload(from.handle(), from_path.as_path()) else { return Ok(false) };
        durable::make_dir(agent.handle(), TRASH_DIR).map_err(failed)?;
        let trash = dir::open(agent.handle(), TRASH_DIR).map_err(failed)?;
        let temporary = format!("{}-{}", self.found.version(), std::process::id());
        durable::remove_file(trash.as_fd(), &temporary).map_err(failed)?;
        let mut copy = || -> io::Result<bool> {
            let mut file: File = durable::create_file(trash.as_fd(), &temporary)?;
            let mut hasher = Hasher::default();
            read_chunks(&mut source, self.store.progress(), |chunk| {
                hasher.update(chunk);
                file.write_all(chunk)
            })?;
            if hasher.finish() != wanted {
                return Ok(false);
            }
            durable::seal_like(file.as_fd(), source.as_fd())?;
            durable::sync(file.as_fd())?;
            let parent = self.make_parent(path)?;
            durable::rename_over_across(trash.as_fd(), &temporary, parent.as_fd(), path.file_name())?;
            durable::sync_link(parent.as_fd())?;
            Ok(true)
        };
        let copied = copy();
        if !matches!(copied, Ok(true)) {
            let _ = durable::remove_file(trash.as_fd(), &temporary);
        }
        copied.map_err(failed)
    }

    /// Opens the directory of a payload file, making those that are gone.
    fn make_parent(&self, path: &PayloadPath) -> io::Result<OwnedFd> {
        let mut parent = dir::open(self.found.handle(), ".")?;
        for component in path.parents() {
            if durable::make_dir(parent.as_fd(), component)? {
                durable::sync(parent.as_fd())?;
            }
            parent = dir::open(parent.as_fd(), component)?;
        }
        Ok(parent)
    }

    fn relink(&self, path: &PayloadPath) -> Result<Mended, StoreError> {
        let failed = |e| StoreError::io("make the link", &self.shown(path.as_str()), e);
        let published = self.found.manifest().links.iter().find(|link| link.path == *path);
        let Some(published) = published else { return Ok(Mended::Link) };
        let parent = self.make_parent(path).map_err(failed)?;
        let make = || {
            durable::remove_file(parent.as_fd(), path.file_name())?;
            durable::make_link(&published.target, parent.as_fd(), path.file_name())?;
            durable::sync_link(parent.as_fd())
        };
        make().map_err(failed).map(|()| Mended::Link)
    }

    fn set_mode(&self, path: &str) -> Result<Mended, StoreError> {
        let failed = |e| StoreError::io("set the mode of", &self.shown(path), e);
        let (opened, is_dir) = self.open_any(path).map_err(failed)?;
        let set = if is_dir { durable::open_up_dir(opened.as_fd()) } else { durable::seal(opened.as_fd()) };
        set.and_then(|()| durable::sync(opened.as_fd())).map_err(failed).map(|()| Mended::Mode)
    }

    fn set_group(&self, path: &str) -> Result<Mended, StoreError> {
        let failed = |e| StoreError::io("set the group of", &self.shown(path), e);
        let set = || -> io::Result<()> {
            let group = rustix::fs::stat(self.store.root())?.st_gid;
            let (opened, _) = self.open_any(path)?;
            durable::set_group(opened.as_fd(), group)?;
            durable::sync(opened.as_fd())
        };
        set().map_err(failed).map(|()| Mended::Group)
    }

    fn remove(&self, path: &PayloadPath) -> Result<Mended, StoreError> {
        let failed = |e| StoreError::io("remove", &self.shown(path.as_str()), e);
        let remove = || {
            let parent = self.make_parent(path)?;
            durable::remove_file(parent.as_fd(), path.file_name())?;
            durable::sync(parent.as_fd())
        };
        remove().map_err(failed).map(|()| Mended::Removed)
    }

    /// Opens a file or directory of the version by a path from a finding, and says whether it is a directory.
    fn open_any(&self, path: &str) -> io::Result<(OwnedFd, bool)> {
        if path == "." {
            return Ok((dir::open(self.found.handle(), ".")?, true));
        }
        let path = std::path::Path::new(path);
        match dir::open_payload_dir(self.found.handle(), path) {
            Ok(dir) => Ok((dir, true)),
            Err(_) => Ok((dir::open_payload(self.found.handle(), path)?.into(), false)),
        }
    }

    fn shown(&self, path: &str) -> PathBuf {
        self.found.path().join(path)
    }
}

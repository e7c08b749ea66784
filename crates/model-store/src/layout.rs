//! Where things are in a store, and how an agent's directory and its pointers are found.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::dir::{self, LinkText};
use crate::durable;
use crate::error::StoreError;
use crate::names::{AgentName, RefName, VersionName};

pub(crate) const VERSIONS_DIR: &str = "versions";
pub(crate) const CURRENT_LINK: &str = "current";
pub(crate) const REFS_DIR: &str = "refs";
pub(crate) const HISTORY_FILE: &str = "history.jsonl";
pub(crate) const LOCK_FILE: &str = ".lock";
pub(crate) const TRASH_DIR: &str = ".trash";
/// What was found damaged beyond repair: `<version>.json`.
pub(crate) const QUARANTINE_DIR: &str = ".quarantine";
/// When each version was verified last: `<version>.json`.
pub(crate) const VERIFIED_DIR: &str = ".verified";
/// Who signed a version: `<version>.json`.
pub(crate) const SIGNATURES_DIR: &str = ".signatures";
/// Bytes that come from another store: `<sha256>`.
pub(crate) const INCOMING_DIR: &str = ".incoming";
/// What is known of other stores: `<remote>.json`.
pub(crate) const REMOTES_DIR: &str = ".remotes";
/// How the link begins that is about to be renamed over `current`.
pub(crate) const TEMP_LINK_PREFIX: &str = ".current-";
/// An alias of an alias is followed no further than this.
const MAX_ALIAS_HOPS: usize = 8;

/// The open directory of an agent, under its canonical name.
#[derive(Debug)]
pub(crate) struct AgentDir {
    name: AgentName,
    path: PathBuf,
    handle: OwnedFd,
}

/// Where a pointer leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pointer {
    pub(crate) version: VersionName,
    pub(crate) place: Place,
}

/// Where a version lies within its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `<agent>/versions/<version>`.
    Versions,
    /// `<agent>/<version>`, as the old toy script made it.
    Legacy,
}

impl AgentDir {
    /// Opens an agent for reading, following a legacy alias; `None` where there is none.
    pub(crate) fn open(root: &Path, agent: &AgentName) -> Result<Option<Self>, StoreError> {
        let root_handle = open_root(root)?;
        let mut name = agent.clone();
        for _ in 0..=MAX_ALIAS_HOPS {
            match alias_target(root_handle.as_fd(), root, &name)? {
                Some(target) => name = target,
                None => return Self::open_canonical(root_handle.as_fd(), root, name),
            }
        }
        Err(StoreError::corrupt(&root.join(agent.as_str()), "this alias leads in a circle; remove it"))
    }

    /// Opens an agent for writing; a legacy alias is refused.
    pub(crate) fn open_to_write(root: &Path, agent: &AgentName) -> Result<Option<Self>, StoreError> {
        let root_handle = open_root(root)?;
        if alias_target(root_handle.as_fd(), root, agent)?.is_some() {
            let target = Self::open(root, agent)?.map_or_else(|| agent.clone(), |canonical| canonical.name);
            return Err(StoreError::AliasIsReadOnly { alias: agent.clone(), target });
        }
        Self::open_canonical(root_handle.as_fd(), root, agent.clone())
    }

    /// As [`open_to_write`](Self::open_to_write), making the directory where it is missing; says whether it
    /// did.
    pub(crate) fn open_or_make(root: &Path, agent: &AgentName) -> Result<Option<(Self, bool)>, StoreError> {
        if let Some(there) = Self::open_to_write(root, agent)? {
            // Whoever made it may have died before it got its mode.
            durable::repair_dir(there.handle())
                .map_err(|e| StoreError::io("set the mode of", there.path(), e))?;
            return Ok(Some((there, false)));
        }
        let root_handle = open_root(root)?;
        let made = durable::make_dir(root_handle.as_fd(), agent.as_str())
            .map_err(|e| StoreError::io("make the directory", &root.join(agent.as_str()), e))?;
        Ok(Self::open_to_write(root, agent)?.map(|there| (there, made)))
    }

    fn open_canonical(
        root_handle: BorrowedFd<'_>,
        root: &Path,
        name: AgentName,
    ) -> Result<Option<Self>, StoreError> {
        let path = root.join(name.as_str());
        match dir::open_if_there(root_handle, name.as_str()) {
            Ok(handle) => Ok(handle.map(|handle| Self { name, path, handle })),
            Err(e) => Err(StoreError::io("open", &path, e)),
        }
    }

    pub(crate) fn name(&self) -> &AgentName {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// The open `versions/`; `None` in a legacy agent that has none.
    pub(crate) fn versions(&self) -> Result<Option<OwnedFd>, StoreError> {
        dir::open_if_there(self.handle(), VERSIONS_DIR)
            .map_err(|e| StoreError::io("open", &self.path.join(VERSIONS_DIR), e))
    }

    /// The path of a version.
    pub(crate) fn version_path(&self, version: &VersionName, place: Place) -> PathBuf {
        match place {
            Place::Versions => self.path.join(VERSIONS_DIR).join(version.as_str()),
            Place::Legacy => self.path.join(version.as_str()),
        }
    }

    /// Opens a version's directory; `None` where there is none.
    pub(crate) fn open_version(
        &self,
        version: &VersionName,
        place: Place,
    ) -> Result<Option<OwnedFd>, StoreError> {
        let opened = match place {
            Place::Legacy => dir::open_if_there(self.handle(), version.as_str()),
            Place::Versions => match self.versions()? {
                Some(versions) => dir::open_if_there(versions.as_fd(), version.as_str()),
                None => Ok(None),
            },
        };
        opened.map_err(|e| StoreError::io("open", &self.version_path(version, place), e))
    }

    /// Reads `current`, once.
    pub(crate) fn current(&self) -> Result<Option<Pointer>, StoreError> {
        let path = self.path.join(CURRENT_LINK);
        match dir::read_link(self.handle(), c"current") {
            Ok(LinkText::Missing) => Ok(None),
            Ok(LinkText::NotALink) => {
                Err(StoreError::corrupt(&path, "is not a symbolic link; move it away and publish again"))
            }
            Ok(LinkText::To(target)) => self.interpret(&target, &path).map(Some),
            Err(e) => Err(unreadable(&path, e)),
        }
    }

    /// As [`current`](Self::current), for whoever is about to move it: a link that leads to no version of this
    /// agent is none, because a move mends it. What is no link cannot be moved.
    pub(crate) fn current_to_move(&self) -> Result<Option<Pointer>, StoreError> {
        match self.current() {
            Err(StoreError::Corrupt { .. })
                if !matches!(dir::read_link(self.handle(), c"current"), Ok(LinkText::NotALink)) =>
            {
                Ok(None)
            }
            other => other,
        }
    }

    /// The open `refs/`; `None` where the agent has none.
    pub(crate) fn refs(&self) -> Result<Option<OwnedFd>, StoreError> {
        dir::open_if_there(self.handle(), REFS_DIR)
            .map_err(|e| StoreError::io("open", &self.path.join(REFS_DIR), e))
    }

    /// Reads a ref, once; `None` where there is none.
    pub(crate) fn read_ref(&self, name: &RefName) -> Result<Option<Pointer>, StoreError> {
        let Some(refs) = self.refs()? else { return Ok(None) };
        let path = self.path.join(REFS_DIR).join(name.as_str());
        match dir::read_link(refs.as_fd(), &c_name(name.as_str())) {
            Ok(LinkText::Missing) => Ok(None),
            Ok(LinkText::NotALink) => Err(StoreError::corrupt(&path, "is not a symbolic link; move it away")),
            // A ref lies one directory deeper than `current`.
            Ok(LinkText::To(target)) => {
                let absolute = target.starts_with('/').then_some(target.as_str());
                match target.strip_prefix("../").or(absolute) {
                    Some(target) => self.interpret(target, &path).map(Some),
                    None => Err(outside(&path, &target)),
                }
            }
            Err(e) => Err(unreadable(&path, e)),
        }
    }

    /// A pointer's target is `versions/<v>`, or what the old script made: `<v>`, or either of them as an
    /// absolute path that leads to this very directory.
    fn interpret(&self, target: &str, link: &Path) -> Result<Pointer, StoreError> {
        let bad = |why| misplaced(link, target, why);
        let path = Path::new(target);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let version = VersionName::try_from(name).map_err(|_| bad("which is not a version of this agent"))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let place = if parent.is_absolute() {
            let parent = dir::open_path(parent).map_err(|_| bad("which is not there"))?;
            let is = |handle: BorrowedFd<'_>| dir::same(parent.as_fd(), handle).unwrap_or(false);
            if is(self.handle()) {
                Place::Legacy
            } else if self.versions()?.is_some_and(|versions| is(versions.as_fd())) {
                Place::Versions
            } else {
                return Err(outside(link, target));
            }
        } else {
            match parent.to_str() {
                Some("" | ".") => Place::Legacy,
                Some(VERSIONS_DIR | "./versions") => Place::Versions,
                _ => return Err(outside(link, target)),
            }
        };
        Ok(Pointer { version, place })
    }

    /// Every published version and where it lies, in the order of their names.
    pub(crate) fn published(&self) -> Result<Vec<Pointer>, StoreError> {
        let mut found = names_in(self.handle(), &self.path, Place::Legacy)?;
        if let Some(versions) = self.versions()? {
            found.extend(names_in(versions.as_fd(), &self.path.join(VERSIONS_DIR), Place::Versions)?);
        }
        found.sort_by(|a, b| a.version.cmp(&b.version));
        Ok(found)
    }
}

/// A pointer that leads to no version of its agent.
fn misplaced(link: &Path, target: &str, why: &str) -> StoreError {
    let command = if link.ends_with(CURRENT_LINK) { "activate" } else { "tag" };
    let what = format!("points at {target:?}, {why}; point it at a version with `model-store {command}`");
    StoreError::corrupt(link, what)
}

/// A link that is not text leads to no version, as one that leads out; anything else is the system's.
fn unreadable(link: &Path, e: io::Error) -> StoreError {
    match e.kind() {
        io::ErrorKind::InvalidData => misplaced(link, "?", "which is not UTF-8"),
        _ => StoreError::io("read", link, e),
    }
}

fn outside(link: &Path, target: &str) -> StoreError {
    misplaced(link, target, "which is outside this agent")
}

fn names_in(handle: BorrowedFd<'_>, path: &Path, place: Place) -> Result<Vec<Pointer>, StoreError> {
    let entries = dir::entries(handle).map_err(|e| StoreError::io("list", path, e))?;
    let directories = entries.into_iter().filter(|entry| entry.kind == rustix::fs::FileType::Directory);
    let names = directories.filter_map(|entry| entry.name.into_string().ok());
    Ok(names
        .filter_map(|name| VersionName::try_from(name).ok())
        .map(|version| Pointer { version, place })
        .collect())
}

/// Opens the root.
pub(crate) fn open_root(root: &Path) -> Result<OwnedFd, StoreError> {
    dir::open_path(root).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            StoreError::RootNotFound { root: root.to_owned() }
        }
        _ => StoreError::io("open", root, e),
    })
}

/// What an alias leads to; `None` where the name is no symbolic link.
pub(crate) fn alias_target(
    root_handle: BorrowedFd<'_>,
    root: &Path,
    alias: &AgentName,
) -> Result<Option<AgentName>, StoreError> {
    let path = root.join(alias.as_str());
    let name = c_name(alias.as_str());
    let target = match dir::read_link(root_handle, &name) {
        Ok(LinkText::To(target)) => target,
        Ok(LinkText::Missing | LinkText::NotALink) => return Ok(None),
        Err(e) => return Err(StoreError::io("read", &path, e)),
    };
    let outside = || {
        StoreError::corrupt(&path, format!("is a link to {target:?}, which is not an agent of this store"))
    };
    let to = Path::new(&target);
    let beside = match to.parent() {
        None => false,
        Some(parent) if parent.is_absolute() => {
            dir::open_path(parent).and_then(|parent| dir::same(parent.as_fd(), root_handle)).unwrap_or(false)
        }
        Some(parent) => matches!(parent.to_str(), Some("" | ".")),
    };
    let name = to.file_name().and_then(|name| name.to_str()).filter(|_| beside).ok_or_else(outside)?;
    AgentName::try_from(name).map(Some).map_err(|_| outside())
}

/// A validated name holds no NUL, so this never loses anything.
pub(crate) fn c_name(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}

/// The part of a raw name after a prefix, where it has that.
pub(crate) fn has_prefix(name: &CStr, prefix: &str) -> bool {
    name.to_bytes().starts_with(prefix.as_bytes())
}

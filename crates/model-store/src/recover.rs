//! Clearing what dead writers left. Runs at the start of every mutation, under the agent's lock.
//!
//! Anything that cannot be cleared is left for the next time: one stubborn leftover must not stop an agent's
//! publishing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::FileType;

use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::history;
use crate::incoming;
use crate::layout::{
    AgentDir, INCOMING_DIR, Place, QUARANTINE_DIR, REFS_DIR, REMOTES_DIR, SIGNATURES_DIR, TEMP_LINK_PREFIX,
    TRASH_DIR, VERIFIED_DIR, VERSIONS_DIR, has_prefix,
};
use crate::lock::{AgentLock, Flock};
use crate::names::{STAGING_SUFFIX, VersionName};
use crate::notes;

/// What could not be cleared, and why.
pub(crate) type Stubborn = Vec<(PathBuf, io::Error)>;

/// Clears the leftovers of an agent whose lock is held, and makes its history true.
pub(crate) fn clear_leftovers(agent: &AgentDir, _lock: &AgentLock) -> Result<(), StoreError> {
    agent.versions()?;
    let _ = clear(agent);
    history::repair(agent)
}

/// Clears the leftovers of an agent whose lock is held. Only its holder makes temporary links and copies.
pub(crate) fn clear(agent: &AgentDir) -> Stubborn {
    let mut cleaner = Cleaner { agent, stubborn: Vec::new() };
    cleaner.in_dir(VERSIONS_DIR, |cleaner, versions, entry| {
        if entry.name.to_bytes().ends_with(STAGING_SUFFIX.as_bytes()) {
            cleaner.remove_dead(VERSIONS_DIR, versions, entry);
        }
    });
    cleaner.in_dir(TRASH_DIR, |cleaner, trash, entry| match entry.kind {
        FileType::RegularFile => cleaner.remove_file(TRASH_DIR, trash, entry),
        _ => cleaner.remove_dead(TRASH_DIR, trash, entry),
    });
    // After the stagings: a file that only a dead one had a name of is gone on with by the next download.
    cleaner.in_dir(INCOMING_DIR, |cleaner, incoming, entry| {
        if incoming::is_abandoned(incoming, entry) {
            cleaner.remove_file(INCOMING_DIR, incoming, entry);
        }
    });
    if let Ok(Some(remotes)) = dir::open_if_there(agent.handle(), REMOTES_DIR) {
        notes::remove_unfinished(remotes.as_fd());
    }
    for place in [".", REFS_DIR] {
        cleaner.in_dir(place, |cleaner, links, entry| {
            if entry.kind == FileType::Symlink && has_prefix(&entry.name, TEMP_LINK_PREFIX) {
                cleaner.remove_file(place, links, entry);
            }
        });
    }
    for place in [QUARANTINE_DIR, SIGNATURES_DIR, VERIFIED_DIR] {
        if let Ok(Some(notes)) = dir::open_if_there(agent.handle(), place) {
            notes::remove_unfinished(notes.as_fd());
            for orphan in orphans(agent, notes.as_fd()) {
                cleaner.note(place, &orphan, durable::remove_file(notes.as_fd(), &orphan));
            }
        }
    }
    cleaner.stubborn
}

struct Cleaner<'a> {
    agent: &'a AgentDir,
    stubborn: Stubborn,
}

impl Cleaner<'_> {
    fn in_dir(&mut self, place: &str, mut clear: impl FnMut(&mut Self, BorrowedFd<'_>, &dir::Entry)) {
        let Ok(Some(opened)) = dir::open_if_there(self.agent.handle(), place) else { return };
        for entry in dir::entries(opened.as_fd()).unwrap_or_default() {
            clear(self, opened.as_fd(), &entry);
        }
    }

    /// Removes a directory that nobody has a lock on: no writer stages there, no reader leases it.
    fn remove_dead(&mut self, place: &str, parent: BorrowedFd<'_>, entry: &dir::Entry) {
        if entry.kind != FileType::Directory {
            return;
        }
        let Ok(opened) = dir::open_cstr(parent, &entry.name) else { return };
        if let Ok(Some(_alone)) = Flock::exclusive(opened) {
            let removed = durable::remove_tree(parent, &entry.name);
            self.note(place, &entry.name.to_string_lossy(), removed);
        }
    }

    fn remove_file(&mut self, place: &str, parent: BorrowedFd<'_>, entry: &dir::Entry) {
        let name = entry.name.to_string_lossy();
        let removed = durable::remove_file(parent, &name);
        self.note(place, &name, removed);
    }

    fn note(&mut self, place: &str, name: &str, removed: io::Result<()>) {
        if let Err(e) = removed {
            let dir = if place == "." { self.agent.path().to_owned() } else { self.agent.path().join(place) };
            self.stubborn.push((dir.join(name), e));
        }
    }
}

/// The notes about versions that are gone: who retired them died before he took the note away.
pub(crate) fn orphans(agent: &AgentDir, notes: BorrowedFd<'_>) -> Vec<String> {
    let files = dir::entries(notes).unwrap_or_default().into_iter();
    let names = files
        .filter(|entry| entry.kind == FileType::RegularFile)
        .filter_map(|entry| entry.name.into_string().ok());
    let is_gone = |version: &VersionName, place| matches!(agent.open_version(version, place), Ok(None));
    names
        .filter(|name| {
            let version = name.strip_suffix(".json").and_then(|name| VersionName::try_from(name).ok());
            version.is_some_and(|it| is_gone(&it, Place::Versions) && is_gone(&it, Place::Legacy))
        })
        .collect()
}

//! Clearing what dead writers left. Runs at the start of every mutation, under the agent's lock.
//!
//! Anything that cannot be cleared is left for the next time: one stubborn leftover must not stop an agent's
//! publishing.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;

use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::history;
use crate::layout::{AgentDir, Place, QUARANTINE_DIR, TEMP_LINK_PREFIX, TRASH_DIR, VERIFIED_DIR, has_prefix};
use crate::lock::{AgentLock, try_flock};
use crate::names::{STAGING_SUFFIX, VersionName};
use crate::notes;

/// Clears the leftovers of an agent whose lock is held.
pub(crate) fn clear_leftovers(agent: &AgentDir, _lock: &AgentLock) -> Result<(), StoreError> {
    if let Some(versions) = agent.versions()? {
        remove_dead(versions.as_fd(), |name| name.ends_with(STAGING_SUFFIX.as_bytes()));
    }
    if let Ok(Some(trash)) = dir::open_if_there(agent.handle(), TRASH_DIR) {
        remove_dead(trash.as_fd(), |_| true);
        remove_files(trash.as_fd());
    }
    // Only the lock's holder makes such links, and that is us.
    remove_temporary_links(agent.handle());
    if let Ok(Some(refs)) = agent.refs() {
        remove_temporary_links(refs.as_fd());
    }
    for notes in [QUARANTINE_DIR, VERIFIED_DIR] {
        if let Ok(Some(notes)) = dir::open_if_there(agent.handle(), notes) {
            notes::remove_unfinished(notes.as_fd());
            for orphan in orphans(agent, notes.as_fd()) {
                let _ = durable::remove_file(notes.as_fd(), &orphan);
            }
        }
    }
    history::repair(agent)
}

/// Removes copies for a repair that was not finished: only the lock's holder makes them.
fn remove_files(trash: BorrowedFd<'_>) {
    for entry in dir::entries(trash).unwrap_or_default() {
        if entry.kind == FileType::RegularFile {
            let _ = durable::remove_file(trash, &entry.name.to_string_lossy());
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

fn remove_temporary_links(parent: BorrowedFd<'_>) {
    for entry in dir::entries(parent).unwrap_or_default() {
        if entry.kind == FileType::Symlink && has_prefix(&entry.name, TEMP_LINK_PREFIX) {
            let _ = durable::remove_file(parent, &entry.name.to_string_lossy());
        }
    }
}

/// Removes directories that nobody has a lock on: no writer stages there, no reader leases it.
fn remove_dead(parent: BorrowedFd<'_>, wanted: impl Fn(&[u8]) -> bool) {
    for entry in dir::entries(parent).unwrap_or_default() {
        if entry.kind != FileType::Directory || !wanted(entry.name.to_bytes()) {
            continue;
        }
        let Ok(opened) = dir::open_cstr(parent, &entry.name) else {
            continue;
        };
        if matches!(try_flock(opened.as_fd()), Ok(true)) {
            let _ = durable::remove_tree(parent, &entry.name);
        }
    }
}

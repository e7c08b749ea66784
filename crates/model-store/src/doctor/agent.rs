//! One agent: its directories, pointers, history, and what dead writers left.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use jiff::Timestamp;
use rustix::fs::FileType;

use crate::dir;
use crate::durable;
use crate::history;
use crate::holder::now;
use crate::human::with_causes;
use crate::layout::{
    AgentDir, CURRENT_LINK, HISTORY_FILE, LOCK_FILE, Place, Pointer, QUARANTINE_DIR, REFS_DIR,
    SIGNATURES_DIR, TEMP_LINK_PREFIX, TRASH_DIR, VERIFIED_DIR, VERSIONS_DIR, has_prefix,
};
use crate::lock::is_flocked;
use crate::manifest::Generation;
use crate::names::{STAGING_SUFFIX, VersionName};
use crate::payload::Payload;
use crate::pointers::ref_names;
use crate::quarantine;
use crate::read::read_manifest;
use crate::store::ModelStore;
use crate::transfer::Links;
use crate::trust::Unsigned;

use super::{
    CLOCK, DIRECTORIES, HISTORY, LEFTOVERS, OLD_LAYOUT, POINTERS, QUARANTINE, READ_ONLY, SIGNATURES,
    VERSIONS, Ward, expected_group,
};

/// The directories of an agent that are the store's own.
pub(super) const OWN_DIRS: &[&str] =
    &[".", VERSIONS_DIR, REFS_DIR, TRASH_DIR, QUARANTINE_DIR, SIGNATURES_DIR, VERIFIED_DIR];
/// The files beside them.
pub(super) const OWN_FILES: &[&str] = &[LOCK_FILE, HISTORY_FILE];

pub(super) fn examine(store: &ModelStore, agent: &AgentDir, ward: &mut Ward) {
    directories(store, agent, ward);
    pointers(agent, ward);
    leftovers(agent, ward);
    history(agent, ward);
    versions(agent, ward);
    signature(store, agent, ward);
}

/// What is current is signed as the store's policy has it: somebody may have moved the link by hand, or set the
/// policy since.
fn signature(store: &ModelStore, agent: &AgentDir, ward: &mut Ward) {
    // A policy that cannot be read is said of the store, a broken `current` of the pointers.
    let Ok(policy) = store.signature_policy() else { return };
    let Ok(Some(current)) = store.get_current(agent.name()) else { return };
    if policy.unsigned == Unsigned::Allow {
        return;
    }
    let state = current.signature_state(policy.trusted());
    match state.and_then(|state| policy.admit(current.agent(), current.version(), &state)) {
        Ok(None) => {}
        Ok(Some(caution)) => {
            ward.warn(SIGNATURES, current.path(), caution);
        }
        Err(e) => {
            ward.error(SIGNATURES, current.path(), &with_causes(&e));
        }
    }
}

/// Modes, groups, and that all of it is one file system.
fn directories(store: &ModelStore, agent: &AgentDir, ward: &mut Ward) {
    let group = expected_group(store);
    let root_device = rustix::fs::stat(store.root()).map(|stat| stat.st_dev).ok();
    for name in OWN_DIRS {
        let path = if *name == "." { agent.path().to_owned() } else { agent.path().join(name) };
        let handle = match dir::open_if_there(agent.handle(), name) {
            Ok(Some(handle)) => handle,
            Ok(None) => continue,
            Err(e) => {
                ward.error(DIRECTORIES, &path, &format!("cannot be opened as a directory: {e}"));
                continue;
            }
        };
        let Ok(stat) = rustix::fs::fstat(&handle) else { continue };
        if !durable::is_dir_mode(stat.st_mode) {
            let what = format!("has mode {:o} and not 2775", stat.st_mode & 0o7777);
            ward.warn(DIRECTORIES, &path, what).fixable();
        }
        check_group(group, stat.st_gid, &path, ward);
        if root_device.is_some_and(|device| device != stat.st_dev) {
            let what = "lies on another file system than the store, so nothing here is atomic";
            ward.error(DIRECTORIES, &path, what).advise("move the agent onto the store's file system");
        }
    }
    for name in OWN_FILES {
        let Ok(file) = dir::open_file(agent.handle(), name) else { continue };
        let Ok(stat) = rustix::fs::fstat(&file) else { continue };
        let path = agent.path().join(name);
        if !durable::is_control_mode(stat.st_mode) {
            let what = format!("has mode {:o} and not 660", stat.st_mode & 0o7777);
            ward.warn(DIRECTORIES, &path, what).fixable();
        }
        check_group(group, stat.st_gid, &path, ward);
    }
}

fn check_group(expected: Option<u32>, found: u32, path: &Path, ward: &mut Ward) {
    if let Some(expected) = expected.filter(|expected| *expected != found) {
        let what = format!("belongs to group {found}, the store to {expected}");
        ward.warn(DIRECTORIES, path, what).fixable();
    }
}

/// Every pointer leads to a version of this agent.
pub(super) fn pointers(agent: &AgentDir, ward: &mut Ward) {
    let name = agent.name();
    let path = agent.path().join(CURRENT_LINK);
    let another = format!("`model-store rollback {name}` or `model-store activate {name} VERSION`");
    match agent.current() {
        Ok(Some(pointer)) => {
            if !is_there(agent, &pointer) {
                let what = format!("points at {}, which is not there", pointer.version);
                ward.error(POINTERS, &path, &what).advise(another);
            } else if dir::read_link(agent.handle(), c"current").is_ok_and(|text| text.is_absolute()) {
                let what = "is an absolute link, as old tools made it: the store cannot be moved or copied";
                ward.warn(OLD_LAYOUT, &path, what).fixable();
            }
        }
        Ok(None) => {
            if agent.published().is_ok_and(|published| !published.is_empty()) {
                let what = "is not there, although there are versions: readers find none";
                ward.note(POINTERS, &path, what).advise(format!("`model-store activate {name} VERSION`"));
            }
        }
        Err(e) => {
            ward.error(POINTERS, &path, &with_causes(&e)).advise(another);
        }
    }
    for reference in ref_names(agent).unwrap_or_default() {
        let path = agent.path().join(REFS_DIR).join(reference.as_str());
        let advice =
            format!("`model-store tag {name} {reference} VERSION` or `model-store untag {name} {reference}`");
        match agent.read_ref(&reference) {
            Ok(Some(pointer)) if !is_there(agent, &pointer) => {
                let what = format!("points at {}, which is not there", pointer.version);
                ward.error(POINTERS, &path, &what).advise(advice);
            }
            Ok(_) => {}
            Err(e) => {
                ward.error(POINTERS, &path, &with_causes(&e)).advise(advice);
            }
        }
    }
}

fn is_there(agent: &AgentDir, pointer: &Pointer) -> bool {
    matches!(agent.open_version(&pointer.version, pointer.place), Ok(Some(_)))
}

/// What dead writers left. What belongs to a living one is left out.
fn leftovers(agent: &AgentDir, ward: &mut Ward) {
    let dead_dirs = |name: &str, wanted: &dyn Fn(&[u8]) -> bool, what: &str, ward: &mut Ward| {
        let Ok(Some(parent)) = dir::open_if_there(agent.handle(), name) else { return };
        for entry in dir::sorted_entries(parent.as_fd()).unwrap_or_default() {
            if !wanted(entry.name.to_bytes()) {
                continue;
            }
            let dead = match entry.kind {
                FileType::Directory => dir::open_cstr(parent.as_fd(), &entry.name)
                    .is_ok_and(|opened| !is_flocked(opened.as_fd())),
                _ => true,
            };
            if dead {
                let path = agent.path().join(name).join(&*entry.name.to_string_lossy());
                ward.warn(LEFTOVERS, &path, what).fixable();
            }
        }
    };
    let is_staging = |name: &[u8]| name.ends_with(STAGING_SUFFIX.as_bytes());
    dead_dirs(VERSIONS_DIR, &is_staging, "is a staging whose writer died", ward);
    dead_dirs(TRASH_DIR, &|_| true, "was retired, and its remover died", ward);
    let temporary = |parent: BorrowedFd<'_>, path: &Path, prefix: &str, ward: &mut Ward| {
        for entry in dir::sorted_entries(parent).unwrap_or_default() {
            if has_prefix(&entry.name, prefix) {
                let path = path.join(&*entry.name.to_string_lossy());
                ward.warn(LEFTOVERS, &path, "was made for a move that was not finished").fixable();
            }
        }
    };
    temporary(agent.handle(), agent.path(), TEMP_LINK_PREFIX, ward);
    if let Ok(Some(refs)) = agent.refs() {
        temporary(refs.as_fd(), &agent.path().join(REFS_DIR), TEMP_LINK_PREFIX, ward);
    }
    for notes in [QUARANTINE_DIR, SIGNATURES_DIR, VERIFIED_DIR] {
        if let Ok(Some(handle)) = dir::open_if_there(agent.handle(), notes) {
            temporary(handle.as_fd(), &agent.path().join(notes), crate::notes::UNFINISHED_PREFIX, ward);
            for orphan in crate::recover::orphans(agent, handle.as_fd()) {
                let path = agent.path().join(notes).join(orphan);
                ward.warn(LEFTOVERS, &path, "is about a version that is gone").fixable();
            }
        }
    }
}

/// The history says where the pointers are, and nothing in it is of tomorrow.
fn history(agent: &AgentDir, ward: &mut Ward) {
    let path = agent.path().join(HISTORY_FILE);
    match history::contradictions(agent) {
        Ok(found) => {
            for what in found {
                ward.warn(HISTORY, &path, what).fixable();
            }
        }
        Err(e) => {
            ward.error(HISTORY, &path, &with_causes(&e));
        }
    }
    let latest = history::read(agent).unwrap_or_default().into_iter().map(|record| record.at).max();
    of_tomorrow(latest, &path, ward);
}

fn of_tomorrow(at: Option<Timestamp>, path: &Path, ward: &mut Ward) {
    const TOLERANCE_SECONDS: i64 = 120;
    if let Some(at) = at.filter(|at| at.as_second() > now().as_second() + TOLERANCE_SECONDS) {
        let what =
            format!("is dated {at}, which is still to come: this clock, or that of the writer, is wrong");
        ward.warn(CLOCK, path, what).advise("`timedatectl` shows whether this clock is synchronised");
    }
}

fn versions(agent: &AgentDir, ward: &mut Ward) {
    for pointer in agent.published().unwrap_or_default() {
        let Ok(Some(handle)) = agent.open_version(&pointer.version, pointer.place) else { continue };
        let Pointer { version, place } = pointer;
        let path = agent.version_path(&version, place);
        if place == Place::Legacy {
            let what =
                "lies where the old toy script put it, and not in versions/: it is read, and never retired";
            let advice = format!(
                "publish it again: `model-store publish {} NAME --from {}`",
                agent.name(),
                path.display()
            );
            ward.note(OLD_LAYOUT, &path, what).advise(advice);
        }
        match read_manifest(handle.as_fd(), &path) {
            Ok(None) if place == Place::Versions => {
                let what = "has no manifest.json: it was not published, and no reader finds it";
                ward.warn(VERSIONS, &path, what).advise("publish its files from elsewhere, then remove it");
            }
            Ok(None) => {}
            Ok(Some(manifest)) => match manifest.generation() {
                Generation::Current => {
                    of_tomorrow(manifest.created_at, &path, ward);
                    read_only(handle.as_fd(), &path, ward);
                }
                Generation::Legacy => {
                    let what = "was published by the Python helper: its checksum does not outlive a copy";
                    ward.note(OLD_LAYOUT, &path, what);
                }
                Generation::Newer(format) => {
                    ward.note(
                        VERSIONS,
                        &path,
                        format!("is of format {format}, which this program does not know"),
                    );
                }
            },
            Err(e) => {
                let advice = format!("restore it from a backup, or retire {version} by hand");
                ward.error(VERSIONS, &path, &with_causes(&e)).advise(advice);
            }
        }
        quarantined(agent, &version, &path, ward);
    }
}

/// Nobody may write into a published file.
fn read_only(version: BorrowedFd<'_>, path: &Path, ward: &mut Ward) {
    let Ok(payload) = Payload::scan(version, Links::Keep) else { return };
    let writable = payload.files.iter().filter(|file| !durable::is_sealed_mode(file.mode)).count();
    let open_to_all = {
        let dirs = payload.dirs.iter().filter_map(|dir| dir::stat_payload(version, dir.as_path()).ok());
        let own = rustix::fs::fstat(version).ok();
        dirs.chain(own).filter(|stat| stat.st_mode & 0o002 != 0).count()
    };
    if writable > 0 {
        let what = format!("has {writable} files that somebody may write to, or the group may not read");
        ward.warn(READ_ONLY, path, what).fixable();
    }
    if open_to_all > 0 {
        let what = format!("has {open_to_all} directories that anybody may write to");
        ward.error(READ_ONLY, path, &what).fixable();
    }
}

fn quarantined(agent: &AgentDir, version: &VersionName, path: &Path, ward: &mut Ward) {
    let what = match quarantine::of(agent, version) {
        Ok(None) => return,
        Ok(Some(quarantine)) => format!("is quarantined since {}: {}", quarantine.at, quarantine.reason),
        Err(e) => with_causes(&e),
    };
    let advice = format!("`model-store repair {} {version}` once its bytes are back", agent.name());
    ward.warn(QUARANTINE, path, what).advise(advice);
}

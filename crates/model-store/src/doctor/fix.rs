//! Putting right what can be put right without losing anything. Each step works by itself: one that fails
//! stops no other.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::history::{Action, MoveOptions, PointerName};
use crate::human::with_causes;
use crate::layout::{self, AgentDir};
use crate::manifest::Generation;
use crate::payload::Payload;
use crate::pointers::{confirm, intend_and_move};
use crate::read::read_manifest;
use crate::recover;
use crate::store::ModelStore;
use crate::transfer::Links;

use super::agent::{OWN_DIRS, OWN_FILES};
use super::expected_group;

/// What failed, and where.
type Failures = Vec<(PathBuf, String)>;

/// The root's mode.
pub(super) fn root(store: &ModelStore) -> Failures {
    let opened = layout::open_root(store.root());
    let set = opened.and_then(|root| {
        let set = durable::open_up_dir(root.as_fd()).and_then(|()| durable::sync(root.as_fd()));
        set.map_err(|e| StoreError::io("set the mode of", store.root(), e))
    });
    set.err().map(|e| (store.root().to_owned(), with_causes(&e))).into_iter().collect()
}

/// An agent whose lock is held, which means that leftovers are cleared and the history is true already.
pub(super) fn agent(store: &ModelStore, agent: &AgentDir) -> Failures {
    let mut fixer = Fixer { group: expected_group(store), failures: Vec::new() };
    // What resisted when the lock was taken: it is tried once more, and said why.
    let stubborn = recover::clear(agent).into_iter();
    fixer.failures.extend(stubborn.map(|(path, e)| (path, e.to_string())));
    for name in OWN_DIRS {
        let path = if *name == "." { agent.path().to_owned() } else { agent.path().join(name) };
        if let Ok(Some(opened)) = dir::open_if_there(agent.handle(), name) {
            fixer.set(&path, &opened, durable::open_up_dir);
        }
    }
    for name in OWN_FILES {
        if let Ok(opened) = dir::open_file(agent.handle(), name) {
            fixer.set(&agent.path().join(name), &opened.into(), durable::set_control_mode);
        }
    }
    if let Err(e) = make_current_relative(agent) {
        fixer.failures.push((agent.path().join(layout::CURRENT_LINK), with_causes(&e)));
    }
    fixer.seal_versions(agent);
    fixer.failures
}

struct Fixer {
    group: Option<u32>,
    failures: Failures,
}

impl Fixer {
    /// Sets a group, then a mode: a change of the group takes bits away.
    fn set(&mut self, path: &Path, opened: &OwnedFd, set_mode: fn(BorrowedFd<'_>) -> io::Result<()>) {
        let set = || -> io::Result<()> {
            let found = rustix::fs::fstat(opened)?.st_gid;
            if let Some(group) = self.group.filter(|group| *group != found) {
                durable::set_group(opened.as_fd(), group)?;
            }
            set_mode(opened.as_fd())?;
            durable::sync(opened.as_fd())
        };
        if let Err(e) = set() {
            self.failures.push((path.to_owned(), format!("{e}; only the owner and root may change it")));
        }
    }

    fn seal_versions(&mut self, agent: &AgentDir) {
        for pointer in agent.published().unwrap_or_default() {
            let path = agent.version_path(&pointer.version, pointer.place);
            let Ok(Some(version)) = agent.open_version(&pointer.version, pointer.place) else { continue };
            let ours = read_manifest(version.as_fd(), &path)
                .is_ok_and(|manifest| manifest.is_some_and(|it| it.generation() == Generation::Current));
            let Ok(payload) = Payload::scan(version.as_fd(), Links::Keep) else { continue };
            if !ours {
                continue;
            }
            for file in payload.files.iter().filter(|file| !durable::is_sealed_mode(file.mode)) {
                if let Ok(opened) = dir::open_payload(version.as_fd(), file.path.as_path()) {
                    self.set(&path.join(file.path.as_path()), &opened.into(), durable::seal);
                }
            }
            for below in &payload.dirs {
                if let Ok(opened) = dir::open_payload_dir(version.as_fd(), below.as_path()) {
                    self.set(&path.join(below.as_path()), &opened, durable::open_up_dir);
                }
            }
            self.set(&path, &version, durable::open_up_dir);
        }
    }
}

/// An absolute `current` that leads to a version of this agent becomes a relative one to the same.
fn make_current_relative(agent: &AgentDir) -> Result<(), StoreError> {
    let absolute = dir::read_link(agent.handle(), c"current").is_ok_and(|text| text.is_absolute());
    let Some(pointer) = agent.current()?.filter(|_| absolute) else { return Ok(()) };
    if agent.open_version(&pointer.version, pointer.place)?.is_none() {
        return Ok(());
    }
    let options = MoveOptions { actor: None, reason: Some("an absolute link was made relative".to_owned()) };
    let at = Some(pointer.version.clone());
    let record = options.record(Action::Reconcile, PointerName::Current, at.clone(), at);
    intend_and_move(agent, &record, Some(&pointer))?;
    confirm(agent, &record)
}

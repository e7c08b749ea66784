//! What retention decides about: every version with all that holds it.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use jiff::Timestamp;
use rustix::fs::{Access, AtFlags, accessat};
use rustix::io::Errno;

use crate::dir;
use crate::error::StoreError;
use crate::history::{self, Action, PointerName, Record};
use crate::holder::{flock_holders, now};
use crate::human::with_causes;
use crate::layout::{AgentDir, CURRENT_LINK, Place, Pointer, REFS_DIR};
use crate::lock::Flock;
use crate::manifest::Generation;
use crate::names::{AgentName, VersionName};
use crate::pointers::ref_names;
use crate::processes::{self, FileId, User, Uses};
use crate::quarantine;
use crate::read::read_manifest;
use crate::retention::Holding;
use crate::store::ModelStore;
use crate::usage::Blocks;

/// The holdings of agents, and what has to be said about them.
pub(crate) struct Inventory {
    pub(crate) holdings: Vec<Holding>,
    pub(crate) notes: Vec<String>,
    /// What could not be looked at: it stays, and whoever wanted it gone is told.
    pub(crate) problems: Vec<String>,
}

/// Looks at everything that the agents hold. Nothing is open any more when this returns.
pub(crate) fn take(store: &ModelStore, agents: &[AgentName]) -> Result<Inventory, StoreError> {
    let (mut holdings, mut notes, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for agent in agents {
        let Some(opened) = AgentDir::open(store.root(), agent)? else {
            return Err(store.agent_not_found(agent));
        };
        match of_agent(&opened, &mut problems) {
            Ok(of_agent) => holdings.extend(of_agent),
            // One agent that cannot be looked into keeps no other from being collected.
            Err(e) if agents.len() > 1 => problems.push(with_causes(&e)),
            Err(e) => return Err(e),
        }
    }
    let wanted: HashSet<FileId> = holdings.iter().flat_map(|holding| files(&holding.blocks)).collect();
    let uses = processes::scan(&wanted).map_err(processes::failed)?;
    for holding in &mut holdings {
        holding.held_by.extend(in_use(holding, &uses, |_, _| true));
    }
    if uses.unseen > 0 {
        notes.push(format!(
            "{} processes of other users could not be looked into; what they have open without a lease is not seen \
             (root sees it)",
            uses.unseen
        ));
    }
    Ok(Inventory { holdings, notes, problems })
}

/// The holdings of one agent, the oldest first. What the system refuses to show is a problem and stays.
pub(crate) fn of_agent(agent: &AgentDir, problems: &mut Vec<String>) -> Result<Vec<Holding>, StoreError> {
    let (pointed, unclear) = match pointers_of(agent) {
        Ok(pointed) => (pointed, None),
        // Nobody knows what is in use here: everything is.
        Err(e) => {
            note_if_refused(&e, problems);
            (HashMap::new(), Some(with_causes(&e)))
        }
    };
    let records = history::read(agent)?;
    let mut holdings = Vec::new();
    for pointer in agent.published()? {
        let handle = match agent.open_version(&pointer.version, pointer.place) {
            Ok(Some(handle)) => handle,
            Ok(None) => continue,
            Err(e) => {
                problems.push(with_causes(&e));
                continue;
            }
        };
        let path = agent.version_path(&pointer.version, pointer.place);
        let mut held_by = pointed.get(&pointer.version).cloned().unwrap_or_default();
        held_by.extend(unclear.clone());
        let quarantine = quarantine::of(agent, &pointer.version);
        let mut sound = matches!(quarantine, Ok(None));
        if let Err(e) = &quarantine {
            note_if_refused(e, problems);
        }
        let created_at = match read_manifest(handle.as_fd(), &path) {
            // Nobody published this.
            Ok(None) if pointer.place == Place::Versions => continue,
            // It may be anything.
            Ok(None) => {
                sound = false;
                None
            }
            Ok(Some(manifest)) => {
                if let Generation::Newer(format) = manifest.generation() {
                    held_by.push(format!("of a newer format ({format})"));
                }
                manifest.created_at
            }
            Err(e) => {
                note_if_refused(&e, problems);
                sound = false;
                held_by.push("its manifest cannot be read".to_owned());
                None
            }
        };
        if pointer.place == Place::Legacy {
            held_by.push("of the old layout".to_owned());
        }
        held_by.extend(leased(handle.as_fd()));
        if accessat(&handle, ".", Access::WRITE_OK, AtFlags::EACCESS) == Err(Errno::ACCESS) {
            held_by.push("its directory is not writable for this user".to_owned());
        }
        let (modified_at, changed_at) = times(handle.as_fd());
        drop(handle);
        let Some(blocks) = Blocks::of(agent, &pointer)? else { continue };
        let Pointer { version, .. } = pointer;
        holdings.push(Holding {
            agent: agent.name().clone(),
            published_at: published_at(&records, &version).or(created_at).unwrap_or(modified_at),
            changed_at,
            left_current_at: left_current_at(&records, &version),
            held_by,
            sound,
            version,
            blocks,
        });
    }
    holdings.sort_by(|a, b| (a.published_at, &a.version).cmp(&(b.published_at, &b.version)));
    Ok(holdings)
}

/// Damage is for the doctor to report; what the system refused is told here.
fn note_if_refused(error: &StoreError, problems: &mut Vec<String>) {
    if matches!(error, StoreError::Io { .. }) {
        problems.push(with_causes(error));
    }
}

/// As [`pointed_at`], or why nothing may be retired by it.
fn pointers_of(agent: &AgentDir) -> Result<HashMap<VersionName, Vec<String>>, StoreError> {
    let pointed = pointed_at(agent)?;
    let lost = |name: &str, version: &VersionName| {
        let what = format!("points at {version}, which is not there");
        Err(StoreError::corrupt(&agent.path().join(name), what))
    };
    if let Some(current) = agent.current()?
        && agent.open_version(&current.version, current.place)?.is_none()
    {
        return lost(CURRENT_LINK, &current.version);
    }
    for name in ref_names(agent)? {
        if let Some(at) = agent.read_ref(&name)?
            && agent.open_version(&at.version, at.place)?.is_none()
        {
            return lost(&format!("{REFS_DIR}/{name}"), &at.version);
        }
    }
    Ok(pointed)
}

/// The pointers at each version. One that cannot be read is an error: it may point anywhere.
pub(crate) fn pointed_at(agent: &AgentDir) -> Result<HashMap<VersionName, Vec<String>>, StoreError> {
    let mut pointed: HashMap<VersionName, Vec<String>> = HashMap::new();
    if let Some(current) = agent.current()? {
        pointed.entry(current.version).or_default().push(CURRENT_LINK.to_owned());
    }
    for name in ref_names(agent)? {
        if let Some(pointer) = agent.read_ref(&name)? {
            pointed.entry(pointer.version).or_default().push(format!("ref {name}"));
        }
    }
    Ok(pointed)
}

/// Who keeps a version by a lease. The lock itself is asked; `/proc/locks` only knows the name, and not on
/// every file system.
fn leased(version: BorrowedFd<'_>) -> Option<String> {
    if matches!(Flock::exclusive(version), Ok(Some(_))) {
        return None;
    }
    Some(match flock_holders(version).first() {
        Some(holder) => format!("leased by {} (process {})", holder.command, holder.pid),
        None => "leased".to_owned(),
    })
}

/// Which processes use a version without a lease.
pub(crate) fn in_use(
    holding: &Holding,
    uses: &Uses,
    counts: impl Fn(FileId, &User) -> bool,
) -> Option<String> {
    let inside = format!("/{}/", holding.version);
    // A hard link is in several versions: where the process's path says which, the others are free.
    let means_another = |file: FileId, user: &User| {
        let is_shared = holding.blocks.inodes.get(&file).is_some_and(|inode| inode.names > inode.here);
        let path = format!("{}/", user.path.to_string_lossy());
        is_shared && path.contains("/versions/") && !path.contains(&inside)
    };
    let user = files(&holding.blocks).find_map(|file| {
        uses.of(file).iter().find(|user| !means_another(file, user) && counts(file, user))
    })?;
    let how = if user.open { "open in" } else { "used by" };
    Some(format!("{how} {} (process {})", user.command, user.pid))
}

/// Everything of a version that a process can have open.
pub(crate) fn files(blocks: &Blocks) -> impl Iterator<Item = FileId> {
    blocks.others.iter().copied().chain(blocks.inodes.keys().copied())
}

fn published_at(records: &[Record], version: &VersionName) -> Option<Timestamp> {
    let published =
        |record: &&Record| record.action == Action::Publish && record.to.as_ref() == Some(version);
    records.iter().rfind(published).map(|record| record.at)
}

/// When a version was current last; `None` where it is, or never was.
fn left_current_at(records: &[Record], version: &VersionName) -> Option<Timestamp> {
    let came_or_went = |record: &&Record| {
        record.pointer == PointerName::Current
            && record.from != record.to
            && (record.from.as_ref() == Some(version) || record.to.as_ref() == Some(version))
    };
    let last = records.iter().rfind(came_or_went)?;
    (last.to.as_ref() != Some(version)).then_some(last.at)
}

/// When a version's directory was modified, which a copy may preserve, and when it was changed, which nothing
/// preserves: that is when it got its name, or was restored.
fn times(version: BorrowedFd<'_>) -> (Timestamp, Timestamp) {
    let time = |seconds| Timestamp::new(seconds, 0).unwrap_or(Timestamp::UNIX_EPOCH);
    let stat = rustix::fs::fstat(version);
    stat.map_or((Timestamp::UNIX_EPOCH, now()), |stat| (time(stat.st_mtime), time(stat.st_ctime)))
}

/// Opens a version to retire it: with an exclusive `flock`, which nobody gets while a reader holds a lease.
pub(crate) fn open_alone(
    agent: &AgentDir,
    version: &VersionName,
) -> Result<Option<Flock<OwnedFd>>, StoreError> {
    let Some(versions) = agent.versions()? else { return Ok(None) };
    let path = agent.version_path(version, Place::Versions);
    let failed = |e| StoreError::io("open", &path, e);
    let Some(handle) = dir::open_if_there(versions.as_fd(), version.as_str()).map_err(failed)? else {
        return Ok(None);
    };
    Flock::exclusive(handle).map_err(|e| StoreError::io("lock", &path, e))
}

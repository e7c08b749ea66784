//! What versions cost on disk, alone and shared.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use jiff::Timestamp;
use rustix::fs::{AtFlags, FileType};
use serde::Serialize;

use crate::dir;
use crate::error::StoreError;
use crate::layout::{AgentDir, Pointer};
use crate::list::{AgentEntry, dated_versions};
use crate::names::{AgentName, MANIFEST_FILE, VersionName};
use crate::processes::FileId;
use crate::store::ModelStore;

/// What a version costs. Hard links are seen; what a file system shares by reflinks is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionUsage {
    /// The agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
    /// When it was published, where its manifest says so.
    pub created_at: Option<Timestamp>,
    /// The number of its payload files.
    pub files: usize,
    /// The bytes of its payload.
    pub bytes: u64,
    /// The part of them that only this version holds: what its removal would free.
    pub bytes_alone: u64,
    /// The part that has other names too, in other versions or outside the store.
    pub bytes_shared: u64,
}

impl ModelStore {
    /// What each version costs, by agent and then in the order of [`versions`](Self::versions). An agent that
    /// cannot be read is left out.
    pub fn usage(&self) -> Result<Vec<VersionUsage>, StoreError> {
        let mut usage = Vec::new();
        for entry in self.agents()? {
            let AgentEntry::Agent(agent) = entry else { continue };
            usage.extend(self.usage_of(&agent).unwrap_or_default());
        }
        Ok(usage)
    }

    /// As [`usage`](Self::usage), of one agent.
    pub fn usage_of(&self, agent: &AgentName) -> Result<Vec<VersionUsage>, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), agent)? else {
            return Err(self.agent_not_found(agent));
        };
        let mut usage = Vec::new();
        for (created_at, pointer) in dated_versions(&agent)? {
            let Some(blocks) = Blocks::of(&agent, &pointer)? else { continue };
            let (bytes, bytes_alone) = (blocks.bytes(), blocks.bytes_alone());
            usage.push(VersionUsage {
                agent: agent.name().clone(),
                version: pointer.version,
                created_at,
                files: blocks.files,
                bytes,
                bytes_alone,
                bytes_shared: bytes - bytes_alone,
            });
        }
        Ok(usage)
    }
}

/// The inodes of a version.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blocks {
    /// Every payload file's, once.
    pub(crate) inodes: HashMap<FileId, Inode>,
    /// Its directories, its own first, and the manifest: what a process may have open as well.
    pub(crate) others: Vec<FileId>,
    pub(crate) files: usize,
}

/// A file's inode as one version sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inode {
    pub(crate) bytes: u64,
    /// Its names anywhere.
    pub(crate) names: u64,
    /// Its names in this version.
    pub(crate) here: u64,
}

impl Blocks {
    /// Looks at every entry of a version; `None` where that is gone. Nothing stays open.
    pub(crate) fn of(agent: &AgentDir, pointer: &Pointer) -> Result<Option<Self>, StoreError> {
        let Some(handle) = agent.open_version(&pointer.version, pointer.place)? else { return Ok(None) };
        let mut blocks = Self::default();
        let path = agent.version_path(&pointer.version, pointer.place);
        match blocks.descend(handle.as_fd(), true) {
            // Retired under our eyes.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io("read", &path, e)),
            Ok(()) => Ok(Some(blocks)),
        }
    }

    fn descend(&mut self, here: BorrowedFd<'_>, top: bool) -> io::Result<()> {
        self.others.push(FileId::of(&rustix::fs::fstat(here)?));
        for entry in dir::entries(here)? {
            match entry.kind {
                FileType::Directory => self.descend(dir::open_cstr(here, &entry.name)?.as_fd(), false)?,
                FileType::RegularFile => {
                    self.file(here, &entry.name, top && entry.name.to_bytes() == MANIFEST_FILE.as_bytes())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&mut self, here: BorrowedFd<'_>, name: &CStr, is_manifest: bool) -> io::Result<()> {
        let stat = rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let id = FileId::of(&stat);
        if is_manifest {
            self.others.push(id);
            return Ok(());
        }
        self.files += 1;
        let bytes = u64::try_from(stat.st_size).unwrap_or_default();
        self.inodes.entry(id).or_insert(Inode { bytes, names: stat.st_nlink, here: 0 }).here += 1;
        Ok(())
    }

    /// The bytes of the payload, each inode once.
    pub(crate) fn bytes(&self) -> u64 {
        self.inodes.values().map(|inode| inode.bytes).fold(0, u64::saturating_add)
    }

    /// The bytes of the inodes that have no name outside this version.
    pub(crate) fn bytes_alone(&self) -> u64 {
        let alone = self.inodes.values().filter(|inode| inode.names <= inode.here);
        alone.map(|inode| inode.bytes).fold(0, u64::saturating_add)
    }
}

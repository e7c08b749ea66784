//! How much room there is, and whether what is to come will fit.

use std::os::fd::{AsFd, BorrowedFd};

use serde::Serialize;

use crate::error::StoreError;
use crate::layout;
use crate::manifest::saturating_sum;
use crate::staging::Staging;
use crate::store::ModelStore;

/// Files take whole blocks.
const BLOCK_BYTES: u64 = 4096;
/// A file's share of the directory, the manifest and the inode table.
const OVERHEAD_BYTES: u64 = 512;
/// The manifest, the history, directories, and a little for everybody else.
const MARGIN_BYTES: u64 = 256 * 1024;

/// The room of the file system that the store lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// What a writer that is not root may still fill.
    pub free_bytes: u64,
}

impl Space {
    fn of(any: BorrowedFd<'_>) -> std::io::Result<Self> {
        let stat = rustix::fs::fstatvfs(any)?;
        Ok(Self {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

impl ModelStore {
    /// How much room the store's file system has.
    pub fn space(&self) -> Result<Space, StoreError> {
        let root = layout::open_root(self.root())?;
        Space::of(root.as_fd()).map_err(|e| StoreError::io("look at the space of", self.root(), e))
    }
}

impl Staging {
    /// Refuses what will not fit, before its first byte is written: files of the given sizes, in bytes.
    pub fn ensure_room(&self, sizes: impl Iterator<Item = u64>) -> Result<(), StoreError> {
        let on_disk = |size: u64| {
            size.checked_next_multiple_of(BLOCK_BYTES).map(|size| size.saturating_add(OVERHEAD_BYTES))
        };
        let payload_bytes = saturating_sum(sizes.map(|size| on_disk(size).unwrap_or(u64::MAX)));
        if payload_bytes == 0 {
            return Ok(());
        }
        let needed_bytes = payload_bytes.saturating_add(MARGIN_BYTES);
        let free_bytes = Space::of(self.dir())
            .map_err(|e| StoreError::io("look at the space of", self.path(), e))?
            .free_bytes;
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        Err(StoreError::NoRoom {
            agent: self.agent().clone(),
            version: self.version().clone(),
            root: self.store.root().to_owned(),
            needed_bytes,
            free_bytes,
        })
    }
}

//! The store's root and the host: file system, space, clock.

use std::os::fd::AsFd;

use crate::durable;
use crate::error::StoreError;
use crate::holder::now;
use crate::human::{human_size, with_causes};
use crate::layout;
use crate::store::ModelStore;

use super::{CLOCK, FILE_SYSTEM, ROOT, SIGNATURES, SPACE, Ward};

/// From statfs(2) and the kernel's magic.h; whether a store may live there.
const FILE_SYSTEMS: &[(u64, &str, Suitability)] = &[
    (0xEF53, "ext4", Suitability::Good),
    (0x5846_5342, "xfs", Suitability::Good),
    (0x9123_683E, "btrfs", Suitability::Good),
    (0x0102_1994, "tmpfs", Suitability::Volatile),
    (0x8584_58F6, "ramfs", Suitability::Volatile),
    (0x6969, "NFS", Suitability::Bad),
    (0xFF53_4D42, "CIFS", Suitability::Bad),
    (0xFE53_4D42, "SMB", Suitability::Bad),
    (0x794C_7630, "overlayfs", Suitability::Bad),
    (0x6573_5546, "FUSE", Suitability::Bad),
    (0x0102_1997, "9p", Suitability::Bad),
];
/// Below this part of the whole, or below [`LOW_BYTES`], space is short.
const LOW_PERCENT: u64 = 5;
const LOW_BYTES: u64 = 1 << 30;
/// A clock before this is not set: this program is newer.
const EPOCH_OF_THIS_PROGRAM: i64 = 1_735_689_600; // 2025-01-01

#[derive(Clone, Copy)]
enum Suitability {
    Good,
    Volatile,
    Bad,
}

pub(super) fn examine(store: &ModelStore, ward: &mut Ward) -> Result<(), StoreError> {
    let failed = |e: rustix::io::Errno| StoreError::io("look at", store.root(), e);
    let root = layout::open_root(store.root())?;
    let stat = rustix::fs::fstat(&root).map_err(failed)?;
    if !durable::is_dir_mode(stat.st_mode) {
        let what = format!("has mode {:o} and not 2775", stat.st_mode & 0o7777);
        ward.warn(ROOT, store.root(), what).fixable();
    }
    file_system(store, rustix::fs::fstatfs(&root).map_err(failed)?.f_type.cast_unsigned(), ward);
    let space = rustix::fs::fstatvfs(root.as_fd()).map_err(failed)?;
    if space.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        ward.note(FILE_SYSTEM, store.root(), "is mounted read-only: this host reads, and cannot publish");
    }
    let (total, free) = (space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize);
    if free < LOW_BYTES || free < total / 100 * LOW_PERCENT {
        let what = format!("only {} of {} are free", human_size(free), human_size(total));
        ward.warn(SPACE, store.root(), what).advise("`model-store gc --all --dry-run` shows what could go");
    }
    if space.f_files > 0 && space.f_favail < space.f_files / 100 * LOW_PERCENT {
        let what = format!("only {} of {} inodes are free", space.f_favail, space.f_files);
        ward.warn(SPACE, store.root(), what).advise("`model-store gc --all --dry-run` shows what could go");
    }
    if let Err(e) = store.signature_policy() {
        ward.error(SIGNATURES, &store.signature_policy_path(), &with_causes(&e))
            .advise("`model-store policy set` writes it anew; until then nothing becomes current here");
    }
    if now().as_second() < EPOCH_OF_THIS_PROGRAM {
        let what = format!("this host's clock says {}, which cannot be", now());
        ward.error(CLOCK, store.root(), &what).advise("set the clock before you publish: `timedatectl`");
    }
    Ok(())
}

fn file_system(store: &ModelStore, magic: u64, ward: &mut Ward) {
    let known = FILE_SYSTEMS.iter().find(|(number, ..)| *number == magic);
    match known {
        Some((_, _, Suitability::Good)) => {}
        Some((_, name, Suitability::Volatile)) => {
            ward.warn(FILE_SYSTEM, store.root(), format!("lies on {name}: nothing there outlives a reboot"));
        }
        Some((_, name, Suitability::Bad)) => {
            let what = format!("lies on {name}, which does not keep a store's promises");
            ward.error(FILE_SYSTEM, store.root(), &what).advise("move it to a local ext4, xfs or btrfs");
        }
        None => {
            let what = format!("lies on a file system that nobody tried (type {magic:#x})");
            ward.warn(FILE_SYSTEM, store.root(), what).advise("ext4, xfs and btrfs are known to work");
        }
    }
}

//! Which processes have files open or mapped, from `/proc`.
//!
//! Readers that know the store hold leases. Those that do not, such as a runtime that was given a path, are
//! seen here: by the inode, so that other mount namespaces and hard links make no difference.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Stat};
use rustix::io::Errno;

use crate::error::StoreError;

/// An inode: device and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino }
    }

    fn at(path: &Path) -> Option<Self> {
        rustix::fs::statat(CWD, path, AtFlags::empty()).ok().map(|stat| Self::of(&stat))
    }
}

/// A process that uses a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) pid: u32,
    pub(crate) command: String,
    /// By which path it knows the file, where that could be read.
    pub(crate) path: PathBuf,
    /// Whether the file is open; otherwise it is mapped, or the process stands in it.
    pub(crate) open: bool,
}

/// Who uses what.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    by_file: HashMap<FileId, Vec<User>>,
    /// Processes of other users that this one may not look into.
    pub(crate) unseen: usize,
}

impl Uses {
    /// The users of a file.
    pub(crate) fn of(&self, file: FileId) -> &[User] {
        self.by_file.get(&file).map_or(&[], Vec::as_slice)
    }

    fn note(&mut self, file: FileId, user: User) {
        let users = self.by_file.entry(file).or_default();
        if !users.iter().any(|known| known.pid == user.pid && known.path == user.path) {
            users.push(user);
        }
    }
}

/// Looks through every process for the files that are asked for. An error is that nobody knows: there is no
/// `/proc`, or no descriptor left to look with.
pub(crate) fn scan(wanted: &HashSet<FileId>) -> io::Result<Uses> {
    let mut uses = Uses::default();
    if wanted.is_empty() {
        return Ok(uses);
    }
    let numbers: HashSet<u64> = wanted.iter().map(|file| file.inode).collect();
    let processes = fs::read_dir("/proc")?.flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let process = Path::new("/proc").join(pid.to_string());
        let Some(files) = if_visible(fs::read_dir(process.join("fd")))? else {
            // One that has ended meanwhile uses nothing.
            uses.unseen += usize::from(process.exists());
            continue;
        };
        let command = || fs::read_to_string(process.join("comm")).unwrap_or_default().trim_end().to_owned();
        let open = files.flatten().map(|entry| (entry.path(), true));
        let stands_in = ["cwd", "root"].map(|name| (process.join(name), false));
        for (link, open) in open.chain(stands_in) {
            if let Some(file) = FileId::at(&link).filter(|file| wanted.contains(file)) {
                let path = fs::read_link(&link).unwrap_or_default();
                uses.note(file, User { pid, command: command(), path, open });
            }
        }
        for (file, path) in mapped(&process, wanted, &numbers)? {
            uses.note(file, User { pid, command: command(), path, open: false });
        }
    }
    Ok(uses)
}

/// That nobody knows who uses what.
pub(crate) fn failed(e: io::Error) -> StoreError {
    StoreError::io("look through", Path::new("/proc"), e)
}

/// What a process lets this one see; `None` where it is somebody else's, or has ended.
fn if_visible<T>(seen: io::Result<T>) -> io::Result<Option<T>> {
    match seen {
        Ok(seen) => Ok(Some(seen)),
        Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => Ok(None),
        Err(e) if e.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The wanted files that a process has mapped.
fn mapped(
    process: &Path,
    wanted: &HashSet<FileId>,
    numbers: &HashSet<u64>,
) -> io::Result<Vec<(FileId, PathBuf)>> {
    let maps = if_visible(fs::read(process.join("maps")))?.unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    // 7f12a000-7f12c000 r--p 00000000 fe:00 5678    /store/scout/versions/v1/model.safetensors
    let lines = maps.lines().filter_map(|line| {
        let mut fields = line.splitn(6, ' ');
        let (device, inode) = (fields.nth(3)?, fields.next()?.parse().ok()?);
        numbers.contains(&inode).then_some((device, inode, fields.next().unwrap_or_default().trim_start()))
    });
    let found = lines.filter_map(|(device, inode, path)| {
        let (major, minor) = device.split_once(':')?;
        let number = |hex| u32::from_str_radix(hex, 16).ok();
        let device = rustix::fs::makedev(number(major)?, number(minor)?);
        let path = PathBuf::from(path.trim_end_matches(" (deleted)"));
        let file = FileId { device, inode };
        if wanted.contains(&file) {
            return Some((file, path));
        }
        // btrfs shows another device here than `stat` does: ask by the path, as that process sees it.
        let seen = process.join("root").join(path.strip_prefix("/").ok()?);
        FileId::at(&seen).filter(|file| wanted.contains(file)).map(|file| (file, path))
    });
    let mut found: Vec<_> = found.collect();
    found.dedup();
    Ok(found)
}

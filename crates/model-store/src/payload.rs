//! What lies in a version's directory, and what may not.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use serde::Serialize;

use crate::dir::{self, LinkText};
use crate::manifest::{LinkEntry, saturating_sum};
use crate::names::{MANIFEST_FILE, PayloadPath};
use crate::transfer::Links;

/// Something that no version may contain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PayloadProblem {
    path: String,
    reason: String,
}

impl PayloadProblem {
    pub(crate) fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }

    /// The offending entry, relative to the version; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Why it is refused.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for PayloadProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.path, self.reason)
    }
}

/// What tells whether a file is still the one that was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Stamp {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    pub(crate) fn is_same_file(self, other: Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    pub(crate) fn of_file(file: impl AsFd) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::fstat(file)?))
    }
}

/// One regular file.
#[derive(Clone, Debug)]
pub(crate) struct PayloadFile {
    pub(crate) path: PayloadPath,
    pub(crate) size_bytes: u64,
    pub(crate) names: u64,
    pub(crate) mode: u32,
    pub(crate) group: u32,
    pub(crate) stamp: Stamp,
}

/// Everything in a version's directory.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    /// Sorted by path bytes.
    pub(crate) files: Vec<PayloadFile>,
    /// Sorted by path bytes.
    pub(crate) links: Vec<LinkEntry>,
    /// Parents before children; not the version's own directory.
    pub(crate) dirs: Vec<PayloadPath>,
    pub(crate) problems: Vec<PayloadProblem>,
    /// Whether `manifest.json` lies at the top.
    pub(crate) has_manifest: bool,
}

/// Where a scan began, and what it does with links.
struct Scan<'a> {
    top: BorrowedFd<'a>,
    links: Links,
}

impl Payload {
    /// Looks at everything below a directory. Directories are never reached through a link.
    pub(crate) fn scan(version: BorrowedFd<'_>, links: Links) -> io::Result<Self> {
        let mut payload = Self::default();
        payload.descend(&Scan { top: version, links }, version, "")?;
        payload.files.sort_by(|a, b| a.path.cmp(&b.path));
        payload.links.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(payload)
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        saturating_sum(self.files.iter().map(|file| file.size_bytes))
    }

    /// The bytes of the files that no other name leads to, or only one that goes away: what a version adds to
    /// a store.
    pub(crate) fn own_bytes(&self, moved: &BTreeSet<PayloadPath>) -> u64 {
        let names = |file: &PayloadFile| file.names - u64::from(file.names > 1 && moved.contains(&file.path));
        saturating_sum(self.files.iter().filter(|file| names(file) == 1).map(|file| file.size_bytes))
    }

    /// Refuses a file at the manifest's place that is not a manifest of this store's making.
    pub(crate) fn refuse_manifest(&mut self) {
        self.refuse(
            MANIFEST_FILE.to_owned(),
            "is the store's own file; name yours otherwise, or put it into a directory",
        );
    }

    pub(crate) fn refuse_emptiness(&mut self) {
        self.refuse(".".to_owned(), "contains no file; there is nothing to publish");
    }

    fn descend(&mut self, scan: &Scan<'_>, here: BorrowedFd<'_>, prefix: &str) -> io::Result<()> {
        for entry in dir::sorted_entries(here)? {
            let Ok(name) = entry.name.to_str() else {
                let shown = format!("{prefix}{}", entry.name.to_string_lossy());
                self.refuse(shown, "is not UTF-8");
                continue;
            };
            let full = format!("{prefix}{name}");
            if full == MANIFEST_FILE && entry.kind == FileType::RegularFile {
                self.has_manifest = true;
                continue;
            }
            let path = match PayloadPath::try_from(full) {
                Ok(path) => path,
                Err(e) => {
                    self.refuse(e.value().to_owned(), e.reason());
                    continue;
                }
            };
            match entry.kind {
                FileType::RegularFile => self.file(here, &entry.name, path, AtFlags::SYMLINK_NOFOLLOW)?,
                FileType::Symlink => self.link(scan, here, &entry.name, path)?,
                FileType::Directory => {
                    let below = dir::open(here, name)?;
                    let prefix = format!("{path}/");
                    self.dirs.push(path);
                    self.descend(scan, below.as_fd(), &prefix)?;
                }
                other => self.refuse(path.into(), format!("is {}", kind_in_words(other))),
            }
        }
        Ok(())
    }

    fn file(&mut self, here: BorrowedFd<'_>, name: &CStr, path: PayloadPath, how: AtFlags) -> io::Result<()> {
        let stat = rustix::fs::statat(here, name, how)?;
        if stat.st_mode & 0o6000 != 0 {
            self.refuse(path.into(), "has its setuid or setgid bit set");
        } else {
            let size_bytes = u64::try_from(stat.st_size).unwrap_or_default();
            let (mode, group, stamp) = (stat.st_mode, stat.st_gid, Stamp::of(&stat));
            let names = stat.st_nlink;
            self.files.push(PayloadFile { path, size_bytes, names, mode, group, stamp });
        }
        Ok(())
    }

    fn link(
        &mut self,
        scan: &Scan<'_>,
        here: BorrowedFd<'_>,
        name: &CStr,
        path: PayloadPath,
    ) -> io::Result<()> {
        if scan.links == Links::Follow && leads_to_file(here, name) {
            return self.file(here, name, path, AtFlags::empty());
        }
        let target = match dir::read_link(here, name) {
            Ok(LinkText::To(target)) => target,
            Ok(_) => return Err(io::Error::other("changed while it was looked at")),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                self.refuse(path.into(), "is a symbolic link whose target is not UTF-8");
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        match dir::stays_beneath(scan.top, path.as_path()) {
            Ok(()) => self.links.push(LinkEntry { path, target }),
            Err(Errno::XDEV) => {
                self.refuse(
                    path.into(),
                    format!("is a symbolic link that leaves the version (to {target:?})"),
                );
            }
            Err(Errno::NOENT | Errno::NOTDIR) => {
                self.refuse(path.into(), format!("is a symbolic link to nothing (to {target:?})"));
            }
            Err(Errno::LOOP) => {
                self.refuse(path.into(), format!("is a symbolic link in a circle (to {target:?})"));
            }
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn refuse(&mut self, path: String, reason: impl Into<String>) {
        self.problems.push(PayloadProblem::new(path, reason));
    }
}

fn leads_to_file(here: BorrowedFd<'_>, name: &CStr) -> bool {
    let stat = rustix::fs::statat(here, name, AtFlags::empty());
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

fn kind_in_words(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "neither a file, a directory nor a link",
    }
}

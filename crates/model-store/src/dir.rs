//! Reading directories by handle.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

const DIR_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One name in a directory.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: CString,
    pub(crate) kind: FileType,
}

/// Opens the directory at a path, following links on the way.
pub(crate) fn open_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens a directory by its name in another; a link of that name is refused.
pub(crate) fn open(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(parent, name, DIR_FLAGS, Mode::empty())?)
}

/// As [`open`], where the name was read from a directory and need not be UTF-8.
pub(crate) fn open_cstr(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, DIR_FLAGS, Mode::empty())
}

/// As [`open`], where a missing directory is no error.
pub(crate) fn open_if_there(parent: BorrowedFd<'_>, name: &str) -> io::Result<Option<OwnedFd>> {
    match open(parent, name) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Opens a file by its name in a directory for reading; a link of that name is refused.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?.into())
}

/// As often as a scoped look-up is tried again: the kernel gives up (`EAGAIN`) a way with `..` in it whenever
/// anything anywhere is renamed meanwhile.
const LOOK_UP_TRIES: usize = 200;

/// Opens what lies below a directory, by rules that the kernel keeps on the way.
fn open_scoped(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let open = || rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve | ResolveFlags::BENEATH);
    for _ in 1..LOOK_UP_TRIES {
        match open() {
            Err(Errno::AGAIN) => std::thread::yield_now(),
            other => return other,
        }
    }
    open()
}

/// Opens a file below a directory for reading. Links on the way are followed as long as they stay below it:
/// the kernel itself refuses (`EXDEV`) a way that leads out, also against somebody who renames directories
/// meanwhile.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(open_scoped(dir, path, flags, ResolveFlags::NO_MAGICLINKS)?.into())
}

/// Opens a payload file below a directory; a link anywhere on the way is refused (`ELOOP`).
pub(crate) fn open_payload(dir: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(open_scoped(dir, path, flags, ResolveFlags::NO_SYMLINKS)?.into())
}

/// What a payload file is, without opening it to read; a link anywhere on the way is refused.
pub(crate) fn stat_payload(dir: BorrowedFd<'_>, path: &Path) -> io::Result<Stat> {
    let handle = open_scoped(dir, path, OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_SYMLINKS)?;
    Ok(rustix::fs::fstat(handle)?)
}

/// Opens a directory of a payload; a link anywhere on the way is refused.
pub(crate) fn open_payload_dir(dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    Ok(open_scoped(dir, path, DIR_FLAGS, ResolveFlags::NO_SYMLINKS)?)
}

/// Opens a file for reading, wherever the links on the way lead. Does not wait for the writer of a pipe.
pub(crate) fn open_anywhere(path: &Path) -> io::Result<File> {
    open_following(rustix::fs::CWD, path)
}

/// As [`open_anywhere`], from a directory on.
pub(crate) fn open_following(dir: BorrowedFd<'_>, path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(rustix::fs::openat(dir, path, flags, Mode::empty())?.into())
}

/// Whether a path below a directory leads, through links that stay below it, to a file or directory.
pub(crate) fn stays_beneath(dir: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    open_scoped(dir, path, OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_MAGICLINKS).map(drop)
}

/// Everything in a directory, in the order the file system gives it.
pub(crate) fn entries(dir: BorrowedFd<'_>) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => kind_of(dir, name)?,
            kind => kind,
        };
        entries.push(Entry { name: name.to_owned(), kind });
    }
    Ok(entries)
}

/// As [`entries`], in the order of the names' bytes.
pub(crate) fn sorted_entries(dir: BorrowedFd<'_>) -> io::Result<Vec<Entry>> {
    let mut entries = entries(dir)?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn kind_of(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<FileType> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// What a name turned out to be when it was read as a symbolic link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LinkText {
    Missing,
    NotALink,
    To(String),
}

impl LinkText {
    pub(crate) fn is_absolute(&self) -> bool {
        matches!(self, Self::To(target) if target.starts_with('/'))
    }
}

/// Reads a symbolic link, once.
pub(crate) fn read_link(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<LinkText> {
    match rustix::fs::readlinkat(dir, name, Vec::new()) {
        Ok(target) => match target.into_string() {
            Ok(target) => Ok(LinkText::To(target)),
            Err(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the link's target is not UTF-8")),
        },
        Err(Errno::NOENT) => Ok(LinkText::Missing),
        Err(Errno::INVAL) => Ok(LinkText::NotALink),
        Err(e) => Err(e.into()),
    }
}

/// Whether something has this name, a dangling link included.
pub(crate) fn exists(dir: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Whether a name in a directory is still that of an open one. A link of that name is not.
pub(crate) fn is_named(parent: BorrowedFd<'_>, name: &str, opened: BorrowedFd<'_>) -> io::Result<bool> {
    let opened = rustix::fs::fstat(opened)?;
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Whether two handles are of the same directory.
pub(crate) fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

//! Every change to the file system, and what makes it last.
//!
//! This is the only module that writes: `clippy.toml` forbids the system's writing calls everywhere else, so
//! what a crash can leave behind is decided here. All names are relative to an open directory, so no rename
//! of a parent can redirect a write. An `fsync` that failed is never tried again: the kernel may have dropped
//! the pages and would report success.
#![expect(clippy::disallowed_methods, reason = "the one place that is allowed to write")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::dir;

/// Directories: everything for owner and group, reading for others, the group inherited (setgid).
const DIR_MODE: u32 = 0o2775;
/// `.lock` and `history.jsonl`: for the store's group, whatever the umask.
const CONTROL_MODE: u32 = 0o660;
/// Notes about versions: everybody may know, the group may replace them.
const NOTE_MODE: u32 = 0o664;
/// What a payload file has while it is written; `seal` takes the write bits away.
const PAYLOAD_MODE: u32 = 0o664;
const PERMISSION_BITS: u32 = 0o7777;

/// Makes a directory and says whether it was not there before. The parent still has to be synced. One of ours
/// that is there gets its mode: whoever made it may have died before that.
pub(crate) fn make_dir(parent: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(DIR_MODE & 0o777)) {
        Ok(()) => {
            let opened = dir::open(parent, name).and_then(|made| set_mode(made.as_fd(), DIR_MODE));
            opened.map(|()| true).inspect_err(|_| {
                remove_empty_dir(parent, name);
            })
        }
        Err(Errno::EXIST) => {
            // Whatever else it is, whoever opens it next will say so.
            if let Ok(there) = dir::open(parent, name) {
                repair_dir(there.as_fd())?;
            }
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

/// Gives a directory the store's mode if it is ours to do that.
pub(crate) fn repair_dir(dir: BorrowedFd<'_>) -> io::Result<()> {
    if is_ours(&rustix::fs::fstat(dir)?) { open_up_dir(dir) } else { Ok(()) }
}

fn is_ours(stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw()
}

/// Makes the store's root and its parents; parents that are there stay as they are.
pub(crate) fn make_root(root: &Path) -> io::Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::create_dir(root) {
        Ok(()) => set_mode(File::open(root)?.as_fd(), DIR_MODE),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && root.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Makes a new file for payload or manifest.
pub(crate) fn create_file(parent: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(PAYLOAD_MODE))?.into())
}

/// Opens `.lock` or `history.jsonl`, making it where it is missing, with its mode whatever the umask is.
pub(crate) fn open_control(parent: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(CONTROL_MODE))?;
    let stat = rustix::fs::fstat(&fd)?;
    if is_ours(&stat) && stat.st_mode & PERMISSION_BITS != CONTROL_MODE {
        set_mode(fd.as_fd(), CONTROL_MODE)?;
    }
    Ok(fd.into())
}

/// Puts a small file into a directory, under its name or not at all; what was there before is replaced. It is
/// written under `temporary` first.
pub(crate) fn put_file(parent: BorrowedFd<'_>, temporary: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let put = || {
        let file = create_file(parent, temporary)?;
        file.write_all_at(bytes, 0)?;
        set_mode(file.as_fd(), NOTE_MODE)?;
        sync(file.as_fd())?;
        rename_over(parent, temporary, name)
    };
    put().inspect_err(|_| {
        let _ = remove_file(parent, temporary);
    })?;
    sync(parent)
}

/// Takes the write bits (and setuid, setgid, sticky) off a file and lets owner and group read it.
pub(crate) fn seal(file: BorrowedFd<'_>) -> io::Result<()> {
    let mode = rustix::fs::fstat(file)?.st_mode & PERMISSION_BITS;
    let sealed = (mode & 0o555) | 0o440;
    if mode == sealed { Ok(()) } else { set_mode(file, sealed) }
}

/// As [`seal`], keeping the `x` bits of the file that this one is a copy of, for those who may read it.
pub(crate) fn seal_like(file: BorrowedFd<'_>, original: BorrowedFd<'_>) -> io::Result<()> {
    let executable = rustix::fs::fstat(original)?.st_mode & 0o111;
    let readable = (rustix::fs::fstat(file)?.st_mode & 0o444) | 0o440;
    set_mode(file, readable | (executable & (readable >> 2)))
}

/// Gives a directory the store's mode.
pub(crate) fn open_up_dir(dir: BorrowedFd<'_>) -> io::Result<()> {
    let mode = rustix::fs::fstat(dir)?.st_mode & PERMISSION_BITS;
    if mode == DIR_MODE { Ok(()) } else { set_mode(dir, DIR_MODE) }
}

/// Gives a file or directory to a group.
pub(crate) fn set_group(file: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    Ok(rustix::fs::fchown(file, None, Some(Gid::from_raw(group)))?)
}

/// As [`set_group`], where it is of another one.
pub(crate) fn set_group_if_other(file: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    if rustix::fs::fstat(file)?.st_gid == group { Ok(()) } else { set_group(file, group) }
}

/// Whether these permissions are a directory's of the store.
pub(crate) fn is_dir_mode(mode: u32) -> bool {
    mode & PERMISSION_BITS == DIR_MODE
}

/// Whether these permissions are those of `.lock` or `history.jsonl`.
pub(crate) fn is_control_mode(mode: u32) -> bool {
    mode & PERMISSION_BITS == CONTROL_MODE
}

/// Gives `.lock` or `history.jsonl` its mode.
pub(crate) fn set_control_mode(file: BorrowedFd<'_>) -> io::Result<()> {
    if is_control_mode(rustix::fs::fstat(file)?.st_mode) { Ok(()) } else { set_mode(file, CONTROL_MODE) }
}

/// Whether these permissions are a published file's: nobody writes, owner and group read.
pub(crate) fn is_sealed_mode(mode: u32) -> bool {
    let mode = mode & PERMISSION_BITS;
    mode & !0o555 == 0 && mode & 0o440 == 0o440
}

fn set_mode(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?)
}

/// Makes one file or directory durable.
pub(crate) fn sync(file: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsync(file)?)
}

/// Makes the whole file system durable.
pub(crate) fn sync_file_system(any: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(any)?)
}

/// Makes a moved link durable: on btrfs no `fsync` of the directory covers it, so the file system is synced
/// there.
pub(crate) fn sync_link(dir: BorrowedFd<'_>) -> io::Result<()> {
    const BTRFS_SUPER_MAGIC: i64 = 0x9123_683E;
    if rustix::fs::fstatfs(dir)?.f_type == BTRFS_SUPER_MAGIC {
        return sync_file_system(dir);
    }
    sync(dir)
}

/// Renames within a directory, refusing to replace anything.
pub(crate) fn rename_new(dir: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
    rename_new_across(dir, from, dir, to)
}

/// Renames from one directory into another, refusing to replace anything.
pub(crate) fn rename_new_across(
    from_dir: BorrowedFd<'_>,
    from: &str,
    to_dir: BorrowedFd<'_>,
    to: &str,
) -> io::Result<()> {
    match rustix::fs::renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
        // A file system without the flag says so with EINVAL.
        Err(Errno::INVAL) => Err(io::Error::from(io::ErrorKind::Unsupported)),
        other => Ok(other?),
    }
}

/// Renames within a directory over what is there.
pub(crate) fn rename_over(dir: BorrowedFd<'_>, from: &str, to: &str) -> io::Result<()> {
    rename_over_across(dir, from, dir, to)
}

/// Renames from one directory into another, over what is there.
pub(crate) fn rename_over_across(
    from_dir: BorrowedFd<'_>,
    from: &str,
    to_dir: BorrowedFd<'_>,
    to: &str,
) -> io::Result<()> {
    Ok(rustix::fs::renameat(from_dir, from, to_dir, to)?)
}

/// Makes a symbolic link; fails where the name is taken.
pub(crate) fn make_link(target: &str, dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

/// Makes `to_dir/to` another name of the open file `from`'s inode.
pub(crate) fn hard_link(
    from_dir: BorrowedFd<'_>,
    from: &Path,
    to_dir: BorrowedFd<'_>,
    to: &str,
) -> io::Result<()> {
    Ok(rustix::fs::linkat(from_dir, from, to_dir, to, AtFlags::empty())?)
}

/// Lets the empty file `to` share the blocks of `from`; `false` where the file system cannot.
pub(crate) fn reflink(from: &File, to: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => {
            Ok(false)
        }
        Err(e) => Err(e.into()),
    }
}

/// Appends a record to a control file and syncs it. A record that did not fit is cut off again.
pub(crate) fn append(file: &File, record: &[u8]) -> io::Result<()> {
    let end = file.metadata()?.len();
    if let Err(e) = file.write_all_at(record, end) {
        let _ = truncate(file, end);
        return Err(e);
    }
    sync(file.as_fd())
}

/// Replaces the whole text of a control file that nothing depends on; not synced.
pub(crate) fn write_note(file: &File, note: &[u8]) -> io::Result<()> {
    truncate(file, 0)?;
    file.write_all_at(note, 0)
}

/// Cuts a control file to a length.
pub(crate) fn truncate(file: &File, length_bytes: u64) -> io::Result<()> {
    Ok(rustix::fs::ftruncate(file, length_bytes)?)
}

/// Removes a file or link; one that is not there is fine.
pub(crate) fn remove_file(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes an empty directory and says whether it could.
pub(crate) fn remove_empty_dir(parent: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok()
}

/// Removes a directory with all that is in it, following no link; one that is not there is fine.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let opened = match dir::open_cstr(parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        // A directory that its writer closed to itself: its owner may open it again.
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(0o700), AtFlags::empty())?;
            dir::open_cstr(parent, name)?
        }
        other => other?,
    };
    empty_dir(opened.as_fd())?;
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn empty_dir(opened: BorrowedFd<'_>) -> io::Result<()> {
    let entries = dir::entries(opened)?;
    if !entries.is_empty() && rustix::fs::fstat(opened)?.st_mode & 0o300 != 0o300 {
        set_mode(opened, 0o700)?;
    }
    for entry in entries {
        if entry.kind == FileType::Directory {
            remove_tree(opened, &entry.name)?;
        } else {
            match rustix::fs::unlinkat(opened, &*entry.name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// Makes a new payload file anywhere below a directory, read-only from its birth; this handle can write. Of
/// the `x` bits in `executable` it gets those of whoever may read it. No link on the way is followed.
pub(crate) fn create_beneath(top: BorrowedFd<'_>, path: &Path, executable: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(SEALED_MODE | (executable & 0o111));
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(rustix::fs::openat2(top, path, flags, mode, resolve)?.into())
}

/// What a file of [`create_beneath`] is born with, as far as the umask lets it.
const SEALED_MODE: u32 = 0o444;

/// Gives a file of [`create_beneath`] what the umask must not take away; says what it is like then.
pub(crate) fn seal_created(file: BorrowedFd<'_>, executable: u32) -> io::Result<Stat> {
    let stat = rustix::fs::fstat(file)?;
    let readable = (stat.st_mode & SEALED_MODE) | 0o440;
    let sealed = readable | (executable & (readable >> 2));
    if stat.st_mode & PERMISSION_BITS == sealed {
        return Ok(stat);
    }
    set_mode(file, sealed)?;
    Ok(rustix::fs::fstat(file)?)
}

/// Gives a file that is not ours the mode back that it had.
pub(crate) fn give_mode_back(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    set_mode(file, mode & PERMISSION_BITS)
}

/// Sets blocks aside for a file that is about to be written; a file system that cannot is fine. The file's
/// length stays what it is.
pub(crate) fn preallocate(file: &File, length_bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, length_bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Makes a new file for bytes that may come in several runs.
pub(crate) fn create_to_go_on(parent: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(PAYLOAD_MODE))?.into())
}

/// Opens a file of [`create_to_go_on`] again; `None` where there is none, or where it is not to be written any
/// more: it was sealed, or has another name.
pub(crate) fn open_to_go_on(parent: BorrowedFd<'_>, name: &str) -> io::Result<Option<File>> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if !is_file || stat.st_nlink != 1 || stat.st_mode & 0o200 == 0 || !is_ours(&stat) {
        return Ok(None);
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(Some(rustix::fs::openat(parent, name, flags, Mode::empty())?.into()))
}

/// Makes `to_dir/to` another name of an open file, however that was found.
pub(crate) fn hard_link_open(file: &File, to_dir: BorrowedFd<'_>, to: &str) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(rustix::fs::CWD, from, to_dir, to, AtFlags::SYMLINK_FOLLOW)?)
}

/// Removes a file or link anywhere below a directory; no link on the way is followed.
pub(crate) fn remove_beneath(top: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => remove_file(dir::open_payload_dir(top, parent)?.as_fd(), name),
        None => remove_file(top, name),
    }
}

/// Removes a directory at a path if it is empty; says whether it could.
pub(crate) fn remove_dir_if_empty(path: &Path) -> bool {
    std::fs::remove_dir(path).is_ok()
}

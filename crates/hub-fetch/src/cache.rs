//! The cache's folders, as `huggingface_hub` lays them out.
//!
//! ```text
//! .locks/models--org--name/<blob>.lock
//! models--org--name/
//!   blobs/<blob>               bytes, named by their digest; <blob>.incomplete while they come
//!   refs/<revision>            the commit a branch, tag or pull request was at
//!   snapshots/<commit>/…       relative links into blobs/
//!   trees/<commit>.json        what the commit has in all
//! ```
//!
//! A blob gets its name when it is whole and checked, a snapshot when all its blobs are there, a ref when its snapshot
//! is: what has a final name can be used.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::FetchError;
use crate::listing::{Listing, Wanted, from_tree, to_tree};
use crate::names::is_commit;
use crate::request::Existing;

/// What backup programs look for, by the Cache Directory Tagging Specification.
const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
# This file is a cache directory tag of the Hugging Face Hub's cache.\n\
# For information about cache directory tags, see: https://bford.info/cachedir/\n";

/// A model's folder in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    cache: PathBuf,
    name: String,
}

impl Repository {
    /// `model_id` must have been checked.
    pub(crate) fn new(cache: &Path, model_id: &str) -> Self {
        Self { cache: cache.to_owned(), name: format!("models--{}", model_id.replace('/', "--")) }
    }

    fn root(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    pub(crate) fn blob(&self, name: &str) -> PathBuf {
        self.root().join("blobs").join(name)
    }

    pub(crate) fn incomplete(&self, name: &str) -> PathBuf {
        self.root().join("blobs").join(format!("{name}.incomplete"))
    }

    pub(crate) fn lock(&self, name: &str) -> PathBuf {
        self.cache.join(".locks").join(&self.name).join(format!("{name}.lock"))
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root().join("snapshots").join(commit)
    }

    /// Makes the folders that a download needs.
    pub(crate) fn prepare(&self) -> Result<(), FetchError> {
        for folder in [
            self.root().join("blobs"),
            self.root().join("snapshots"),
            self.cache.join(".locks").join(&self.name),
        ] {
            make_folder(&folder)?;
        }
        let tag = self.cache.join("CACHEDIR.TAG");
        if !tag.exists() {
            write_whole(&tag, CACHE_TAG.as_bytes(), &self.root())?;
        }
        Ok(())
    }

    /// The commit that a revision was at when somebody last asked.
    pub(crate) fn known_commit(&self, revision: &str) -> Result<Option<String>, FetchError> {
        if is_commit(revision) {
            return Ok(Some(revision.to_owned()));
        }
        let path = self.root().join("refs").join(revision);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned()).filter(|commit| is_commit(commit))),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(FetchError::io("read", &path, error)),
        }
    }

    /// What a commit has, if it was written down.
    pub(crate) fn listing(&self, commit: &str) -> Result<Option<Listing>, FetchError> {
        let path = self.root().join("trees").join(format!("{commit}.json"));
        match fs::read(&path) {
            Ok(json) => Ok(from_tree(&json)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(FetchError::io("read", &path, error)),
        }
    }

    pub(crate) fn write_listing(&self, commit: &str, listing: &Listing) -> Result<(), FetchError> {
        let path = self.root().join("trees").join(format!("{commit}.json"));
        match to_tree(listing) {
            // One that says something else is damaged, or another program's of another time.
            Some(json) if self.listing(commit)?.as_ref() != Some(listing) => {
                write_whole(&path, &json, &self.root())
            }
            _ => Ok(()),
        }
    }

    /// Makes the snapshot of blobs that are all there. A new one appears whole; what an old one lacks is added.
    /// With [`Existing::ByDigest`] every file of it is a link to its blob afterwards, which was hashed.
    pub(crate) fn write_snapshot(
        &self,
        commit: &str,
        files: &[Wanted],
        existing: Existing,
    ) -> Result<PathBuf, FetchError> {
        let folder = self.snapshot(commit);
        if !folder.exists() {
            // Not among the snapshots, which others list. The links lead somewhere once it is there.
            let draft = self.root().join(format!(".snapshot-{}", unique()));
            let written = files.iter().try_for_each(|file| link(&draft, file));
            let moved = written.and_then(|()| match fs::rename(&draft, &folder) {
                Ok(()) => Ok(()),
                // Another process was first; its snapshot is added to below.
                Err(_) if folder.exists() => Ok(()),
                Err(error) => Err(FetchError::io("make", &folder, error)),
            });
            let _ = fs::remove_dir_all(&draft);
            moved?;
        }
        for file in files {
            let is_trusted = existing == Existing::BySize || self.leads_to_blob(commit, file);
            if !is_trusted || !self.is_linked(commit, file) {
                link(&folder, file)?;
            }
        }
        Ok(folder)
    }

    /// Whether a snapshot has a file, in the right size as far as it is known.
    pub(crate) fn is_linked(&self, commit: &str, file: &Wanted) -> bool {
        let there = self.snapshot(commit).join(&file.path).metadata();
        there.is_ok_and(|there| there.is_file() && file.size.is_none_or(|size| size == there.len()))
    }

    /// Whether a snapshot's file is a link to its blob, and no copy.
    fn leads_to_blob(&self, commit: &str, file: &Wanted) -> bool {
        let path = self.snapshot(commit).join(&file.path);
        let led_to = path.read_link().ok().and_then(|_| path.canonicalize().ok());
        led_to.is_some() && led_to == self.blob(&file.blob).canonicalize().ok()
    }

    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), FetchError> {
        if is_commit(revision) || self.known_commit(revision)?.as_deref() == Some(commit) {
            return Ok(());
        }
        write_whole(&self.root().join("refs").join(revision), commit.as_bytes(), &self.root())
    }
}

/// Links `folder/<path>` to its blob, in place of what is there.
fn link(folder: &Path, file: &Wanted) -> Result<(), FetchError> {
    let path = folder.join(&file.path);
    let parent = path.parent().unwrap_or(folder);
    make_folder(parent)?;
    let up = "../".repeat(2 + file.path.matches('/').count());
    let draft = parent.join(format!(".{}", unique()));
    let placed = symlink(format!("{up}blobs/{}", file.blob), &draft).and_then(|()| fs::rename(&draft, &path));
    placed.map_err(|error| {
        let _ = fs::remove_file(&draft);
        FetchError::io("link", &path, error)
    })
}

/// Writes a small file that is seen whole or not at all. Its draft is in `drafts`, on the same file system: in the file's
/// own folder, `refs` for one, others would take it for what that folder has.
fn write_whole(path: &Path, bytes: &[u8], drafts: &Path) -> Result<(), FetchError> {
    let parent = path.parent().unwrap_or(path);
    make_folder(parent)?;
    let draft = drafts.join(format!(".{}.tmp", unique()));
    let written = fs::write(&draft, bytes)
        .and_then(|()| File::open(&draft)?.sync_all())
        .and_then(|()| fs::rename(&draft, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&draft);
        FetchError::io("write", path, error)
    })
}

pub(crate) fn make_folder(path: &Path) -> Result<(), FetchError> {
    fs::create_dir_all(path).map_err(|error| FetchError::io("make", path, error))
}

/// Opens a file of the cache to write it, and makes it where there is none. A cache may be shared, and where others may
/// write a link could lead to anything that is this user's: none is followed.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let no_file = || io::Error::other("it is a link, or no file; remove it, and ask who put it there");
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = File::options();
    let opened = options.read(true).write(true).create(true).truncate(false).custom_flags(flags).open(path);
    match opened {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Ok(_) => Err(no_file()),
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Err(no_file()),
        Err(error) => Err(error),
    }
}

/// Makes what was renamed into a folder outlast a power cut.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// How much a file system has left for this user, asked of the nearest folder that exists.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, FetchError> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(path);
    let stat = rustix::fs::statvfs(there).map_err(|error| FetchError::io("look at", there, error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A name that nobody else uses.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    format!("{}-{nanoseconds}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory
    )
}

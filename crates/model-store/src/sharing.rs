//! Files that the store has already: the new version shares them, and only what is new is written.
//!
//! A manifest says which file of which version has the bytes. It is believed only as far as where to look:
//! what is put into the staging is read there, so rot does not spread.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use jiff::Timestamp;

use crate::digest::{Digest, hash_reader};
use crate::dir;
use crate::durable;
use crate::error::{IMPORT, StoreError};
use crate::import::{Tree, sort_out};
use crate::layout::{AgentDir, Place, Pointer};
use crate::list::AgentEntry;
use crate::manifest::{FileEntry, Generation};
use crate::names::{AgentName, PayloadPath, VersionName};
use crate::outside::dir_of;
use crate::payload::PayloadFile;
use crate::processes::FileId;
use crate::progress::Stopped;
use crate::quarantine;
use crate::read::read_manifest;
use crate::staging::Staging;
use crate::streams::{self, Begun, Stream, Work};
use crate::transfer::{Imported, regular};

/// How many files with the same bytes are remembered: one may be gone, unreadable, or have too many names.
const PLACES: usize = 4;
/// From so many bytes on a look at three places comes before reading the whole file.
const PROBE_FROM_BYTES: u64 = 1024 * 1024;
const PROBE_BYTES: usize = 4096;
/// With more different files of one size than this, reading the file is quicker than looking at all of them.
const PROBES: usize = 16;

/// A published file.
#[derive(Clone, Debug)]
struct Published {
    agent: AgentName,
    version: VersionName,
    path: PayloadPath,
}

/// How likely a version is to have what another one has, in the order of the fields.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Likely {
    is_own_agent: bool,
    created_at: Option<Timestamp>,
}

/// Published files of one size, by digest.
type SameSize = HashMap<Digest, Vec<Published>>;

/// Published files of some sizes.
#[derive(Default)]
struct KnownFiles {
    by_size: HashMap<u64, SameSize>,
    /// How many names each inode has in the store. One that has more could be written to from outside: it was
    /// hard-linked from there because somebody asked.
    names: HashMap<FileId, u64>,
}

/// Brings in what some version of the store has already; gives the rest.
pub(crate) fn share_known<'t>(
    staging: &Staging,
    tree: &'t Tree,
    files: Vec<&'t PayloadFile>,
    imported: &mut Imported,
) -> Result<Vec<&'t PayloadFile>, StoreError> {
    let sizes: HashSet<u64> = files.iter().map(|file| file.size_bytes).filter(|size| *size > 0).collect();
    let KnownFiles { by_size: known, names } = known_files(staging, &sizes);
    let (candidates, mut rest): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|file| known.contains_key(&file.size_bytes));
    if candidates.is_empty() {
        return Ok(rest);
    }
    let progress = staging.store.progress();
    // These bytes are counted when they are brought in.
    let uncounted = progress.uncounted();
    let digests = streams::run(&Comparing { staging, tree, known: &known }, &candidates, &uncounted)?;
    let mut found = Vec::new();
    for (file, digest) in candidates.into_iter().zip(digests) {
        match digest.and_then(|digest| Some((digest, known.get(&file.size_bytes)?.get(&digest)?))) {
            Some((digest, places)) => found.push((file, Found { path: &file.path, digest, places })),
            None => rest.push(file),
        }
    }
    let (files, found): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    let done = streams::run(&Placing::new(staging, Some(tree), names), &found, progress)?;
    rest.extend(sort_out(files, done, &mut imported.entries, &mut imported.shared_bytes));
    // In the order in which they came: the biggest first.
    rest.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.path.cmp(&b.path)));
    Ok(rest)
}

impl Staging {
    /// Brings in, of some files of a manifest, what any version of the store has already: by reflink, else by
    /// hard link, else by copy. Gives what it brought in. Rotten files are passed over, so what is given has
    /// the digest that was asked for.
    pub fn share_published(&self, wanted: &[FileEntry]) -> Result<Vec<FileEntry>, StoreError> {
        let sizes: HashSet<u64> = wanted.iter().map(|entry| entry.size).filter(|size| *size > 0).collect();
        let KnownFiles { by_size, names } = known_files(self, &sizes);
        let places = |entry: &FileEntry| by_size.get(&entry.size)?.get(&entry.sha256);
        let found = wanted.iter().filter_map(|entry| {
            Some(Found { path: &entry.path, digest: entry.sha256, places: places(entry)? })
        });
        let found: Vec<_> = found.collect();
        for one in &found {
            self.parent_of(one.path)?;
        }
        let placed = streams::run(&Placing::new(self, None, names), &found, self.store.progress())?;
        let mut shared = Vec::new();
        for (found, placed) in found.iter().zip(placed) {
            match placed {
                Some(entry) => shared.push(entry),
                None => shared.extend(self.copied_from(found)?),
            }
        }
        Ok(shared)
    }

    /// A copy of a published file that can get no other name; `None` where every place has other bytes.
    fn copied_from(&self, found: &Found<'_, '_>) -> Result<Option<FileEntry>, StoreError> {
        for place in found.places {
            let Ok(file) = place.open(self) else { continue };
            let entry = self.copy(file, &self.path().join(found.path.as_path()), found.path)?;
            if entry.sha256 == found.digest {
                return Ok(Some(entry));
            }
            durable::remove_beneath(self.dir(), found.path.as_path())
                .map_err(|e| self.failed("remove", found.path, e))?;
        }
        Ok(None)
    }
}

/// The published files of the given sizes. What cannot be read gives none: it is no reason not to publish.
fn known_files(staging: &Staging, sizes: &HashSet<u64>) -> KnownFiles {
    let mut known = KnownFiles::default();
    let store = &staging.store;
    let mut versions = Vec::new();
    for entry in store.agents().unwrap_or_default() {
        let AgentEntry::Agent(name) = entry else { continue };
        let Ok(Some(agent)) = AgentDir::open(store.root(), &name) else { continue };
        for Pointer { version, place } in agent.published().unwrap_or_default() {
            if place != Place::Versions || !matches!(quarantine::of(&agent, &version), Ok(None)) {
                continue;
            }
            let Ok(Some(handle)) = agent.open_version(&version, place) else { continue };
            let path = agent.version_path(&version, place);
            let Ok(Some(manifest)) = read_manifest(handle.as_fd(), &path) else { continue };
            if manifest.generation() != Generation::Current {
                continue;
            }
            let files = manifest.files.into_iter().filter(|file| sizes.contains(&file.size));
            let published = |file: FileEntry| {
                let (agent, version, path) = (name.clone(), version.clone(), file.path.clone());
                (file, Published { agent, version, path })
            };
            let files: Vec<_> = files.map(published).collect();
            for (file, _) in &files {
                if let Ok(stat) = dir::stat_payload(handle.as_fd(), file.path.as_path()) {
                    *known.names.entry(FileId::of(&stat)).or_default() += 1;
                }
            }
            if !files.is_empty() {
                let likely =
                    Likely { is_own_agent: name == *staging.agent(), created_at: manifest.created_at };
                versions.push((likely, files));
            }
        }
    }
    // The agent's own newest version is the likeliest to have the file, and to be in the page cache.
    versions.sort_by_key(|(likely, _)| Reverse(*likely));
    for (entry, published) in versions.into_iter().flat_map(|(_, files)| files) {
        let places = known.by_size.entry(entry.size).or_default().entry(entry.sha256).or_default();
        if places.len() < PLACES {
            places.push(published);
        }
    }
    known
}

/// Whether every name of a published file lies in the store. One that was hard-linked from outside has
/// another, under which somebody may write.
pub(crate) fn is_all_inside(staging: &Staging, file: &File) -> io::Result<bool> {
    let stat = rustix::fs::fstat(file)?;
    if stat.st_nlink == 1 {
        return Ok(true);
    }
    let sizes = HashSet::from([u64::try_from(stat.st_size).unwrap_or_default()]);
    let inside = known_files(staging, &sizes).names.get(&FileId::of(&stat)).copied().unwrap_or_default();
    Ok(stat.st_nlink <= inside)
}

impl Published {
    fn open(&self, staging: &Staging) -> Result<File, StoreError> {
        let missing = || StoreError::VersionNotFound {
            agent: self.agent.clone(),
            version: self.version.clone(),
            near: Vec::new(),
        };
        let agent = AgentDir::open(staging.store.root(), &self.agent)?.ok_or_else(missing)?;
        let version = agent.open_version(&self.version, Place::Versions)?.ok_or_else(missing)?;
        let path = agent.version_path(&self.version, Place::Versions).join(self.path.as_path());
        dir::open_payload(version.as_fd(), self.path.as_path())
            .and_then(regular)
            .map_err(|e| StoreError::io("read", &path, e))
    }
}

/// Reads the files that may be in the store.
struct Comparing<'a> {
    staging: &'a Staging,
    tree: &'a Tree,
    known: &'a HashMap<u64, SameSize>,
}

impl Comparing<'_> {
    /// Whether a published file of this size looks like this one.
    fn may_be_known(&self, source: &File, size_bytes: u64) -> io::Result<bool> {
        let Some(same_size) = self.known.get(&size_bytes) else { return Ok(false) };
        if size_bytes < PROBE_FROM_BYTES || same_size.len() > PROBES {
            return Ok(true);
        }
        let ours = probe(source, size_bytes)?;
        let looks_alike = |place: &Published| {
            let theirs = place.open(self.staging).map(|file| probe(&file, size_bytes));
            theirs.is_ok_and(|theirs| theirs.is_ok_and(|theirs| theirs == ours))
        };
        Ok(same_size.values().any(|places| places.iter().any(looks_alike)))
    }
}

/// A little of a file's beginning, middle and end.
fn probe(file: &File, size_bytes: u64) -> io::Result<[[u8; PROBE_BYTES]; 3]> {
    let last = size_bytes.saturating_sub(PROBE_BYTES as u64);
    let mut pieces = [[0; PROBE_BYTES]; 3];
    for (piece, offset) in pieces.iter_mut().zip([0, last / 2, last]) {
        file.read_exact_at(piece, offset)?;
    }
    Ok(pieces)
}

impl<'a> Work for Comparing<'a> {
    type Item = &'a PayloadFile;
    type Stream = File;
    type Done = Option<Digest>;

    fn begin(&self, file: &&'a PayloadFile) -> Result<Begun<File, Option<Digest>>, StoreError> {
        let source = self.tree.open(&file.path)?;
        // One that cannot be read says so when it is copied.
        if self.may_be_known(&source, file.size_bytes).unwrap_or(false) {
            return Ok(Begun::Stream(source));
        }
        Ok(Begun::Done(None))
    }

    fn end(
        &self,
        file: &&'a PayloadFile,
        _: File,
        read: io::Result<(Digest, u64)>,
    ) -> Result<Option<Digest>, StoreError> {
        let read = read.map_err(|e| StoreError::io(IMPORT, &self.tree.path_of(&file.path), e))?;
        Ok(Some(read.0))
    }
}

/// A file whose bytes some version is said to have.
struct Found<'t, 'k> {
    path: &'t PayloadPath,
    digest: Digest,
    places: &'k [Published],
}

/// Puts published files into the staging, and reads them there.
struct Placing<'t, 'k> {
    staging: &'k Staging,
    /// The folder outside that has the files; without one, a file keeps the `x` bits of the published one.
    tree: Option<&'t Tree>,
    /// As in [`KnownFiles`], and those that were made here.
    names: Mutex<HashMap<FileId, u64>>,
    /// Found out with the first file: it is true of the whole store.
    cannot_reflink: AtomicBool,
    /// The `r` bits that a file of this process gets.
    readable: OnceLock<u32>,
}

/// A published file that is in the staging now.
struct Placed {
    file: File,
    /// Which of the places it is from.
    place: usize,
    hard_linked: bool,
}

impl Stream for Placed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut self.file, buffer)
    }
}

impl<'t, 'k> Placing<'t, 'k> {
    fn new(staging: &'k Staging, tree: Option<&'t Tree>, names: HashMap<FileId, u64>) -> Self {
        let (cannot_reflink, readable) = (AtomicBool::new(false), OnceLock::new());
        Self { staging, tree, names: Mutex::new(names), cannot_reflink, readable }
    }

    /// Takes the file from the first place, from `first` on, that lets it be taken.
    fn place(&self, found: &Found<'_, '_>, first: usize) -> Result<Option<Placed>, StoreError> {
        let failed = |e: io::Error| self.staging.failed("share", found.path, e);
        let executable = |file: &File| -> Result<u32, StoreError> {
            Ok(rustix::fs::fstat(file).map_err(|e| failed(e.into()))?.st_mode & 0o111)
        };
        let outside = self.tree.map(|tree| executable(&tree.open(found.path)?)).transpose()?;
        for (place, published) in found.places.iter().enumerate().skip(first) {
            let Ok(published) = published.open(self.staging) else { continue };
            let executable = outside.map_or_else(|| executable(&published), Ok)?;
            if let Some(clone) = self.reflinked(&published, found.path, executable).map_err(failed)? {
                return Ok(Some(Placed { file: clone, place, hard_linked: false }));
            }
            if self.hard_linked(&published, found.path, executable).map_err(failed)? {
                return Ok(Some(Placed { file: published, place, hard_linked: true }));
            }
        }
        Ok(None)
    }

    fn reflinked(&self, published: &File, path: &PayloadPath, executable: u32) -> io::Result<Option<File>> {
        if self.cannot_reflink.load(Ordering::Relaxed) && self.readable.get().is_some() {
            return Ok(None);
        }
        let clone = durable::create_beneath(self.staging.dir(), path.as_path(), executable)?;
        let sealed = durable::seal_created(clone.as_fd(), executable);
        let shared = sealed.and_then(|stat| {
            self.readable.get_or_init(|| stat.st_mode & 0o444);
            durable::reflink(published, &clone)
        });
        if matches!(shared, Ok(true)) {
            return Ok(Some(clone));
        }
        self.cannot_reflink.store(true, Ordering::Relaxed);
        durable::remove_beneath(self.staging.dir(), path.as_path())?;
        shared.map(|_| None)
    }

    /// `false` where the file must not get another name (one of its names is outside), or cannot: too many have it (`EMLINK`), the kernel
    /// protects what is somebody else's (`EPERM`), its agent is on another file system (`EXDEV`).
    fn hard_linked(&self, published: &File, path: &PayloadPath, executable: u32) -> io::Result<bool> {
        let stat = rustix::fs::fstat(published)?;
        let mode = stat.st_mode;
        let readable = self.readable.get().copied().unwrap_or(0o444);
        let fits = mode & 0o7222 == 0
            && mode & readable == readable
            && mode & 0o111 == executable & ((mode & 0o444) >> 2);
        if !fits {
            return Ok(false);
        }
        let parent = dir_of(self.staging, path)?;
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = names.entry(FileId::of(&stat)).or_default();
        if stat.st_nlink > *inside {
            return Ok(false);
        }
        match durable::hard_link_open(published, parent.as_fd(), path.file_name()) {
            Ok(()) => {
                *inside += 1;
                Ok(true)
            }
            // It was made by somebody who knows of no store.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
            Err(_) => Ok(false),
        }
    }
}

impl<'t, 'k> Work for Placing<'t, 'k> {
    type Item = Found<'t, 'k>;
    type Stream = Placed;
    type Done = Option<FileEntry>;

    fn begin(&self, found: &Found<'t, 'k>) -> Result<Begun<Placed, Option<FileEntry>>, StoreError> {
        Ok(self.place(found, 0)?.map_or(Begun::Done(None), Begun::Stream))
    }

    fn end(
        &self,
        found: &Found<'t, 'k>,
        mut placed: Placed,
        mut read: io::Result<(Digest, u64)>,
    ) -> Result<Option<FileEntry>, StoreError> {
        let path = found.path;
        loop {
            match read {
                Ok((digest, _)) if digest == found.digest => {
                    return self.staging.note_hashed(path, &placed.file, read, placed.hard_linked).map(Some);
                }
                Err(e) if Stopped::is_in(&e) => return Err(StoreError::Interrupted),
                // Rotten, or not to be read: the version it is from has to be repaired, this one goes on.
                Ok(_) | Err(_) => {}
            }
            durable::remove_beneath(self.staging.dir(), path.as_path())
                .map_err(|e| self.staging.failed("remove", path, e))?;
            let Some(next) = self.place(found, placed.place + 1)? else { return Ok(None) };
            placed = next;
            read = hash_reader(&mut placed.file, self.staging.store.progress());
        }
    }
}

//! Models in folders: `DIR/org/name`, and `DIR/org/name@revision` for what is not `main`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::route::MAIN;
use crate::snapshot::{self, Entry, Place, Snapshot};

/// A folder with models in it.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    /// The models that are not for everybody: their files are in no other model.
    restricted: BTreeSet<String>,
    /// What files hash to, as long as they are the same: a file is hashed once.
    known: Mutex<HashMap<PathBuf, (State, Entry)>>,
}

/// What tells a file from what it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl State {
    fn of(metadata: &fs::Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { inode: metadata.ino(), size: metadata.len(), modified }
    }
}

impl Folder {
    pub(crate) fn open(root: &Path, restricted: BTreeSet<String>) -> io::Result<Self> {
        let root = root.canonicalize()?;
        if !root.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, "not a folder"));
        }
        Ok(Self { root, restricted, known: Mutex::default() })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Every model in it, sorted. A folder with files of its own is a model; one with only folders is an organisation.
    pub(crate) fn models(&self) -> io::Result<Vec<String>> {
        let mut models = Vec::new();
        for (name, path) in folders(&self.root)? {
            if has_files(&path)? {
                models.push(name);
                continue;
            }
            for (model, _) in folders(&path)? {
                models.push(format!("{name}/{model}"));
            }
        }
        models.retain(|model| !model.contains('@'));
        models.sort_unstable();
        Ok(models)
    }

    /// The revisions of a model, `main` first; empty if there is no such model. An organisation is none, and neither is
    /// a revision's folder: rules that name a model hold for every name its files can be asked for by.
    pub(crate) fn revisions(&self, id: &str) -> io::Result<Vec<String>> {
        if id.contains('@') {
            return Ok(Vec::new());
        }
        let (siblings, name) = match id.split_once('/') {
            Some((organisation, name)) => {
                let organisations = folders(&self.root)?;
                let found = organisations.into_iter().find(|(folder, _)| folder == organisation);
                let Some((_, path)) = found else { return Ok(Vec::new()) };
                (folders(&path)?, name)
            }
            None => (folders(&self.root)?, id),
        };
        let is_bare = !id.contains('/');
        let mut revisions = Vec::new();
        for (folder, path) in siblings {
            let (model, revision) = match folder.split_once('@') {
                Some((model, revision)) => (model, revision),
                None => (folder.as_str(), MAIN),
            };
            if model != name || revision.is_empty() || is_bare && !has_files(&path)? {
                continue;
            }
            if folder == name {
                revisions.insert(0, MAIN.to_owned());
            } else if revision != MAIN {
                revisions.push(revision.to_owned());
            }
        }
        Ok(revisions)
    }

    /// The model at a revision that [`revisions`](Self::revisions) names.
    pub(crate) fn snapshot(&self, id: &str, revision: &str) -> io::Result<Snapshot> {
        let folder = if revision == MAIN { id.to_owned() } else { format!("{id}@{revision}") };
        let folder = self.root.join(folder);
        let mut files = BTreeMap::new();
        self.walk(id, &folder, "", &mut files)?;
        Ok(Snapshot::of(files))
    }

    /// Whether a file belongs to a model other than `id` that is not for everybody.
    fn is_anothers(&self, id: &str, path: &Path) -> bool {
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        let mut model = String::new();
        for part in below.iter().take(2) {
            // A revision's folder is the model's too.
            let part = part.to_string_lossy();
            model.push_str(part.split('@').next().unwrap_or_default());
            // What is below a name is under that name's rules already.
            let is_own = model == id || id.starts_with(&format!("{model}/"));
            if !is_own && self.restricted.contains(&model) {
                return true;
            }
            model.push('/');
        }
        false
    }

    fn walk(
        &self,
        id: &str,
        folder: &Path,
        prefix: &str,
        files: &mut BTreeMap<String, Entry>,
    ) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            // `.git`, `.cache` and what an editor leaves.
            if name.starts_with('.') {
                continue;
            }
            // Links may lead to where else this server serves from, as in the cache of huggingface_hub; no further.
            let Ok(path) = entry.path().canonicalize() else { continue };
            if !path.starts_with(&self.root) || self.is_anothers(id, &path) {
                continue;
            }
            let metadata = path.metadata()?;
            let name = format!("{prefix}{name}");
            if metadata.is_dir() {
                if !entry.path().is_symlink() {
                    self.walk(id, &entry.path(), &format!("{name}/"), files)?;
                }
            } else if metadata.is_file() {
                files.insert(name.clone(), self.entry(&name, &path, &metadata)?);
            }
        }
        Ok(())
    }

    fn entry(&self, name: &str, path: &Path, metadata: &fs::Metadata) -> io::Result<Entry> {
        let state = State::of(metadata);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        if let Some((known, entry)) = known
            && known == state
        {
            return Ok(entry);
        }
        let mut file = fs::File::open(path)?;
        let place = Place::File(path.to_owned());
        let size = metadata.len();
        let entry = if snapshot::is_lfs(Path::new(name), size) {
            Entry::lfs(size, snapshot::sha256_of(&mut file)?, place)
        } else {
            Entry { size, oid: snapshot::blob_id_of(&mut file, size)?, sha256: None, place }
        };
        if State::of(&path.metadata()?) != state {
            let what = format!("{} changed while it was hashed", path.display());
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, what));
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(path.to_owned(), (state, entry.clone()));
        Ok(entry)
    }
}

/// The folders in a folder that have a name of letters and no dot before it.
fn folders(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with('.') && entry.file_type()?.is_dir() {
            found.push((name, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn has_files(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // What a file manager leaves in an organisation makes no model of it.
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && entry.path().is_file() {
            return Ok(true);
        }
    }
    Ok(false)
}

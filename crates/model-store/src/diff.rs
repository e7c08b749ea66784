//! What differs between two versions, by their manifests: no payload is read, unless a version of the old
//! helper has no list of its files.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::digest::Digest;
use crate::error::StoreError;
use crate::hash::hash_all;
use crate::manifest::{FileEntry, Generation, LinkEntry};
use crate::names::{AgentName, PayloadPath, VersionName};
use crate::payload::{Payload, PayloadProblem};
use crate::read::Current;
use crate::store::ModelStore;
use crate::transfer::Links;

/// A value of the old version and the one of the new version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sides<T> {
    /// In the old version.
    pub old: T,
    /// In the new one.
    pub new: T,
}

/// A version that was compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// The canonical agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
    /// Whether its files were hashed for this comparison, because it has no list of them. What is said of
    /// them is then true of now, not of when it was published.
    pub hashed_now: bool,
}

/// A file that is in both versions with other bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Where it is within the version.
    pub path: PayloadPath,
    /// Its length in bytes.
    pub size: Sides<u64>,
    /// The SHA-256 of its bytes.
    pub sha256: Sides<Digest>,
}

/// A file that is in both versions with the same bytes, under another path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileRename {
    /// Where it is.
    pub path: Sides<PayloadPath>,
    /// Its length in bytes.
    pub size: u64,
    /// The SHA-256 of its bytes.
    pub sha256: Digest,
}

/// A symbolic link that is in both versions with another target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkChange {
    /// Where it is within the version.
    pub path: PayloadPath,
    /// What it says.
    pub target: Sides<String>,
}

/// What differs between two versions; each list in the order of paths (of the new ones, for renamed files).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionDiff {
    /// What was compared.
    pub versions: Sides<Compared>,
    /// Files that only the new version has.
    pub added: Vec<FileEntry>,
    /// Files that only the old version has.
    pub removed: Vec<FileEntry>,
    /// Files that both have, with other bytes.
    pub changed: Vec<FileChange>,
    /// Files that are neither added nor removed but have another path. Empty files are not matched.
    pub renamed: Vec<FileRename>,
    /// Links that only the new version has.
    pub links_added: Vec<LinkEntry>,
    /// Links that only the old version has.
    pub links_removed: Vec<LinkEntry>,
    /// Links that both have, with another target.
    pub links_changed: Vec<LinkChange>,
    /// How many files are the same under the same path.
    pub unchanged_files: usize,
    /// How many bytes those have.
    pub unchanged_bytes: u64,
    /// What lies in a version hashed now and could not be compared, because no version may contain it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_compared: Vec<PayloadProblem>,
}

impl VersionDiff {
    /// Whether the payloads are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.removed.is_empty()
            && self.changed.is_empty()
            && self.renamed.is_empty()
            && self.links_added.is_empty()
            && self.links_removed.is_empty()
            && self.links_changed.is_empty()
            && self.not_compared.is_empty()
    }

    fn compare(&mut self, old: &Listing, new: &Listing) {
        let by_path = |list: &Listing| -> BTreeMap<PayloadPath, FileEntry> {
            list.files.iter().map(|file| (file.path.clone(), file.clone())).collect()
        };
        let mut gone = by_path(old);
        for file in &new.files {
            match gone.remove(&file.path) {
                None => self.added.push(file.clone()),
                Some(was) if was == *file => {
                    self.unchanged_files += 1;
                    self.unchanged_bytes = self.unchanged_bytes.saturating_add(file.size);
                }
                Some(was) => self.changed.push(FileChange {
                    path: was.path,
                    size: Sides { old: was.size, new: file.size },
                    sha256: Sides { old: was.sha256, new: file.sha256 },
                }),
            }
        }
        self.removed = gone.into_values().collect();
        self.find_renamed();
        self.compare_links(&old.links, &new.links);
    }

    /// Takes what is removed and added with the same bytes out of both lists, each file once.
    fn find_renamed(&mut self) {
        let mut homeless: HashMap<(Digest, u64), Vec<PayloadPath>> = HashMap::new();
        for file in self.removed.iter().rev().filter(|file| file.size > 0) {
            homeless.entry((file.sha256, file.size)).or_default().push(file.path.clone());
        }
        let mut moved = Vec::new();
        self.added.retain(|file| {
            let from = homeless.get_mut(&(file.sha256, file.size)).and_then(Vec::pop);
            let is_new = from.is_none();
            moved.extend(from.map(|from| FileRename {
                path: Sides { old: from, new: file.path.clone() },
                size: file.size,
                sha256: file.sha256,
            }));
            is_new
        });
        let found: HashSet<_> = moved.iter().map(|rename| &rename.path.old).collect();
        self.removed.retain(|file| !found.contains(&file.path));
        self.renamed = moved;
    }

    fn compare_links(&mut self, old: &[LinkEntry], new: &[LinkEntry]) {
        let mut gone: BTreeMap<_, _> = old.iter().map(|link| (&link.path, link)).collect();
        for link in new {
            match gone.remove(&link.path) {
                None => self.links_added.push(link.clone()),
                Some(was) if was.target == link.target => {}
                Some(was) => self.links_changed.push(LinkChange {
                    path: link.path.clone(),
                    target: Sides { old: was.target.clone(), new: link.target.clone() },
                }),
            }
        }
        self.links_removed = gone.into_values().cloned().collect();
    }
}

/// What a version is made of.
struct Listing {
    files: Vec<FileEntry>,
    links: Vec<LinkEntry>,
    problems: Vec<PayloadProblem>,
    hashed_now: bool,
}

impl Listing {
    fn compared(&self, version: &Current) -> Compared {
        Compared {
            agent: version.agent().clone(),
            version: version.version().clone(),
            hashed_now: self.hashed_now,
        }
    }
}

impl ModelStore {
    /// What differs between two versions, of one agent or of two.
    ///
    /// Their manifests are compared, so this costs nothing and says nothing about damage; that is
    /// [`verify`](Self::verify). A version of the old Python helper has no list of files: its files are read
    /// and hashed now. A version of a newer format cannot be compared, which is an error.
    pub fn diff(&self, old: &Current, new: &Current) -> Result<VersionDiff, StoreError> {
        let (mut was, mut is) = (self.listing(old)?, self.listing(new)?);
        let mut found = VersionDiff {
            versions: Sides { old: was.compared(old), new: is.compared(new) },
            added: Vec::new(),
            removed: Vec::new(),
            changed: Vec::new(),
            renamed: Vec::new(),
            links_added: Vec::new(),
            links_removed: Vec::new(),
            links_changed: Vec::new(),
            unchanged_files: 0,
            unchanged_bytes: 0,
            not_compared: Vec::new(),
        };
        found.compare(&was, &is);
        found.not_compared.append(&mut was.problems);
        found.not_compared.append(&mut is.problems);
        Ok(found)
    }

    fn listing(&self, version: &Current) -> Result<Listing, StoreError> {
        let manifest = version.manifest();
        let listed = !manifest.files.is_empty();
        match manifest.generation() {
            Generation::Newer(format) => Err(StoreError::NewerFormat {
                agent: version.agent().clone(),
                version: version.version().clone(),
                format,
            }),
            Generation::Legacy if !listed => {
                let payload = Payload::scan(version.handle(), Links::Keep)
                    .map_err(|e| StoreError::io("read", version.path(), e))?;
                let files = hash_all(version.handle(), version.path(), payload.files, self.progress())?;
                Ok(Listing { files, links: payload.links, problems: payload.problems, hashed_now: true })
            }
            // A legacy version without any manifest was hashed when it was opened.
            generation => Ok(Listing {
                files: manifest.files.clone(),
                links: manifest.links.clone(),
                problems: Vec::new(),
                hashed_now: generation == Generation::Legacy,
            }),
        }
    }
}

//! Whether a version still is what was published.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::digest::{Digest, checksum_of_listing};
use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::hash::hash_each;
use crate::legacy;
use crate::manifest::{FileEntry, Generation, LinkEntry, Manifest, saturating_sum};
use crate::names::{AgentName, PayloadPath, VersionName};
use crate::payload::{Payload, PayloadProblem};
use crate::read::{Current, read_manifest};
use crate::store::ModelStore;
use crate::transfer::Links;

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The canonical agent.
    pub agent: AgentName,
    /// The version.
    pub version: VersionName,
    /// Whether the checksum is one of the old Python helper, which covers names and bytes but depends on the
    /// order in which the file system lists directories.
    pub legacy: bool,
    /// The checksum of the files as they are now.
    pub checksum: Digest,
    /// The checksum the manifest promises; `None` for a legacy version without a manifest.
    pub expected_checksum: Option<Digest>,
    /// How many files were read.
    pub files_checked: usize,
    /// How many bytes were read.
    pub bytes: u64,
    /// Everything that is not as published, in the order of paths.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether the version is exactly what was published.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.findings.is_empty()
    }
}

/// One difference between a version and its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Finding {
    /// The manifest lists a file that is not there.
    Missing {
        /// Which.
        path: PayloadPath,
    },
    /// A file is there that the manifest does not list.
    Unlisted {
        /// Which.
        path: PayloadPath,
    },
    /// A file has other bytes than were published.
    Changed {
        /// Which.
        path: PayloadPath,
        /// Its size when it was published.
        expected_bytes: u64,
        /// Its size now.
        found_bytes: u64,
    },
    /// A file could not be read.
    Unreadable {
        /// Which.
        path: PayloadPath,
        /// What the system said.
        why: String,
        /// Whether it was this process that might not, or could not, and not the file's fault.
        denied: bool,
    },
    /// A symbolic link is missing, or not the one that was published.
    LinkChanged {
        /// Which.
        path: PayloadPath,
    },
    /// A symbolic link is there that the manifest does not list.
    UnlistedLink {
        /// Which.
        path: PayloadPath,
    },
    /// A file that somebody may write to, or that the store's group may not read, or a directory that the
    /// group may not change.
    WrongMode {
        /// Which; `.` is the version itself.
        path: String,
        /// Its permissions, in octal.
        mode: String,
    },
    /// A file or directory that belongs to another group than the store.
    WrongGroup {
        /// Which; `.` is the version itself.
        path: String,
        /// Its group's number.
        group: u32,
        /// The store's.
        expected: u32,
    },
    /// Something that no version may contain.
    Forbidden {
        /// What, and why.
        #[serde(flatten)]
        problem: PayloadProblem,
    },
    /// The manifest contradicts itself or its place in the store.
    Manifest {
        /// How.
        what: String,
    },
    /// The checksum differs.
    Checksum {
        /// As published.
        expected: Digest,
        /// Of the files as they are.
        found: Digest,
    },
}

impl Finding {
    /// Whether it is about a mode or a group, and not about what was published.
    #[must_use]
    pub fn is_of_access(&self) -> bool {
        matches!(self, Self::WrongMode { .. } | Self::WrongGroup { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { path } => write!(f, "{path} is missing"),
            Self::Unlisted { path } => write!(f, "{path} is not in the manifest"),
            Self::Changed { path, expected_bytes, found_bytes } if expected_bytes == found_bytes => {
                write!(f, "{path} has other bytes than were published")
            }
            Self::Changed { path, expected_bytes, found_bytes } => {
                write!(f, "{path} has {found_bytes} bytes, published were {expected_bytes}")
            }
            Self::Unreadable { path, why, .. } => write!(f, "{path} could not be read: {why}"),
            Self::LinkChanged { path } => write!(f, "{path} is not the symbolic link that was published"),
            Self::UnlistedLink { path } => write!(f, "{path} is a symbolic link that is not in the manifest"),
            Self::WrongMode { path, mode } => write!(f, "{path} has mode {mode}"),
            Self::WrongGroup { path, group, expected } => {
                write!(f, "{path} belongs to group {group}, the store to {expected}")
            }
            Self::Forbidden { problem } => problem.fmt(f),
            Self::Manifest { what } => write!(f, "manifest.json {what}"),
            Self::Checksum { expected, found } => {
                write!(f, "the checksum is {found}, published was {expected}")
            }
        }
    }
}

impl ModelStore {
    /// Reads every file of a version and compares it with the manifest.
    ///
    /// Damage is not an error but a [`Finding`]. An error is a version that is not there, whose manifest
    /// cannot be read, or is of a newer format.
    pub fn verify(&self, agent: &AgentName, version: &VersionName) -> Result<Report, StoreError> {
        let found = self.require_version(agent, version)?;
        match found.manifest().generation() {
            Generation::Current => self.verify_listed(&found),
            Generation::Legacy => self.verify_legacy(&found),
            Generation::Newer(format) => Err(StoreError::NewerFormat {
                agent: found.agent().clone(),
                version: found.version().clone(),
                format,
            }),
        }
    }

    fn verify_listed(&self, found: &Current) -> Result<Report, StoreError> {
        let manifest = found.manifest();
        // What is being read must not be retired meanwhile; without a lease, as on some file systems, it may.
        let _lease = found.lease().ok();
        let payload = Payload::scan(found.handle(), Links::Keep)
            .map_err(|e| StoreError::io("read", found.path(), e))?;
        let access = self.compare_access(found, &payload)?;
        let read = hash_each(found.handle(), found.path(), payload.files, self.progress())?;
        let mut findings = Findings::default();
        let mut entries = Vec::with_capacity(read.len());
        for (path, hashed) in read {
            match hashed {
                Ok(entry) => entries.push(entry),
                Err(StoreError::Io { source, .. }) => {
                    findings.add(
                        path.as_str(),
                        Finding::Unreadable {
                            path: path.clone(),
                            why: source.to_string(),
                            denied: is_denied(&source),
                        },
                    );
                }
                Err(other) => return Err(other),
            }
        }
        for problem in payload.problems {
            findings.add(problem.path().to_owned(), Finding::Forbidden { problem });
        }
        findings.compare_place(found);
        findings.compare_files(manifest, &entries);
        findings.access = access;
        findings.compare_links(&manifest.links, &payload.links);
        let checksum = checksum_of_listing(&entries);
        findings.compare_checksum(manifest.checksum, checksum);
        Ok(Report {
            agent: found.agent().clone(),
            version: found.version().clone(),
            legacy: false,
            checksum,
            expected_checksum: Some(manifest.checksum),
            files_checked: entries.len(),
            bytes: saturating_sum(entries.iter().map(|entry| entry.size)),
            findings: findings.sorted(),
        })
    }

    /// Modes and groups. A group is compared where the store's root hands its own down.
    fn compare_access(&self, found: &Current, payload: &Payload) -> Result<Vec<Finding>, StoreError> {
        let failed = |e: rustix::io::Errno| StoreError::io("look at", found.path(), e);
        let root = rustix::fs::stat(self.root()).map_err(failed)?;
        let hands_down = root.st_mode & 0o2000 != 0;
        let mut findings = Vec::new();
        let mut check = |path: &str, mode: u32, group: u32, is_right: bool| {
            if !is_right {
                findings
                    .push(Finding::WrongMode { path: path.to_owned(), mode: format!("{:o}", mode & 0o7777) });
            }
            if hands_down && group != root.st_gid {
                let expected = root.st_gid;
                findings.push(Finding::WrongGroup { path: path.to_owned(), group, expected });
            }
        };
        let listed = payload.files.iter().filter(|file| found.manifest().file(&file.path).is_some());
        for file in listed {
            check(file.path.as_str(), file.mode, file.group, durable::is_sealed_mode(file.mode));
        }
        let own = rustix::fs::fstat(found.handle()).map_err(failed)?;
        check(".", own.st_mode, own.st_gid, durable::is_dir_mode(own.st_mode));
        for path in &payload.dirs {
            // One that is gone by now is missed by its files.
            if let Ok(stat) = dir::stat_payload(found.handle(), path.as_path()) {
                check(path.as_str(), stat.st_mode, stat.st_gid, durable::is_dir_mode(stat.st_mode));
            }
        }
        Ok(findings)
    }

    fn verify_legacy(&self, found: &Current) -> Result<Report, StoreError> {
        let tally = legacy::tally(found.handle(), found.path(), self.progress())?;
        let published = read_manifest(found.handle(), found.path())?;
        let mut findings = Findings::default();
        match &published {
            Some(manifest) => {
                findings.compare_place(found);
                findings.compare_checksum(manifest.checksum, tally.checksum);
            }
            None => findings.manifest("is missing, so there is nothing to compare with"),
        }
        Ok(Report {
            agent: found.agent().clone(),
            version: found.version().clone(),
            legacy: true,
            checksum: tally.checksum,
            expected_checksum: published.map(|manifest| manifest.checksum),
            files_checked: tally.files,
            bytes: tally.bytes,
            findings: findings.sorted(),
        })
    }
}

/// Whether a failure is this process's and says nothing about the file: it may not read it, or has no room
/// for one more.
fn is_denied(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let own = [Errno::ACCESS, Errno::PERM, Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    own.iter().any(|own| error.raw_os_error() == Some(own.raw_os_error()))
}

/// Findings by path; those about the whole version come last.
#[derive(Default)]
struct Findings {
    by_path: BTreeMap<String, Finding>,
    /// Modes and groups, which come beside what is wrong with the bytes.
    access: Vec<Finding>,
    overall: Vec<Finding>,
}

impl Findings {
    /// Notes what is wrong with a path, unless something is noted already.
    fn add(&mut self, path: impl Into<String>, finding: Finding) {
        self.by_path.entry(path.into()).or_insert(finding);
    }

    fn manifest(&mut self, what: impl Into<String>) {
        self.overall.push(Finding::Manifest { what: what.into() });
    }

    fn compare_place(&mut self, found: &Current) {
        let manifest = found.manifest();
        if manifest.version != *found.version() {
            self.manifest(format!("is of version {}", manifest.version));
        }
        if let Some(agent) = manifest.agent.as_ref().filter(|agent| *agent != found.agent()) {
            self.manifest(format!("is of agent {agent}"));
        }
        if !manifest.files.is_empty() && checksum_of_listing(&manifest.files) != manifest.checksum {
            self.manifest("has a checksum that its own list of files does not add up to");
        }
    }

    fn compare_files(&mut self, manifest: &Manifest, found: &[FileEntry]) {
        let there: BTreeMap<_, _> = found.iter().map(|entry| (&entry.path, entry)).collect();
        for entry in &manifest.files {
            let path = entry.path.clone();
            match there.get(&path) {
                None => self.add(entry.path.as_str(), Finding::Missing { path }),
                Some(now) if *now != entry => {
                    let (expected_bytes, found_bytes) = (entry.size, now.size);
                    self.add(entry.path.as_str(), Finding::Changed { path, expected_bytes, found_bytes });
                }
                Some(_) => {}
            }
        }
        for entry in found.iter().filter(|entry| manifest.file(&entry.path).is_none()) {
            self.add(entry.path.as_str(), Finding::Unlisted { path: entry.path.clone() });
        }
    }

    fn compare_links(&mut self, published: &[LinkEntry], found: &[LinkEntry]) {
        for link in published.iter().filter(|link| !found.contains(link)) {
            self.add(link.path.as_str(), Finding::LinkChanged { path: link.path.clone() });
        }
        let is_listed = |path: &PayloadPath| published.iter().any(|link| link.path == *path);
        for link in found.iter().filter(|link| !is_listed(&link.path)) {
            self.add(link.path.as_str(), Finding::UnlistedLink { path: link.path.clone() });
        }
    }

    fn compare_checksum(&mut self, expected: Digest, found: Digest) {
        if expected != found {
            self.overall.push(Finding::Checksum { expected, found });
        }
    }

    fn sorted(self) -> Vec<Finding> {
        self.by_path.into_values().chain(self.access).chain(self.overall).collect()
    }
}

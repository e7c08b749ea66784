//! Whether a store and its host are as they should be, and putting right what can be.

mod agent;
mod fix;
mod host;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use serde::Serialize;

use crate::dir;
use crate::error::StoreError;
use crate::human::with_causes;
use crate::layout::{self, AgentDir};
use crate::list::AgentEntry;
use crate::names::AgentName;
use crate::store::ModelStore;

/// What [`ModelStore::doctor`] does about what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doctoring {
    /// Look, and change nothing.
    Look,
    /// Put right what can be put right without losing anything.
    Fix,
}

/// How much a complaint matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// It works, but will not always.
    Warning,
    /// Something does not work now.
    Error,
}

/// Whether a complaint can be put right here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Fix {
    /// By a person only: the advice says how.
    ByHand,
    /// By [`Doctoring::Fix`].
    Possible,
    /// It was.
    Done,
    /// It was tried.
    Failed {
        /// What happened.
        why: String,
    },
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// Which of the [`checks`](Diagnosis::checks).
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// Where.
    pub subject: PathBuf,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: Option<String>,
    /// Whether that was, or can be, done here.
    pub fix: Fix,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Every check that was made.
    pub checks: Vec<&'static str>,
    /// What is wrong, the store and its host first, then by agent.
    pub complaints: Vec<Complaint>,
}

impl Diagnosis {
    /// The worst that is left; `None` where all is well or was put right.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        let left = self.complaints.iter().filter(|complaint| complaint.fix != Fix::Done);
        left.map(|complaint| complaint.severity).max()
    }
}

/// Every check, in the order in which they are made.
const CHECKS: &[&str] = &[
    ROOT,
    FILE_SYSTEM,
    SPACE,
    CLOCK,
    ALIASES,
    DIRECTORIES,
    POINTERS,
    LEFTOVERS,
    HISTORY,
    VERSIONS,
    READ_ONLY,
    OLD_LAYOUT,
    QUARANTINE,
    SIGNATURES,
];
const ROOT: &str = "root";
const FILE_SYSTEM: &str = "file-system";
const SPACE: &str = "space";
const CLOCK: &str = "clock";
const ALIASES: &str = "aliases";
const DIRECTORIES: &str = "directories";
const POINTERS: &str = "pointers";
const LEFTOVERS: &str = "leftovers";
const HISTORY: &str = "history";
const VERSIONS: &str = "versions";
const READ_ONLY: &str = "read-only";
const OLD_LAYOUT: &str = "old-layout";
const QUARANTINE: &str = "quarantine";
const SIGNATURES: &str = "signatures";

impl ModelStore {
    /// Looks at the store, its agents and the host they are on. No file is read but small ones: that the bytes
    /// are right is for [`verify`](Self::verify).
    pub fn doctor(&self, doctoring: Doctoring) -> Result<Diagnosis, StoreError> {
        let found = self.look()?;
        let complaints = match doctoring {
            Doctoring::Look => found,
            Doctoring::Fix => self.fix(found)?,
        };
        Ok(Diagnosis { checks: CHECKS.to_vec(), complaints })
    }

    /// What is wrong with the pointers of an agent: each that is no link, leads nowhere, or leads out.
    pub fn check_pointers(&self, agent: &AgentName) -> Result<Vec<Complaint>, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), agent)? else {
            return Err(self.agent_not_found(agent));
        };
        let mut ward = Ward::default();
        agent::pointers(&agent, &mut ward);
        Ok(ward.complaints)
    }

    fn look(&self) -> Result<Vec<Complaint>, StoreError> {
        let mut ward = Ward::default();
        host::examine(self, &mut ward)?;
        self.aliases(&mut ward)?;
        for entry in self.agents()? {
            match entry {
                AgentEntry::Alias { .. } => {}
                AgentEntry::Agent(name) => match AgentDir::open(self.root(), &name) {
                    Ok(Some(agent)) => agent::examine(self, &agent, &mut ward),
                    // Gone since it was listed.
                    Ok(None) => {}
                    Err(e) => {
                        ward.error(DIRECTORIES, &self.root().join(name.as_str()), &with_causes(&e));
                    }
                },
            }
        }
        Ok(ward.complaints)
    }

    /// Every link beside the agents leads to one of them.
    fn aliases(&self, ward: &mut Ward) -> Result<(), StoreError> {
        let root = layout::open_root(self.root())?;
        let entries =
            dir::sorted_entries(root.as_fd()).map_err(|e| StoreError::io("list", self.root(), e))?;
        for entry in entries.into_iter().filter(|entry| entry.kind == FileType::Symlink) {
            let name = entry.name.to_string_lossy();
            let what = match AgentName::try_from(&*name).map_err(StoreError::from) {
                Ok(alias) => match AgentDir::open(self.root(), &alias) {
                    Ok(Some(_)) => continue,
                    Ok(None) => with_causes(&self.agent_not_found(&alias)),
                    Err(e) => with_causes(&e),
                },
                Err(e) => with_causes(&e),
            };
            ward.warn(ALIASES, &self.root().join(&*name), what)
                .advise("remove the link, or point it at an agent");
        }
        Ok(())
    }

    /// Puts right what can be, and looks again: what is not found any more was put right.
    fn fix(&self, found: Vec<Complaint>) -> Result<Vec<Complaint>, StoreError> {
        if !found.iter().any(|complaint| complaint.fix == Fix::Possible) {
            return Ok(found);
        }
        let mut failures = fix::root(self);
        for entry in self.agents()? {
            let AgentEntry::Agent(name) = entry else { continue };
            match self.with_lock(&name, |agent| Ok(fix::agent(self, agent))) {
                Ok(failed) => failures.extend(failed),
                Err(StoreError::Interrupted) => return Err(StoreError::Interrupted),
                Err(e) => failures.push((self.root().join(name.as_str()), with_causes(&e))),
            }
        }
        let left = self.look()?;
        let settle = |complaint: Complaint| {
            // Of ten files one may be left: the words differ.
            let same = |other: &Complaint| is_same(other, &complaint);
            let fix = match complaint.fix {
                Fix::Possible if left.iter().any(same) => Fix::Failed { why: why(&complaint, &failures) },
                Fix::Possible => Fix::Done,
                fix => fix,
            };
            Complaint { fix, ..complaint }
        };
        let new: Vec<Complaint> =
            left.iter().filter(|one| !found.iter().any(|other| is_same(one, other))).cloned().collect();
        Ok(found.into_iter().map(settle).chain(new).collect())
    }
}

fn is_same(a: &Complaint, b: &Complaint) -> bool {
    (a.check, a.severity, &a.subject) == (b.check, b.severity, &b.subject)
}

/// The failure that explains a complaint best: at its subject, else above it, else in it.
fn why(complaint: &Complaint, failures: &[(PathBuf, String)]) -> String {
    let at = failures.iter().find(|(path, _)| *path == complaint.subject);
    let above = || failures.iter().find(|(path, _)| complaint.subject.starts_with(path));
    let within = || failures.iter().find(|(path, _)| path.starts_with(&complaint.subject));
    at.or_else(above).or_else(within).map_or_else(|| "it is still so".to_owned(), |(_, why)| why.clone())
}

/// Where complaints are collected.
#[derive(Default)]
struct Ward {
    complaints: Vec<Complaint>,
}

impl Ward {
    fn complain(
        &mut self,
        check: &'static str,
        severity: Severity,
        subject: &Path,
        what: impl Into<String>,
    ) -> &mut Complaint {
        self.complaints.push(Complaint {
            check,
            severity,
            subject: subject.to_owned(),
            what: what.into(),
            advice: None,
            fix: Fix::ByHand,
        });
        let last = self.complaints.len() - 1;
        &mut self.complaints[last]
    }

    fn note(&mut self, check: &'static str, subject: &Path, what: impl Into<String>) -> &mut Complaint {
        self.complain(check, Severity::Note, subject, what)
    }

    fn warn(&mut self, check: &'static str, subject: &Path, what: impl Into<String>) -> &mut Complaint {
        self.complain(check, Severity::Warning, subject, what)
    }

    fn error(&mut self, check: &'static str, subject: &Path, what: &str) -> &mut Complaint {
        self.complain(check, Severity::Error, subject, what)
    }
}

impl Complaint {
    fn advise(&mut self, advice: impl Into<String>) -> &mut Self {
        self.advice = Some(advice.into());
        self
    }

    fn fixable(&mut self) {
        self.fix = Fix::Possible;
        self.advice.get_or_insert_with(|| "`model-store doctor --fix` puts it right".to_owned());
    }
}

/// The root's group, which everything in the store should have, where the root hands it down.
fn expected_group(store: &ModelStore) -> Option<u32> {
    let root = layout::open_root(store.root())
        .and_then(|root| rustix::fs::fstat(root).map_err(|e| StoreError::io("look at", store.root(), e)));
    root.ok().filter(|stat| stat.st_mode & 0o2000 != 0).map(|stat| stat.st_gid)
}

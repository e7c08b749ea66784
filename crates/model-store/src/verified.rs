//! When a version was verified last, and with what result: what a schedule of verifications goes by.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::holder::now;
use crate::layout::{AgentDir, VERIFIED_DIR};
use crate::names::{AgentName, VersionName};
use crate::notes;
use crate::store::ModelStore;
use crate::verify::{Finding, Report};

/// The last verification of a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// When it ended.
    pub at: Timestamp,
    /// Whether the version was what was published.
    pub ok: bool,
    /// How many bytes were read.
    pub bytes: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How many differences were found.
    pub findings: usize,
    /// Whether all of them are modes and groups, so that names, bytes and links are those that were published.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_access: bool,
}

impl ModelStore {
    /// Remembers a verification that took so long. It needs no lock; a store that is mounted read-only
    /// remembers nothing, and says so by an error that a caller may pass over.
    pub fn note_check(&self, report: &Report, seconds: f64) -> Result<(), StoreError> {
        let Some(agent) = AgentDir::open(self.root(), &report.agent)? else {
            return Err(self.agent_not_found(&report.agent));
        };
        let check = Check {
            at: now(),
            ok: report.is_ok(),
            bytes: report.bytes,
            seconds,
            findings: report.findings.len(),
            only_access: !report.is_ok() && report.findings.iter().all(Finding::is_of_access),
        };
        notes::write(&agent, VERIFIED_DIR, &report.version, &check)
    }

    /// The last verification of a version; `None` where there was none, or its note cannot be read any more.
    pub fn last_check(&self, agent: &AgentName, version: &VersionName) -> Result<Option<Check>, StoreError> {
        let Some(agent) = AgentDir::open(self.root(), agent)? else { return Ok(None) };
        Ok(notes::read(agent.handle(), VERIFIED_DIR, version).unwrap_or_default())
    }
}

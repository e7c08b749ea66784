//! What `verify` and `repair` have in common: which versions, what was found, and what is done next.

use std::io::Write;

use model_store::{
    AgentName, Complaint, Digest, Finding, Mended, ModelStore, Repair, Repaired, Report, Selector, Severity,
    SignatureState, StoreError, VerifyingKey, VersionName, exit,
};
use serde::Serialize;

use crate::args;
use crate::{human, out};

/// The versions to read.
pub(crate) type Targets = Vec<(AgentName, VersionName)>;

/// What was found out about a version, or about the pointers of an agent.
#[derive(Serialize)]
pub(crate) struct Verdict {
    agent: AgentName,
    /// `None` where it is the agent itself that could not be read.
    version: Option<VersionName>,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<Digest>,
    files_checked: usize,
    bytes: u64,
    legacy: bool,
    findings: Vec<Finding>,
    /// What was done about it.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    mending: Option<Mending>,
    /// How it stands with the keys that are trusted, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<SignatureState>,
    /// Why it could not be verified at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    exit_code: u8,
}

#[derive(Serialize)]
struct Mending {
    repairs: Vec<Repair>,
    problems: Vec<String>,
    quarantined: bool,
    released: bool,
}

/// The versions that are meant, and the verdicts on agents and pointers that cannot be read: they do not keep
/// the others from being verified.
pub(crate) fn targets(
    store: &ModelStore,
    agent: Option<&AgentName>,
    version: Option<&Selector>,
) -> Result<(Targets, Vec<Verdict>), StoreError> {
    if let (Some(agent), Some(selector)) = (agent, version) {
        let version = match (store.select(agent, selector), selector) {
            (Ok(found), _) => found.version().clone(),
            // Damage to the manifest is a verdict; a version that is not there is a mistake.
            (Err(StoreError::Corrupt { .. }), Selector::Named(version)) => version.clone(),
            (Err(e), _) => return Err(e),
        };
        return Ok((vec![(agent.clone(), version)], Vec::new()));
    }
    let agents = match agent {
        Some(agent) => vec![agent.clone()],
        None => args::every_agent(store)?,
    };
    let (mut targets, mut verdicts) = (Vec::new(), Vec::new());
    for name in agents {
        match store.versions(&name) {
            Ok(versions) => {
                verdicts.extend(lost_pointers(store, &name));
                targets.extend(versions.into_iter().map(|version| (name.clone(), version)));
            }
            // One that was asked for by name and is not there is a mistake.
            Err(e @ StoreError::AgentNotFound { .. }) if agent.is_some() => return Err(e),
            Err(e) => verdicts.push(Verdict::failed(name, None, &e)),
        }
    }
    Ok((targets, verdicts))
}

/// `current` and refs that lead nowhere, or out of the agent.
fn lost_pointers(store: &ModelStore, agent: &AgentName) -> Vec<Verdict> {
    match store.check_pointers(agent) {
        Ok(complaints) => {
            let lost = complaints.iter().filter(|complaint| complaint.severity == Severity::Error);
            lost.map(|complaint| Verdict::lost(agent.clone(), complaint)).collect()
        }
        Err(e) => vec![Verdict::failed(agent.clone(), None, &e)],
    }
}

/// About how many bytes there are to read, for the progress bar only.
pub(crate) fn size_of(store: &ModelStore, targets: &Targets) -> u64 {
    let size = |(agent, version): &(AgentName, VersionName)| {
        let found = store.get_version(agent, version).ok().flatten();
        found.map_or(0, |found| found.manifest().size_bytes())
    };
    targets.iter().map(size).fold(0, u64::saturating_add)
}

/// The worst of all: damage outweighs whatever else there is.
pub(crate) fn exit_code(verdicts: &[Verdict]) -> u8 {
    human::worst(verdicts.iter().map(|verdict| verdict.exit_code))
}

impl Verdict {
    pub(crate) fn of(report: Report) -> Self {
        let ok = report.is_ok();
        Self {
            agent: report.agent,
            version: Some(report.version),
            ok,
            checksum: Some(report.checksum),
            files_checked: report.files_checked,
            bytes: report.bytes,
            legacy: report.legacy,
            findings: report.findings,
            mending: None,
            signature: None,
            error: None,
            exit_code: if ok { exit::OK } else { exit::CORRUPT },
        }
    }

    pub(crate) fn repaired(repaired: Repaired) -> Self {
        let Repaired { after, repairs, problems, quarantined, released, .. } = repaired;
        Self { mending: Some(Mending { repairs, problems, quarantined, released }), ..Self::of(after) }
    }

    pub(crate) fn failed(agent: AgentName, version: Option<VersionName>, error: &StoreError) -> Self {
        Self::unread(agent, version, human::with_causes(error), error.exit_code())
    }

    fn lost(agent: AgentName, pointer: &Complaint) -> Self {
        let advice = pointer.advice.as_ref().map_or_else(String::new, |advice| format!("; {advice}"));
        let error = format!("{}: {}{advice}", pointer.subject.display(), pointer.what);
        Self::unread(agent, None, error, exit::CORRUPT)
    }

    fn unread(agent: AgentName, version: Option<VersionName>, error: String, exit_code: u8) -> Self {
        Self {
            agent,
            version,
            ok: false,
            checksum: None,
            files_checked: 0,
            bytes: 0,
            legacy: false,
            findings: Vec::new(),
            mending: None,
            signature: None,
            error: Some(error),
            exit_code,
        }
    }

    /// The same, with how the version stands with some keys.
    pub(crate) fn with_signature(self, store: &ModelStore, trusted: &[VerifyingKey]) -> Self {
        let Some(version) = &self.version else { return self };
        let state = store
            .require_version(&self.agent, version)
            .and_then(|found| found.signature_state(trusted))
            .unwrap_or_else(|e| SignatureState::Bad { reason: human::with_causes(&e) });
        let exit_code = match state {
            SignatureState::Signed { .. } => self.exit_code,
            // Damage outweighs that.
            _ if self.exit_code == exit::OK => exit::REFUSED,
            _ => self.exit_code,
        };
        Self { signature: Some(state), exit_code, ..self }
    }

    /// What is to be said of the signature, and done about it.
    fn about_signature(&self) -> Vec<String> {
        let (what, Some(version)) = (self.signature.as_ref(), &self.version) else { return Vec::new() };
        let sign = format!("next       model-store sign {} {version} --key KEY", self.agent);
        match what {
            None => Vec::new(),
            Some(SignatureState::Signed { key }) => vec![format!("signed with key {key}")],
            Some(SignatureState::Unsigned) => vec!["it is not signed".to_owned(), sign],
            Some(SignatureState::Bad { reason }) => vec![format!("its signature {reason}"), sign],
        }
    }

    /// Says what was found, what was done, and what is to be done next.
    pub(crate) fn print(&self, store: &ModelStore) -> anyhow::Result<()> {
        let mut out = out::stdout();
        let name = match &self.version {
            Some(version) => format!("{}/{version}", self.agent),
            None => self.agent.to_string(),
        };
        if let Some(error) = &self.error {
            writeln!(out, "{}  {name}   {}", out::styled(out::ACT, "not verified"), human::harmless(error))?;
            return Ok(());
        }
        let (files, bytes) = (human::count(self.files_checked, "file"), model_store::human_size(self.bytes));
        let legacy = if self.legacy { ", by the old helper's checksum" } else { "" };
        let mended = self.mending.as_ref().is_some_and(|mending| !mending.repairs.is_empty());
        let signed = matches!(self.signature, None | Some(SignatureState::Signed { .. }));
        let word = match (self.ok, mended) {
            (true, _) if !signed => out::styled(out::ACT, "refused"),
            (true, false) => out::styled(out::OK, "ok     "),
            (true, true) => out::styled(out::OK, "mended "),
            (false, _) => out::styled(out::ACT, "corrupt"),
        };
        writeln!(out, "{}", format!("{word}  {name}   {files}, {bytes}{legacy}").trim_end())?;
        let mut lines: Vec<String> = self.findings.iter().map(ToString::to_string).collect();
        lines.extend(self.mending.iter().flat_map(Mending::in_words));
        if !self.ok {
            lines.extend(self.next(store));
        }
        lines.extend(self.about_signature());
        for line in lines {
            writeln!(out, "           {}", human::harmless(&line))?;
        }
        Ok(())
    }

    /// What somebody who has just been woken is to type.
    fn next(&self, store: &ModelStore) -> Vec<String> {
        let Some(version) = &self.version else { return Vec::new() };
        let agent = &self.agent;
        let mut next = Vec::new();
        let differs = self.findings.iter().any(|finding| matches!(finding, Finding::Checksum { .. }));
        if self.legacy && differs {
            next.push(
                "that checksum depends on the order in which the file system lists directories,".to_owned(),
            );
            next.push("so a copied version may differ although no byte has changed".to_owned());
        }
        let current = store.get_current(agent).ok().flatten();
        if current.is_some_and(|current| current.version() == version) {
            next.push(format!("readers have it now; other versions: model-store history {agent}"));
            next.push(format!("next       model-store rollback {agent}"));
        }
        let unlisted =
            |finding: &Finding| matches!(finding, Finding::Unlisted { .. } | Finding::UnlistedLink { .. });
        let is_about_bytes = |finding: &Finding| !matches!(finding, Finding::Checksum { .. });
        let only_unlisted = self.findings.iter().filter(|finding| is_about_bytes(finding)).all(unlisted);
        next.push(match &self.mending {
            _ if self.legacy => "next       publish it again under another name".to_owned(),
            _ if only_unlisted => {
                format!("next       model-store repair {agent} {version} --remove-unlisted")
            }
            None => format!("next       model-store repair {agent} {version}"),
            Some(_) => format!(
                "next       restore the files from a backup, then model-store repair {agent} {version}; or publish again"
            ),
        });
        next
    }
}

impl Mending {
    fn in_words(&self) -> Vec<String> {
        let repairs = self.repairs.iter().map(|Repair { path, how }| match how {
            Mended::Bytes { from_agent, from_version, from_path } if from_path.as_str() == path => {
                format!("mended     {path}: its bytes came from {from_agent}/{from_version}")
            }
            Mended::Bytes { from_agent, from_version, from_path } => {
                format!(
                    "mended     {path}: its bytes came from {from_agent}/{from_version}, {from_path} there"
                )
            }
            Mended::Link => format!("mended     {path}: the link was made anew"),
            Mended::Mode => format!("mended     {path}: its mode was set right"),
            Mended::Group => format!("mended     {path}: its group was set right"),
            Mended::Removed => format!("mended     {path}: removed, since the manifest does not list it"),
            _ => format!("mended     {path}"),
        });
        let problems = self.problems.iter().map(|problem| format!("not mended {problem}"));
        let marks = [
            (
                self.quarantined,
                "quarantined: no pointer is moved to it, strict readers refuse it, others are warned",
            ),
            (self.released, "released from quarantine"),
        ];
        let marks = marks.into_iter().filter(|(is_so, _)| *is_so).map(|(_, words)| words.to_owned());
        repairs.chain(problems).chain(marks).collect()
    }
}

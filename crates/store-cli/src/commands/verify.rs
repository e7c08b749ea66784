//! `model-store verify`.

use std::io::Write;

use model_store::{AgentName, Digest, Finding, ModelStore, Report, StoreError, VersionName, exit};
use serde::Serialize;

use crate::args;
use crate::cli::Global;
use crate::meter::Meter;
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  model-store verify                 the whole store
  model-store verify scout           every version of one agent
  model-store verify scout v1        one version

Without this program:
  cd \"$ROOT/scout/current\" && find . -type f ! -path ./manifest.json -printf '%P\\n' |
    LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum";

/// Read every file of one version, of an agent's versions or of all, and compare it with the manifest
///
/// Ends with 4 where anything is not as it was published.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent [default: all of them]
    agent: Option<AgentName>,
    /// The version [default: all of the agent's]
    version: Option<VersionName>,
}

type Targets = Vec<(AgentName, VersionName)>;

#[derive(Serialize)]
struct Verdict {
    agent: AgentName,
    /// `None` where not even the agent's versions could be listed.
    version: Option<VersionName>,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<Digest>,
    files_checked: usize,
    bytes: u64,
    legacy: bool,
    findings: Vec<Finding>,
    /// Why it could not be verified at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    exit_code: u8,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let (targets, mut verdicts) = targets(&store, args)?;
    let total =
        targets.iter().map(|(agent, version)| size_of(&store, agent, version)).fold(0, u64::saturating_add);
    let meter = Meter::start("verifying", total)?;
    let store = store.with_progress(meter.progress());
    if !global.json {
        for unread in &verdicts {
            out::unless_closed(print(unread))?;
        }
    }
    for (agent, version) in targets {
        let verdict = match store.verify(&agent, &version) {
            Ok(report) => Verdict::of(report),
            Err(StoreError::Interrupted) => {
                meter.clear();
                out::plain_error("stopped");
                return Ok(exit::INTERRUPTED);
            }
            Err(e) => Verdict::failed(agent, Some(version), &e),
        };
        if !global.json {
            out::unless_closed(meter.clear_for(|| print(&verdict)))?;
        }
        verdicts.push(verdict);
    }
    meter.clear();
    if global.json {
        out::unless_closed(out::json(&verdicts))?;
    } else if verdicts.is_empty() {
        out::plain_error(&format!("no versions in {} yet", store.root().display()));
    }
    let codes: Vec<u8> = verdicts.iter().map(|verdict| verdict.exit_code).collect();
    // Damage outweighs whatever else there is.
    let corrupt = codes.contains(&exit::CORRUPT).then_some(exit::CORRUPT);
    Ok(corrupt.or_else(|| codes.into_iter().max()).unwrap_or(exit::OK))
}

/// The versions to verify, and the verdicts on agents that cannot be read: they do not keep the others from
/// being verified.
fn targets(store: &ModelStore, args: &Args) -> Result<(Targets, Vec<Verdict>), StoreError> {
    if let (Some(agent), Some(version)) = (&args.agent, &args.version) {
        let found = store.require_version(agent, version);
        // Damage to the manifest is a verdict; a version that is not there is a mistake.
        if let Err(e @ (StoreError::AgentNotFound { .. } | StoreError::VersionNotFound { .. })) = found {
            return Err(e);
        }
        return Ok((vec![(agent.clone(), version.clone())], Vec::new()));
    }
    let agents = match &args.agent {
        Some(agent) => vec![agent.clone()],
        None => args::every_agent(store)?,
    };
    let (mut targets, mut unread) = (Vec::new(), Vec::new());
    for agent in agents {
        match store.versions(&agent) {
            Ok(versions) => targets.extend(versions.into_iter().map(|version| (agent.clone(), version))),
            // One that was asked for by name and is not there is a mistake.
            Err(e @ StoreError::AgentNotFound { .. }) if args.agent.is_some() => return Err(e),
            Err(e) => unread.push(Verdict::failed(agent, None, &e)),
        }
    }
    Ok((targets, unread))
}

/// About how many bytes there are to read, for the progress bar only.
fn size_of(store: &ModelStore, agent: &AgentName, version: &VersionName) -> u64 {
    let found = store.get_version(agent, version).ok().flatten();
    found.map_or(0, |found| found.manifest().size_bytes())
}

impl Verdict {
    fn of(report: Report) -> Self {
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
            error: None,
            exit_code: if ok { exit::OK } else { exit::CORRUPT },
        }
    }

    fn failed(agent: AgentName, version: Option<VersionName>, error: &StoreError) -> Self {
        Self {
            agent,
            version,
            ok: false,
            checksum: None,
            files_checked: 0,
            bytes: 0,
            legacy: false,
            findings: Vec::new(),
            error: Some(human::with_causes(error)),
            exit_code: error.exit_code(),
        }
    }
}

fn print(verdict: &Verdict) -> anyhow::Result<()> {
    let mut out = out::stdout();
    let version = verdict.version.as_ref().map_or(String::new(), |version| format!("/{version}"));
    let name = format!("{}{version}", verdict.agent);
    if let Some(error) = &verdict.error {
        writeln!(out, "{}  {name}   {error}", out::styled(out::ACT, "not verified"))?;
        return Ok(());
    }
    let what = format!(
        "{}, {}",
        human::count(verdict.files_checked, "file"),
        model_store::human_size(verdict.bytes)
    );
    let legacy = if verdict.legacy { ", by the old helper's checksum" } else { "" };
    if verdict.ok {
        writeln!(out, "{}       {name}   {what}{legacy}", out::styled(out::OK, "ok"))?;
        return Ok(());
    }
    writeln!(out, "{}  {name}   {what}{legacy}", out::styled(out::ACT, "corrupt"))?;
    for finding in &verdict.findings {
        writeln!(out, "           {finding}")?;
    }
    let differs = verdict.findings.iter().any(|finding| matches!(finding, Finding::Checksum { .. }));
    if verdict.legacy && differs {
        writeln!(
            out,
            "           that checksum depends on the order in which the file system lists directories,"
        )?;
        writeln!(out, "           so a copied version may differ although no byte has changed")?;
    }
    Ok(())
}

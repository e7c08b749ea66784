//! `model-store pull`.

use std::io::Write;

use model_store::{AgentName, VersionName, exit, human_size};
use store_sync::{PullOptions, Pulled, SyncError};

use crate::cli::Global;
use crate::remotes::RemoteArgs;
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  model-store pull scout --remote s3://models/fleet     what is current there becomes current here
  model-store pull scout v3 --stage-only                bring a version, and leave `current` where it is
  model-store pull --all --remote /srv/backup           a fresh host from a backup";

/// Bring versions from a remote, and make them current
///
/// Only what no version here has is fetched; the rest is shared. Readers keep the old version until the new
/// one is whole, checked and on disk. Broken off, even killed, the same command goes on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent
    #[arg(required_unless_present = "all")]
    agent: Option<AgentName>,
    /// The version; what the fleet is at unless given
    version: Option<VersionName>,
    /// Every agent of the remote
    #[arg(long, conflicts_with_all = ["agent", "version"])]
    all: bool,
    /// Every version of the agents, and not only the current one
    #[arg(long, conflicts_with = "version")]
    every_version: bool,
    /// Leave `current` where it is
    #[arg(long)]
    stage_only: bool,
    /// For the history: why
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let (remote, meter) = args.remote.open("pulling")?;
    let agents = match &args.agent {
        Some(agent) => vec![agent.clone()],
        None => remote.agents()?,
    };
    let options = PullOptions { stage_only: args.stage_only, reason: args.reason.clone() };
    let mut code = exit::OK;
    let mut all = Vec::new();
    let mut take = |pulled: Result<Pulled, SyncError>| -> anyhow::Result<()> {
        match pulled {
            Ok(pulled) => {
                if !global.json {
                    meter.clear_for(|| print(&pulled))?;
                }
                meter.clear_for(|| warn(&pulled));
                all.push(pulled);
            }
            // Of many, one that may not come must not keep the others.
            Err(e) if (agents.len() > 1 || args.every_version) && !is_end(&e) => {
                meter.clear_for(|| out::warning(human::harmless(&human::with_causes(&e))));
                code = human::worst([code, e.exit_code()].into_iter());
            }
            Err(e) => return Err(e.into()),
        }
        Ok(())
    };
    for agent in &agents {
        if args.every_version {
            for version in remote.versions(agent)? {
                let options = PullOptions { stage_only: true, ..options.clone() };
                take(remote.pull_version(&store, agent, &version, &options))?;
            }
            if remote.pointer(agent)?.is_none() {
                continue;
            }
        }
        take(match &args.version {
            Some(version) => remote.pull_version(&store, agent, version, &options),
            None => remote.pull(&store, agent, &options),
        })?;
    }
    meter.clear();
    if global.json {
        out::json(&all)?;
    }
    Ok(code)
}

/// Whether there is no point in trying the next one.
fn is_end(error: &SyncError) -> bool {
    matches!(error, SyncError::Stopped | SyncError::Remote { .. } | SyncError::NotARemote { .. })
}

pub(crate) fn in_words(pulled: &Pulled) -> String {
    let Pulled { agent, version, previous, activated, new, serial, received_bytes, shared_bytes, .. } =
        pulled;
    let serial = serial.map_or_else(String::new, |serial| format!("   serial {serial}"));
    let bytes = if *new {
        let (came, shared) = (human_size(*received_bytes), human_size(*shared_bytes));
        format!("   {came} came, {shared} were here")
    } else {
        String::new()
    };
    let version = out::styled(out::OK, version);
    let what = match (activated, previous) {
        (true, Some(previous)) => format!("{agent}: {previous} → {version}"),
        (true, None) => format!("{agent} → {version}"),
        (false, _) if *new => format!("{agent}/{version} is here"),
        (false, _) => format!("{agent}/{version} was here already"),
    };
    format!("{what}{serial}{bytes}")
}

/// Says what a policy has to say of a version that it let in.
pub(crate) fn warn(pulled: &Pulled) {
    if let Some(caution) = &pulled.caution {
        out::warning(human::harmless(caution));
    }
}

fn print(pulled: &Pulled) -> anyhow::Result<()> {
    writeln!(out::stdout(), "{}", in_words(pulled))?;
    Ok(())
}

//! `model-store push`.

use std::io::Write;
use std::time::Duration;

use model_store::{AgentName, ModelStore, VersionName, exit, human_size};
use store_sync::{PushOptions, Pushed, Remote, SyncError};

use crate::args;
use crate::cli::Global;
use crate::remotes::{RemoteArgs, who};
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  model-store push scout --remote s3://models/fleet     what is current here becomes current there
  model-store push scout v3 --no-activate               send a version, and leave the fleet where it is
  model-store push --all --every-version --remote /srv/backup   a backup; `pull --all` brings it back";

/// Send versions to a remote, and point the fleet at them
///
/// Only what the remote lacks is sent: blobs first, then the manifest, then the pointer, so whoever looks
/// meanwhile finds the old version or the new one, whole. Broken off, the same command goes on from there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Args {
    /// The agent
    #[arg(required_unless_present = "all")]
    agent: Option<AgentName>,
    /// The version; what is current unless given
    version: Option<VersionName>,
    /// Every agent
    #[arg(long, conflicts_with_all = ["agent", "version"])]
    all: bool,
    /// Every version of the agents, and not only the current one
    #[arg(long, conflicts_with = "version")]
    every_version: bool,
    /// Leave the remote's pointer where it is
    #[arg(long)]
    no_activate: bool,
    /// Move the pointer even if it was moved since this host looked last
    #[arg(long)]
    over: bool,
    /// From then on nobody follows the pointer, unless it is renewed by another push
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    expires: Option<Duration>,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let (remote, meter) = args.remote.open("pushing")?;
    let agents = match &args.agent {
        Some(agent) => vec![agent.clone()],
        None => args::every_agent(&store)?,
    };
    let options =
        PushOptions { keep_pointer: args.no_activate, over: args.over, expires: args.expires, who: who() };
    let mut code = exit::OK;
    let mut pushed = Vec::new();
    for agent in &agents {
        for (version, is_current) in chosen(&store, agent, args)? {
            let options = PushOptions { keep_pointer: args.no_activate || !is_current, ..options.clone() };
            match remote.push(&store, agent, &version, &options) {
                Ok(one) => {
                    if !global.json {
                        meter.clear_for(|| print(&remote, &one))?;
                    }
                    pushed.push(one);
                }
                // Of many, one that cannot go must not keep the others.
                Err(
                    e @ (SyncError::NotPushable { .. }
                    | SyncError::Different { .. }
                    | SyncError::Rotten { .. }),
                ) if agents.len() > 1 || args.every_version => {
                    meter.clear_for(|| out::warning(human::harmless(&human::with_causes(&e))));
                    code = human::worst([code, e.exit_code()].into_iter());
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
    meter.clear();
    if global.json {
        out::json(&pushed)?;
    }
    Ok(code)
}

/// The versions of an agent that are to go, and whether the pointer goes with them. The current one is the last.
fn chosen(store: &ModelStore, agent: &AgentName, args: &Args) -> anyhow::Result<Vec<(VersionName, bool)>> {
    if let Some(version) = &args.version {
        return Ok(vec![(version.clone(), true)]);
    }
    let current = match store.get_current(agent)? {
        Some(current) => Some(current.version().clone()),
        // Of many agents, one may have nothing to show.
        None if args.all => None,
        None => Some(store.require_current(agent)?.version().clone()),
    };
    let mut chosen = Vec::new();
    if args.every_version {
        let others = store.versions(agent)?.into_iter().filter(|version| current.as_ref() != Some(version));
        chosen.extend(others.map(|version| (version, false)));
    }
    chosen.extend(current.map(|version| (version, true)));
    Ok(chosen)
}

fn print(remote: &Remote, pushed: &Pushed) -> anyhow::Result<()> {
    let Pushed { agent, version, bytes, sent_blobs, sent_bytes, pointer, moved, .. } = pushed;
    let mut out = out::stdout();
    let sent = match sent_blobs {
        0 => "nothing had to be sent".to_owned(),
        _ => format!("{} sent, {}", human::count(*sent_blobs, "blob"), human_size(*sent_bytes)),
    };
    writeln!(
        out,
        "{} {agent}/{version}   {} in all, {sent}",
        out::styled(out::OK, "pushed"),
        human_size(*bytes)
    )?;
    if let Some(pointer) = pointer {
        let serial = pointer.serial;
        let at = remote.address();
        if *moved {
            writeln!(out, "{agent} → {version} at {at}   (serial {serial})")?;
        } else {
            writeln!(out, "{agent} is at {version} at {at} already   (serial {serial})")?;
        }
    }
    Ok(())
}

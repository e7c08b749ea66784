//! `model-store remote`.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;
use model_store::{AgentName, exit, human_size};
use store_sync::{AgentAtRemote, CollectOptions, CollectedRemote, ConditionalPuts, Examined, Remote};

use crate::cli::Global;
use crate::remotes::{RemoteArgs, stoppable, who};
use crate::{args, human, out};

const EXAMPLES: &str = "\
Examples:
  model-store remote init --remote s3://models/fleet
  model-store remote ls
  model-store remote check                        whether everything is there, by size
  model-store remote verify                       whether every byte is the right one
  model-store remote gc --dry-run                 what nothing names any more
  model-store remote gc --keep 5                  and versions, but for the current and the newest five";

/// Look after a remote
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Init(InitArgs),
    Ls(LsArgs),
    Check(CheckArgs),
    Verify(VerifyArgs),
    Gc(GcArgs),
}

/// Make a remote, and find out whether its server keeps the conditions of a put
///
/// One that is there is probed anew; everything else in it stays.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  model-store remote init --remote s3://models/fleet\n  model-store remote init --remote /srv/backup"
)]
struct InitArgs {
    #[command(flatten)]
    remote: RemoteArgs,
}

/// List agents, where the fleet is, and versions
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  model-store remote ls --remote s3://models/fleet\n  model-store remote ls scout --json | jq -r '.[].pointer.version'"
)]
struct LsArgs {
    #[command(flatten)]
    of: Of,
}

/// Which agents, and where.
#[derive(Debug, clap::Args)]
struct Of {
    /// The agents; all unless given
    #[arg(value_name = "AGENT")]
    agents: Vec<AgentName>,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Look whether every pointer leads to a version and every version has its blobs; reads none of them
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  model-store remote check --remote s3://models/fleet")]
struct CheckArgs {
    #[command(flatten)]
    of: Of,
}

/// Read every blob and compare its digest
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  model-store remote verify scout --remote s3://models/fleet")]
struct VerifyArgs {
    #[command(flatten)]
    of: Of,
}

/// Remove blobs that no version names, and old versions where that is asked for
///
/// While somebody pushes, and where a manifest cannot be read, nothing is removed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  model-store remote gc --dry-run --remote s3://models/fleet\n  model-store remote gc --keep 5 --grace 3d"
)]
struct GcArgs {
    /// A blob that was written less than this ago stays
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = args::duration)]
    grace: Duration,
    /// Retire versions that are neither current nor among so many newest of their agent
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    match &args.command {
        Command::Init(args) => init(global, args),
        Command::Ls(args) => ls(global, args),
        Command::Check(args) => {
            let remote = args.of.remote.connect()?.with_observer(stoppable()?);
            let examined = remote.check(&args.of.agents)?;
            report(global, &remote, &examined)
        }
        Command::Verify(args) => {
            let (remote, meter) = args.of.remote.open("verifying")?;
            let examined = remote.verify(&args.of.agents)?;
            meter.clear();
            report(global, &remote, &examined)
        }
        Command::Gc(args) => gc(global, args),
    }
}

fn init(global: &Global, args: &InitArgs) -> anyhow::Result<u8> {
    let (remote, done) = Remote::init(args.remote.address()?, args.remote.options(), &who())?;
    if global.json {
        out::json(&done)?;
        return Ok(exit::OK);
    }
    let mut out = out::stdout();
    let verb = if done.was_there { "probed" } else { "made" };
    writeln!(out, "{} {}", out::styled(out::OK, verb), remote.address())?;
    let ConditionalPuts { create, update } = done.store_file.conditional_puts;
    let pointers = match (create, update) {
        (_, true) => "the server keeps the conditions of a put: of two writers at one moment, one is refused",
        (true, false) => "the server makes an object once only: writers take turns by a lease",
        (false, false) => {
            "the server ignores the conditions of a put: writers take turns by a lease, and see afterwards whether it \
             held"
        }
    };
    writeln!(out, "{pointers}")?;
    Ok(exit::OK)
}

fn ls(global: &Global, args: &LsArgs) -> anyhow::Result<u8> {
    let remote = args.of.remote.connect()?.with_observer(stoppable()?);
    let inventory = remote.inventory(&args.of.agents)?;
    if global.json {
        out::json(&inventory)?;
        return Ok(exit::OK);
    }
    if inventory.is_empty() {
        out::plain_error(&format!("no agents at {} yet", remote.address()));
        return Ok(exit::OK);
    }
    let now = Timestamp::now();
    let rows = inventory.iter().flat_map(|agent| rows_of(agent, now)).collect();
    let lines = human::table(&["AGENT", "VERSION", "AGE", "FILES", "SIZE", "CURRENT"], &[2, 3, 4], rows);
    let mut out = out::stdout();
    for (number, line) in lines.iter().enumerate() {
        writeln!(out, "{}", out::styled(human::row_style(number, line), line))?;
    }
    Ok(exit::OK)
}

fn rows_of(at: &AgentAtRemote, now: Timestamp) -> Vec<Vec<String>> {
    let is_current = |version| at.pointer.as_ref().filter(|pointer| pointer.version == version);
    let rows = at.versions.iter().map(|version| {
        let current = is_current(version.version.clone());
        vec![
            at.agent.to_string(),
            version.version.to_string(),
            human::age(version.created_at, now),
            version.files.to_string(),
            human_size(version.bytes),
            current.map_or_else(String::new, |pointer| {
                let age = human::age(Some(pointer.time), now);
                format!("serial {}, {age} ago by {}", pointer.serial, human::harmless(&pointer.who))
            }),
        ]
    });
    rows.collect()
}

fn report(global: &Global, remote: &Remote, examined: &Examined) -> anyhow::Result<u8> {
    if global.json {
        out::json(examined)?;
    } else {
        let Examined { agents, versions, blobs, bytes, read_bytes, findings } = examined;
        let mut out = out::stdout();
        for finding in findings {
            let what = human::harmless(&finding.what);
            writeln!(out, "{}  {}   {what}", out::styled(out::ACT, "wrong"), human::harmless(&finding.path))?;
        }
        let read = match read_bytes {
            0 => String::new(),
            bytes => format!(", {} read", human_size(*bytes)),
        };
        writeln!(
            out,
            "{}, {}, {} of {}{read} at {}: {}",
            human::count(*agents, "agent"),
            human::count(*versions, "version"),
            human::count(*blobs, "blob"),
            human_size(*bytes),
            remote.address(),
            if findings.is_empty() {
                "all is well".to_owned()
            } else {
                human::count(findings.len(), "finding")
            }
        )?;
    }
    Ok(if examined.findings.is_empty() { exit::OK } else { exit::CORRUPT })
}

fn gc(global: &Global, args: &GcArgs) -> anyhow::Result<u8> {
    let remote = args.remote.connect()?.with_observer(stoppable()?);
    let collected = remote.collect(&CollectOptions {
        grace: args.grace,
        keep: args.keep,
        dry_run: args.dry_run,
        who: who(),
    })?;
    if global.json {
        out::json(&collected)?;
        return Ok(exit::OK);
    }
    let CollectedRemote { retired, kept_versions, removed_blobs, freed_bytes, young_blobs, .. } = &collected;
    let (verb, free) = if args.dry_run { ("would go", "would free") } else { ("went", "freed") };
    let mut out = out::stdout();
    for one in retired {
        writeln!(out, "{}  {}/{}", out::styled(out::LOOK, verb), one.agent, one.version)?;
    }
    let blobs = human::count(*removed_blobs, "blob");
    let young = match young_blobs {
        0 => String::new(),
        young => format!("; {} that nothing names yet stay for now", human::count(*young, "young blob")),
    };
    writeln!(
        out,
        "{blobs} {verb}, which {free} {}; {} stay{young}",
        human_size(*freed_bytes),
        human::count(*kept_versions, "version")
    )?;
    Ok(exit::OK)
}

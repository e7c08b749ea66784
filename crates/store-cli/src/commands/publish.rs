//! `model-store publish`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory;
use clap::error::ErrorKind;
use model_store::{
    Activation, AgentName, FinalizeOptions, Links, MANIFEST_FILE, Published, VersionName, exit,
};
use serde_json::{Map, Value};

use crate::cli::{Cli, Global};
use crate::meter::Meter;
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  model-store publish scout v2 --from ./trained --metadata commit=$(git rev-parse HEAD)
  model-store publish scout v3-rc1 --from ./trained --no-activate
  model-store publish memory v1 --from ./models--x--y/snapshots/abc --follow-links";

/// Publish a folder as a new version, and make it current
///
/// The folder is copied, hashed, made durable and renamed into place: readers see the whole version or none.
/// Ctrl-C stops it, and nothing is published.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent; it is made where it is new
    agent: AgentName,
    /// The version; a name is used once and never again
    version: VersionName,
    /// The folder with the payload
    #[arg(long, value_name = "DIR", value_parser = parse_folder)]
    from: PathBuf,
    /// Leave `current` where it is
    #[arg(long)]
    no_activate: bool,
    /// For the manifest, any number of times: what an auditor may ask for
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    metadata: Vec<(String, String)>,
    /// For the history: why
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Copy what symbolic links to files lead to, wherever that is
    ///
    /// Otherwise links within the folder stay links, and one that leaves it is refused.
    #[arg(long)]
    follow_links: bool,
    /// How long to wait for another writer of the agent
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

/// A folder that is missing is not found, which has its own exit code; a file is a mistake.
fn parse_folder(path: &str) -> Result<PathBuf, String> {
    if Path::new(path).is_file() { Err("it is a file, not a folder".to_owned()) } else { Ok(path.into()) }
}

fn parse_pair(pair: &str) -> Result<(String, String), String> {
    match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it must be KEY=VALUE".to_owned()),
    }
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let metadata = metadata(args.metadata);
    let meter = Meter::start("publishing", size_of(&args.from))?;
    let store =
        global.open()?.with_progress(meter.progress()).with_lock_patience(Duration::from_secs(args.wait));
    let staging = store.stage_new(&args.agent, &args.version)?;
    let links = if args.follow_links { Links::Follow } else { Links::Keep };
    staging.import_tree(&args.from, links)?;
    let published = staging.finalize(FinalizeOptions {
        metadata,
        activation: if args.no_activate { Activation::Keep } else { Activation::Activate },
        reason: args.reason,
        ..FinalizeOptions::default()
    })?;
    meter.clear();
    if args.from.join(MANIFEST_FILE).exists() {
        out::warning(
            "the folder's own manifest.json is of a store and was left out; the version has a new one",
        );
    }
    if global.json {
        out::json(&published)?;
    } else {
        print(&published)?;
    }
    Ok(exit::OK)
}

/// Each key once: of two values for one key, either may be the one that was meant.
fn metadata(pairs: Vec<(String, String)>) -> Map<String, Value> {
    let mut metadata = Map::new();
    for (key, value) in pairs {
        if metadata.contains_key(&key) {
            let message = format!("--metadata {key}=… is given twice");
            Cli::command().error(ErrorKind::ArgumentConflict, message).exit();
        }
        metadata.insert(key, value.into());
    }
    metadata
}

/// About how many bytes there are to copy, for the progress bar only.
fn size_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => size_of(&entry.path()),
            Ok(_) => std::fs::metadata(entry.path()).map_or(0, |meta| meta.len()),
            Err(_) => 0,
        })
        .sum()
}

fn print(published: &Published) -> anyhow::Result<()> {
    let Published { agent, version, checksum, path, previous, activated, files, bytes } = published;
    let mut out = out::stdout();
    let (files, bytes) = (human::count(*files, "file"), model_store::human_size(*bytes));
    writeln!(
        out,
        "{} {agent}/{version}   {files}, {bytes}, checksum {checksum}",
        out::styled(out::OK, "published")
    )?;
    match (activated, previous) {
        (true, Some(previous)) => writeln!(out, "{agent} → {version}   (was {previous})")?,
        (true, None) => writeln!(out, "{agent} → {version}")?,
        (false, Some(current)) => writeln!(out, "{agent} stays at {current}")?,
        (false, None) => writeln!(out, "{agent} has no current version yet")?,
    }
    writeln!(out, "{}", path.display())?;
    Ok(())
}

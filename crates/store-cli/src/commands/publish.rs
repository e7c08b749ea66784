//! `model-store publish`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory;
use clap::error::ErrorKind;
use model_store::{
    Activation, AgentName, ChecksumKind, FinalizeOptions, ImportOptions, Imported, Links, MANIFEST_FILE,
    NewSignature, Published, SignatureState, Transfer, VersionName, exit,
};
use serde_json::{Map, Value};

use crate::cli::{Cli, Global};
use crate::meter::Meter;
use crate::{args, human, out};

const EXAMPLES: &str = "\
Examples:
  model-store publish scout v2 --from ./trained --metadata commit=$(git rev-parse HEAD)
  model-store publish scout v3-rc1 --from ./trained --no-activate
  model-store publish memory v1 --from ./models--x--y/snapshots/abc --follow-links
  model-store publish memory v2 --from ./download --move
  model-store publish scout v3 --from ./trained --sign /root/release.pem";

/// Publish a folder as a new version, and make it current
///
/// The folder is copied, hashed, made durable and renamed into place: readers see the whole version or none.
/// Files that any version of the store has already are shared with it and take no room.
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
    /// Sign it with the private key in this file, in PEM
    ///
    /// The signature is there before the version is. A store that refuses what is not signed takes it so.
    #[arg(long, value_name = "FILE")]
    sign: Option<PathBuf>,
    /// Copy what symbolic links to files lead to, wherever that is
    ///
    /// Otherwise links within the folder stay links, and one that leaves it is refused.
    #[arg(long)]
    follow_links: bool,
    #[command(flatten)]
    transfer: TransferArgs,
    /// Which checksum the manifest gets
    #[arg(long, value_name = "KIND", default_value = "listing")]
    checksum: Checksum,
    /// How long to wait for another writer of the agent
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

/// The checksum of a version.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Checksum {
    /// Of the listing that `sha256sum` prints
    Listing,
    /// The old Python helper's, for hosts where its readers still verify; such a version cannot be repaired
    Legacy,
}

/// How the files come in; without one of these, what the store has already is shared, and the rest is copied.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag, and clap lets only one be given")]
struct TransferArgs {
    /// Write every byte, sharing nothing with other versions
    #[arg(long)]
    copy: bool,
    /// Hard-link the files, which become read-only; nobody may change them any more
    #[arg(long)]
    link: bool,
    /// Share the blocks of the files, or refuse where the file system cannot
    #[arg(long)]
    reflink: bool,
    /// Take the files over: once the version is published, they are gone from the folder
    #[arg(long, conflicts_with = "follow_links")]
    r#move: bool,
}

impl TransferArgs {
    fn transfer(&self) -> Transfer {
        match self {
            Self { copy: true, .. } => Transfer::Copy,
            Self { link: true, .. } => Transfer::Link,
            Self { reflink: true, .. } => Transfer::Reflink,
            Self { r#move: true, .. } => Transfer::Move,
            _ => Transfer::Auto,
        }
    }
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
    let key = args.sign.as_deref().map(args::signing_key).transpose()?;
    let activation = if args.no_activate { Activation::Keep } else { Activation::Activate };
    if key.is_none() && activation == Activation::Activate {
        // What will be refused in the end is refused before the work.
        global.open()?.signature_policy()?.admit(&args.agent, &args.version, &SignatureState::Unsigned)?;
    }
    let meter = Meter::start("publishing", size_of(&args.from))?;
    let store =
        global.open()?.with_progress(meter.progress()).with_lock_patience(Duration::from_secs(args.wait));
    let staging = store.stage_new(&args.agent, &args.version)?;
    let links = if args.follow_links { Links::Follow } else { Links::Keep };
    let options = ImportOptions { links, transfer: args.transfer.transfer() };
    let imported = staging.import_tree(&args.from, options)?;
    let published = staging.finalize(FinalizeOptions {
        metadata,
        activation,
        checksum: match args.checksum {
            Checksum::Listing => ChecksumKind::Listing,
            Checksum::Legacy => ChecksumKind::Legacy,
        },
        reason: args.reason,
        signature: key.map_or(NewSignature::None, NewSignature::Make),
        ..FinalizeOptions::default()
    })?;
    meter.clear();
    if args.from.join(MANIFEST_FILE).exists() {
        out::warning(
            "the folder's own manifest.json is of a store and was left out; the version has a new one",
        );
    }
    for path in &published.left_outside {
        out::warning(format!("{} stays: it changed meanwhile, or cannot be removed", path.display()));
    }
    if let Some(caution) = &published.caution {
        out::warning(human::harmless(caution));
    }
    if global.json {
        out::json(&Output { published: &published, bytes_in: BytesIn::of(&imported) })?;
    } else {
        print(&published, &imported)?;
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

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    published: &'a Published,
    #[serde(flatten)]
    bytes_in: BytesIn,
}

/// Where the bytes came from.
#[derive(serde::Serialize)]
#[expect(clippy::struct_field_names, reason = "they are the keys that are printed")]
struct BytesIn {
    shared_bytes: u64,
    copied_bytes: u64,
    linked_bytes: u64,
    reflinked_bytes: u64,
}

impl BytesIn {
    fn of(imported: &Imported) -> Self {
        Self {
            shared_bytes: imported.shared_bytes,
            copied_bytes: imported.copied_bytes,
            linked_bytes: imported.linked_bytes,
            reflinked_bytes: imported.reflinked_bytes,
        }
    }
}

/// Where the bytes came from, in words; nothing where all were copied.
fn origin(imported: &Imported) -> Option<String> {
    let Imported { shared_bytes, copied_bytes, linked_bytes, reflinked_bytes, .. } = imported;
    if *copied_bytes > 0 && shared_bytes + linked_bytes + reflinked_bytes == 0 {
        return None;
    }
    let parts = [
        (*shared_bytes, "shared with other versions"),
        (*reflinked_bytes, "shared with the folder's files"),
        (*linked_bytes, "taken over without a copy"),
        (*copied_bytes, "copied"),
    ];
    let parts = parts.iter().filter(|(bytes, _)| *bytes > 0);
    let parts: Vec<_> =
        parts.map(|(bytes, how)| format!("{} {how}", model_store::human_size(*bytes))).collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn print(published: &Published, imported: &Imported) -> anyhow::Result<()> {
    let Published { agent, version, checksum, path, previous, activated, files, bytes, signed_by, .. } =
        published;
    let mut out = out::stdout();
    let (files, bytes) = (human::count(*files, "file"), model_store::human_size(*bytes));
    writeln!(
        out,
        "{} {agent}/{version}   {files}, {bytes}, checksum {checksum}",
        out::styled(out::OK, "published")
    )?;
    if let Some(origin) = origin(imported) {
        writeln!(out, "{origin}")?;
    }
    if let Some(key) = signed_by {
        writeln!(out, "signed with key {key}")?;
    }
    match (activated, previous) {
        (true, Some(previous)) => writeln!(out, "{agent} → {version}   (was {previous})")?,
        (true, None) => writeln!(out, "{agent} → {version}")?,
        (false, Some(current)) => writeln!(out, "{agent} stays at {current}")?,
        (false, None) => writeln!(out, "{agent} has no current version yet")?,
    }
    writeln!(out, "{}", path.display())?;
    Ok(())
}

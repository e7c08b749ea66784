//! `model-store show`.

use std::io::Write;

use jiff::Timestamp;
use model_store::{AgentName, Current, Manifest, VersionName, exit};
use serde::Serialize;
use serde_json::Value;

use crate::cli::Global;
use crate::{human, out};

/// Show one version: where it came from and what it is made of
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  model-store show scout\n  model-store show scout v1 --json | jq .manifest.metadata"
)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The version [default: the current one]
    version: Option<VersionName>,
}

#[derive(Serialize)]
struct Answer<'a> {
    agent: &'a AgentName,
    version: &'a VersionName,
    is_current: bool,
    path: &'a std::path::Path,
    size_bytes: u64,
    manifest: &'a Manifest,
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let (found, is_current) = match args.version {
        None => (store.require_current(&args.agent)?, true),
        Some(version) => {
            let found = store.require_version(&args.agent, &version)?;
            // A broken `current` is no reason not to show a sound version.
            let current = store.get_current(&args.agent).ok().flatten();
            let is_current = current.is_some_and(|current| current.version() == found.version());
            (found, is_current)
        }
    };
    if global.json {
        out::json(&Answer {
            agent: found.agent(),
            version: found.version(),
            is_current,
            path: found.path(),
            size_bytes: found.manifest().size_bytes(),
            manifest: found.manifest(),
        })?;
    } else {
        print(&found, is_current)?;
    }
    Ok(exit::OK)
}

fn print(found: &Current, is_current: bool) -> anyhow::Result<()> {
    let mut out = out::stdout();
    let manifest = found.manifest();
    let mark = if is_current { out::styled(out::OK, "   current") } else { String::new() };
    let title = format!("{}/{}", found.agent(), found.version());
    writeln!(out, "{}{mark}", out::styled(out::BOLD, title))?;
    match manifest.created_at {
        Some(at) => writeln!(out, "  published  {at} ({} ago)", human::age(Some(at), Timestamp::now()))?,
        None => writeln!(out, "  published  at an unknown time")?,
    }
    writeln!(out, "  path       {}", found.path().display())?;
    writeln!(out, "  checksum   {}", manifest.checksum)?;
    writeln!(out, "  format     {}", format_in_words(found))?;
    if !manifest.metadata.is_empty() {
        writeln!(out, "  metadata")?;
        let shown =
            |(key, value): (&String, &Value)| (human::harmless(key), human::harmless(&text_of(value)));
        let rows: Vec<_> = manifest.metadata.iter().map(shown).collect();
        let widest = rows.iter().map(|(key, _)| key.chars().count()).max().unwrap_or_default();
        for (key, value) in rows {
            writeln!(out, "    {key:<widest$}  {value}")?;
        }
    }
    if manifest.files.is_empty() {
        return Ok(());
    }
    let total = model_store::human_size(manifest.size_bytes());
    writeln!(out, "  payload    {}, {total}", human::count(manifest.files.len(), "file"))?;
    let rows = manifest.files.iter().map(|file| {
        let digest = file.sha256.to_string();
        vec![model_store::human_size(file.size), digest[..12].to_owned(), file.path.to_string()]
    });
    for line in human::table(&["SIZE", "SHA-256", "PATH"], &[0], rows.collect()) {
        writeln!(out, "    {line}")?;
    }
    for link in &manifest.links {
        writeln!(out, "    {} → {}", link.path, human::harmless(&link.target))?;
    }
    Ok(())
}

fn format_in_words(found: &Current) -> String {
    match found.manifest().format {
        None => "none: made by the old Python tools".to_owned(),
        Some(model_store::FORMAT) => model_store::FORMAT.to_string(),
        Some(newer) => {
            format!("{newer}, which this program does not know: only what is shown here can be read")
        }
    }
}

/// Text as it is, anything else as JSON.
fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

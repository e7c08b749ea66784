//! `model-store show`.

use std::io::Write;

use anstyle::Style;
use jiff::Timestamp;
use model_store::{
    AgentName, Check, Current, Manifest, ModelStore, Quarantine, RefName, Selector, SignatureState,
    VersionName, VersionUsage, exit, human_size,
};
use serde::Serialize;
use serde_json::Value;

use crate::cli::Global;
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  model-store show scout
  model-store show scout champion
  model-store show scout v1 --json | jq .manifest.metadata";

/// Show one version: where it came from, what it is made of, and what it costs
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The version, or a ref to it
    #[arg(default_value = "current")]
    version: Selector,
}

#[derive(Serialize)]
struct Answer<'a> {
    agent: &'a AgentName,
    version: &'a VersionName,
    is_current: bool,
    path: &'a std::path::Path,
    size_bytes: u64,
    #[serde(flatten)]
    about: &'a About,
    manifest: &'a Manifest,
}

/// What is known of a version beside what is in it.
#[derive(Serialize)]
struct About {
    refs: Vec<RefName>,
    /// What would be free without it.
    alone_bytes: Option<u64>,
    /// What other versions hold too.
    shared_bytes: Option<u64>,
    verified: Option<Check>,
    quarantine: Option<Quarantine>,
    /// How it stands with the keys that this store trusts.
    signature: Option<SignatureState>,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let found = store.select(&args.agent, &args.version)?;
    // A broken `current` is no reason not to show a sound version.
    let current = store.get_current(&args.agent).ok().flatten();
    let is_current = current.is_some_and(|current| current.version() == found.version());
    let about = About::of(&store, &found);
    if global.json {
        out::json(&Answer {
            agent: found.agent(),
            version: found.version(),
            is_current,
            path: found.path(),
            size_bytes: found.manifest().size_bytes(),
            about: &about,
            manifest: found.manifest(),
        })?;
    } else {
        print(&found, is_current, &about)?;
    }
    Ok(exit::OK)
}

impl About {
    /// What cannot be found out is left out, and said on standard error.
    fn of(store: &ModelStore, found: &Current) -> Self {
        let (agent, version) = (found.agent(), found.version());
        let refs = or_warn(store.refs(agent)).into_iter().filter(|entry| entry.version == *version);
        let usage = or_warn(store.usage_of(agent)).into_iter().find(|usage| usage.version == *version);
        Self {
            refs: refs.map(|entry| entry.name).collect(),
            alone_bytes: usage.as_ref().map(|usage| usage.bytes_alone),
            shared_bytes: usage.as_ref().map(|VersionUsage { bytes_shared, .. }| *bytes_shared),
            verified: or_warn(store.last_check(agent, version)),
            quarantine: or_warn(found.quarantine()),
            signature: or_warn(
                store.signature_policy().and_then(|it| found.signature_state(it.trusted())).map(Some),
            ),
        }
    }
}

fn or_warn<T: Default>(known: Result<T, model_store::StoreError>) -> T {
    known.unwrap_or_else(|e| {
        out::warning(human::with_causes(&e));
        T::default()
    })
}

fn print(found: &Current, is_current: bool, about: &About) -> anyhow::Result<()> {
    let mut out = out::stdout();
    let now = Timestamp::now();
    let manifest = found.manifest();
    let mark = if is_current { out::styled(out::OK, "   current") } else { String::new() };
    let title = format!("{}/{}", found.agent(), found.version());
    writeln!(out, "{}{mark}", out::styled(out::BOLD, &title))?;
    if let Some(quarantine) = &about.quarantine {
        writeln!(out, "  {}", out::styled(out::ACT, human::quarantined("⚠ this version", quarantine)))?;
    }
    match manifest.created_at {
        Some(at) => writeln!(out, "  published  {at} ({} ago)", human::age(Some(at), now))?,
        None => writeln!(out, "  published  at an unknown time")?,
    }
    if !about.refs.is_empty() {
        let refs: Vec<_> = about.refs.iter().map(RefName::as_str).collect();
        writeln!(out, "  refs       {}", refs.join(", "))?;
    }
    writeln!(out, "  path       {}", found.path().display())?;
    writeln!(out, "  checksum   {}", manifest.checksum)?;
    let verified = human::verified(about.verified.as_ref(), now);
    let style = if about.verified.as_ref().is_some_and(|check| !check.ok) { out::ACT } else { Style::new() };
    writeln!(out, "  verified   {}", out::styled(style, verified))?;
    if let Some(state) = &about.signature {
        let style = if matches!(state, SignatureState::Bad { .. }) { out::LOOK } else { Style::new() };
        writeln!(out, "  signed     {}", out::styled(style, human::signature(state)))?;
    }
    writeln!(out, "  format     {}", format_in_words(found))?;
    if let (Some(alone), Some(shared)) = (about.alone_bytes, about.shared_bytes) {
        writeln!(out, "  costs      {} alone, {} shared with others", human_size(alone), human_size(shared))?;
    }
    print_metadata(manifest, &mut out)?;
    if manifest.files.is_empty() {
        return Ok(());
    }
    let total = human_size(manifest.size_bytes());
    writeln!(out, "  payload    {}, {total}", human::count(manifest.files.len(), "file"))?;
    let rows = manifest.files.iter().map(|file| {
        let digest = file.sha256.to_string();
        vec![human_size(file.size), digest[..12].to_owned(), human::harmless(file.path.as_str())]
    });
    for line in human::table(&["SIZE", "SHA-256", "PATH"], &[0], rows.collect()) {
        writeln!(out, "    {line}")?;
    }
    for link in &manifest.links {
        writeln!(out, "    {} → {}", human::harmless(link.path.as_str()), human::harmless(&link.target))?;
    }
    Ok(())
}

fn print_metadata(manifest: &Manifest, out: &mut impl Write) -> std::io::Result<()> {
    if manifest.metadata.is_empty() {
        return Ok(());
    }
    writeln!(out, "  metadata")?;
    let shown = |(key, value): (&String, &Value)| (human::harmless(key), human::harmless(&text_of(value)));
    let rows: Vec<_> = manifest.metadata.iter().map(shown).collect();
    let widest = rows.iter().map(|(key, _)| key.chars().count()).max().unwrap_or_default();
    for (key, value) in rows {
        writeln!(out, "    {key:<widest$}  {value}")?;
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

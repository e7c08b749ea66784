//! `model-store ls`.

use std::io::Write;
use std::os::unix::fs::MetadataExt;

use jiff::Timestamp;
use model_store::{AgentEntry, AgentName, Current, ModelStore, StagingEntry, StoreError, VersionName, exit};
use serde::Serialize;

use crate::cli::Global;
use crate::{human, out};

/// List the agents: what is current, how old and how big it is
///
/// SHARED is the part of SIZE that other versions hold too and that is stored once, by hard links. What a
/// file system shares by reflinks is not seen.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  model-store ls\n  model-store ls --json | jq '.agents[].current'")]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Listing<'a> {
    store: &'a std::path::Path,
    agents: Vec<Row>,
    aliases: Vec<Alias>,
}

#[derive(Serialize)]
struct Row {
    agent: AgentName,
    current: Option<VersionName>,
    created_at: Option<Timestamp>,
    size_bytes: Option<u64>,
    shared_bytes: Option<u64>,
    versions: Vec<VersionName>,
    stagings: Vec<StagingEntry>,
    /// Why the agent could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    exit_code: u8,
}

#[derive(Serialize)]
struct Alias {
    alias: AgentName,
    agent: AgentName,
}

pub(crate) fn run(global: &Global, _args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let mut listing = Listing { store: store.root(), agents: Vec::new(), aliases: Vec::new() };
    for entry in store.agents()? {
        match entry {
            AgentEntry::Agent(agent) => listing.agents.push(Row::of(&store, agent)),
            AgentEntry::Alias { alias, target } => listing.aliases.push(Alias { alias, agent: target }),
        }
    }
    let worst = listing.agents.iter().map(|row| row.exit_code).max().unwrap_or(exit::OK);
    out::unless_closed(if global.json { out::json(&listing) } else { print(&listing) })?;
    if !global.json {
        listing.agents.iter().filter_map(|row| row.error.as_ref()).for_each(out::warning);
    }
    Ok(worst)
}

impl Row {
    /// What is known of an agent. One that cannot be read does not keep the others from being listed.
    fn of(store: &ModelStore, agent: AgentName) -> Self {
        let mut row = Self {
            agent,
            current: None,
            created_at: None,
            size_bytes: None,
            shared_bytes: None,
            versions: Vec::new(),
            stagings: Vec::new(),
            error: None,
            exit_code: exit::OK,
        };
        if let Err(e) = row.read(store) {
            row.exit_code = e.exit_code();
            row.error = Some(human::with_causes(&e));
        }
        row
    }

    fn read(&mut self, store: &ModelStore) -> Result<(), StoreError> {
        self.versions = store.versions(&self.agent)?;
        self.stagings = store.stagings(&self.agent)?;
        if let Some(current) = store.get_current(&self.agent)? {
            self.current = Some(current.version().clone());
            self.created_at = current.manifest().created_at;
            self.size_bytes = Some(current.manifest().size_bytes()).filter(|bytes| *bytes > 0);
            self.shared_bytes = self.size_bytes.map(|_| shared_bytes(&current));
        }
        Ok(())
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), model_store::human_size);
        let current = self.current.as_ref().map_or("-", VersionName::as_str);
        vec![
            self.agent.to_string(),
            format!("{current}{}", self.remark(now)),
            human::age(self.created_at, now),
            bytes(self.size_bytes),
            bytes(self.shared_bytes),
            self.versions.len().to_string(),
        ]
    }

    /// What somebody should look at.
    fn remark(&self, now: Timestamp) -> String {
        if self.error.is_some() {
            return "  ⚠ unreadable".to_owned();
        }
        let left: Vec<_> = self.stagings.iter().filter(|staging| !staging.in_use).collect();
        match left.iter().map(|staging| staging.begun_at).min() {
            None => String::new(),
            Some(oldest) => {
                format!("  ⚠ {} left {}", human::count(left.len(), "staging"), human::age(Some(oldest), now))
            }
        }
    }
}

/// The bytes of a version whose files have more names than the one it knows them by.
fn shared_bytes(current: &Current) -> u64 {
    let files = current.manifest().files.iter();
    let is_shared = |path| {
        let meta = current.open(path).ok().and_then(|file| file.metadata().ok());
        meta.is_some_and(|meta| meta.nlink() > 1)
    };
    files.filter(|file| is_shared(&file.path)).map(|file| file.size).fold(0, u64::saturating_add)
}

fn print(listing: &Listing<'_>) -> anyhow::Result<()> {
    let mut out = out::stdout();
    let now = Timestamp::now();
    if listing.agents.is_empty() && listing.aliases.is_empty() {
        out::plain_error(&format!("no agents in {} yet", listing.store.display()));
    }
    if !listing.agents.is_empty() {
        let header = ["AGENT", "CURRENT", "AGE", "SIZE", "SHARED", "VERSIONS"];
        let rows = listing.agents.iter().map(|row| row.cells(now)).collect();
        for (number, line) in human::table(&header, &[3, 4, 5], rows).into_iter().enumerate() {
            writeln!(out, "{}", out::styled(human::row_style(number, &line), line))?;
        }
    }
    for Alias { alias, agent } in &listing.aliases {
        writeln!(out, "{alias} → {agent}")?;
    }
    Ok(out.flush()?)
}

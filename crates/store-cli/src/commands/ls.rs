//! `model-store ls`.

use std::io::Write;

use anstyle::Style;
use jiff::Timestamp;
use model_store::{
    AgentEntry, AgentName, Check, ModelStore, SignatureState, StagingEntry, StoreError, Unsigned,
    VersionName, exit, human_size,
};
use serde::Serialize;

use crate::cli::Global;
use crate::{human, out};

/// List the agents: what is current, how old and how big it is, and when it was verified
///
/// SHARED is the part of SIZE that other versions hold too and that is stored once, by hard links. What a
/// file system shares by reflinks is not seen. Ends with 4 where an agent cannot be read because it is
/// damaged.
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
    /// The last verification of the current version.
    verified: Option<Check>,
    /// How the current version stands with the keys that this store trusts.
    signature: Option<SignatureState>,
    /// The versions that were found damaged beyond repair.
    quarantined: Vec<VersionName>,
    /// Why the agent could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What the store does about versions that nobody has signed.
    #[serde(skip)]
    unsigned: Unsigned,
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
    let worst = human::worst(listing.agents.iter().map(|row| row.exit_code));
    out::unless_closed(if global.json { out::json(&listing) } else { print(&listing) })?;
    if !global.json {
        listing
            .agents
            .iter()
            .filter_map(|row| row.error.as_deref())
            .map(human::harmless)
            .for_each(out::warning);
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
            verified: None,
            signature: None,
            unsigned: Unsigned::Allow,
            quarantined: Vec::new(),
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
        for version in &self.versions {
            if store.quarantine(&self.agent, version)?.is_some() {
                self.quarantined.push(version.clone());
            }
        }
        if let Some(current) = store.get_current(&self.agent)? {
            let version = current.version();
            self.created_at = current.manifest().created_at;
            self.verified = store.last_check(&self.agent, version)?;
            let policy = store.signature_policy()?;
            self.signature = Some(current.signature_state(policy.trusted())?);
            self.unsigned = policy.unsigned;
            let usage = store.usage_of(&self.agent)?;
            let usage = usage.iter().find(|usage| usage.version == *version);
            self.size_bytes = usage.map(|usage| usage.bytes);
            self.shared_bytes = usage.map(|usage| usage.bytes_shared);
            self.current = Some(version.clone());
        }
        Ok(())
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let bytes = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), human_size);
        let current = self.current.as_ref().map_or("-", VersionName::as_str);
        let verified = match &self.current {
            Some(_) => human::verified(self.verified.as_ref(), now),
            None => "-".to_owned(),
        };
        vec![
            self.agent.to_string(),
            format!("{current}{}", self.remarks(now)),
            human::age(self.created_at, now),
            bytes(self.size_bytes),
            bytes(self.shared_bytes),
            self.versions.len().to_string(),
            verified,
        ]
    }

    /// What somebody should look at.
    fn remarks(&self, now: Timestamp) -> String {
        if self.error.is_some() {
            return "  ⚠ unreadable".to_owned();
        }
        let mut remarks = Vec::new();
        let current_too = self.is_current_quarantined();
        match self.quarantined.len() - usize::from(current_too) {
            _ if current_too => remarks.push("  ⚠ quarantined".to_owned()),
            0 => {}
            others => remarks.push(format!("  ⚠ {} quarantined", human::count(others, "version"))),
        }
        if self.unsigned != Unsigned::Allow {
            match self.signature {
                Some(SignatureState::Unsigned) => remarks.push("  ⚠ not signed".to_owned()),
                Some(SignatureState::Bad { .. }) => remarks.push("  ⚠ bad signature".to_owned()),
                Some(SignatureState::Signed { .. }) | None => {}
            }
        }
        let left: Vec<_> = self.stagings.iter().filter(|staging| !staging.in_use).collect();
        if let Some(oldest) = left.iter().map(|staging| staging.begun_at).min() {
            let (count, age) = (human::count(left.len(), "staging"), human::age(Some(oldest), now));
            remarks.push(format!("  ⚠ {count} left {age}"));
        }
        remarks.concat()
    }

    fn is_current_quarantined(&self) -> bool {
        self.current.as_ref().is_some_and(|current| self.quarantined.contains(current))
    }

    fn style(&self, now: Timestamp) -> Style {
        match &self.verified {
            _ if self.is_current_quarantined() => out::ACT,
            Some(check) if !check.ok => out::ACT,
            _ if self.remarks(now).is_empty() => Style::new(),
            _ => out::LOOK,
        }
    }
}

fn print(listing: &Listing<'_>) -> anyhow::Result<()> {
    let mut out = out::stdout();
    let now = Timestamp::now();
    if listing.agents.is_empty() && listing.aliases.is_empty() {
        out::plain_error(&format!("no agents in {} yet", listing.store.display()));
    }
    if !listing.agents.is_empty() {
        let header = ["AGENT", "CURRENT", "AGE", "SIZE", "SHARED", "VERSIONS", "VERIFIED"];
        let rows = listing.agents.iter().map(|row| row.cells(now)).collect();
        let styles = listing.agents.iter().map(|row| row.style(now));
        let styles = std::iter::once(out::BOLD).chain(styles);
        for (line, style) in human::table(&header, &[3, 4, 5], rows).into_iter().zip(styles) {
            writeln!(out, "{}", out::styled(style, line))?;
        }
    }
    for Alias { alias, agent } in &listing.aliases {
        writeln!(out, "{alias} → {agent}")?;
    }
    Ok(out.flush()?)
}

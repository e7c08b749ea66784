//! `model-store metrics`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use model_store::{Action, AgentName, ModelStore, Policy, Record, StoreError, Verdict, exit};
use store_sync::Seen;

use crate::cli::Global;
use crate::prometheus::Family;
use crate::{args, human, out};

/// Growth is looked at over so long; a younger store's over its age, but no less than a day.
const WINDOW: SignedDuration = SignedDuration::from_hours(30 * 24);
const SHORTEST_WINDOW: SignedDuration = SignedDuration::from_hours(24);

const EXAMPLES: &str = "\
Examples:
  model-store metrics
  model-store metrics --output /var/lib/node_exporter/textfile/model_store.prom    for a timer
  model-store metrics | promtool check metrics";

/// Print what Prometheus asks for: versions, bytes, ages, verifications, room
///
/// The metrics are in Prometheus' text format; `--json` has the same. An agent that cannot be read has
/// `model_store_agent_readable` 0, and the others are there nevertheless.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Write to this file, at once or not at all, as the collector of `node_exporter` wants it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let families = collect(&store)?;
    let families: Vec<_> = families.into_iter().filter(|family| !family.is_empty()).collect();
    let text = if global.json {
        let mut json = serde_json::to_string_pretty(&families)?;
        json.push('\n');
        json
    } else {
        families.iter().map(ToString::to_string).collect()
    };
    match &args.output {
        Some(path) => {
            put(path, &text).with_context(|| format!("could not write {}", path.display()))?;
        }
        None => io::stdout().lock().write_all(text.as_bytes())?,
    }
    Ok(exit::OK)
}

/// Replaces a file in one step. What is not finished does not end in `.prom`, so nobody collects it.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = fs::write(&temporary, text)
        // The collector is another user, whatever the umask here says.
        .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// The metrics that each agent has.
struct PerAgent {
    readable: Family,
    versions: Family,
    alone: Family,
    shared: Family,
    current: Family,
    published: Family,
    verified: Family,
    sound: Family,
    unverified: Family,
    corrupt: Family,
    quarantined: Family,
    stagings: Family,
    moves: Family,
}

impl PerAgent {
    fn new() -> Self {
        let gauge = Family::gauge;
        Self {
            readable: gauge("model_store_agent_readable", "Whether the agent could be read."),
            versions: gauge("model_store_versions", "Published versions."),
            alone: gauge("model_store_alone_bytes", "Payload that one version of the agent holds alone."),
            shared: gauge(
                "model_store_shared_bytes",
                "Payload shared by hard links with other versions; it counts for each that holds it.",
            ),
            current: gauge("model_store_current_info", "The current version; always 1."),
            published: gauge(
                "model_store_current_published_timestamp_seconds",
                "When the current version was published.",
            ),
            verified: gauge(
                "model_store_current_verified_timestamp_seconds",
                "When the current version was verified last.",
            ),
            sound: gauge(
                "model_store_current_verified_ok",
                "Whether the last verification of the current version found it sound.",
            ),
            unverified: gauge("model_store_unverified_versions", "Versions that were never verified."),
            corrupt: gauge("model_store_corrupt_versions", "Versions whose last verification found damage."),
            quarantined: gauge("model_store_quarantined_versions", "Versions in quarantine."),
            stagings: gauge("model_store_stale_stagings", "Stagings that dead writers left."),
            moves: Family::counter(
                "model_store_history_records_total",
                "Records in the history of the agent, by action.",
            ),
        }
    }

    fn read(&mut self, store: &ModelStore, agent: &AgentName) -> Result<Vec<Record>, StoreError> {
        let labels = [("agent", agent.as_str())];
        let usage = store.usage_of(agent)?;
        let history = store.history(agent)?;
        let stale = store.stagings(agent)?.iter().filter(|staging| !staging.in_use).count();
        let (mut unverified, mut corrupt, mut quarantined) = (0, 0, 0);
        for usage in &usage {
            match store.last_check(agent, &usage.version)? {
                None => unverified += 1,
                Some(check) => corrupt += u32::from(!check.ok),
            }
            quarantined += u32::from(store.quarantine(agent, &usage.version)?.is_some());
        }
        let sum = |bytes: u64, more: u64| bytes.saturating_add(more);
        let alone = usage.iter().map(|usage| usage.bytes_alone).fold(0, sum);
        let shared = usage.iter().map(|usage| usage.bytes_shared).fold(0, sum);
        self.versions.add(&labels, usage.len() as f64);
        self.alone.add(&labels, alone as f64);
        self.shared.add(&labels, shared as f64);
        self.unverified.add(&labels, f64::from(unverified));
        self.corrupt.add(&labels, f64::from(corrupt));
        self.quarantined.add(&labels, f64::from(quarantined));
        self.stagings.add(&labels, stale as f64);
        let mut moves: BTreeMap<String, u64> = BTreeMap::new();
        for record in &history {
            *moves.entry(record.action.to_string()).or_default() += 1;
        }
        for (action, count) in moves {
            self.moves.add(&[labels[0], ("action", &action)], count as f64);
        }
        if let Some(current) = store.get_current(agent)? {
            let version = current.version();
            self.current.add(&[labels[0], ("version", version.as_str())], 1.0);
            if let Some(at) = current.manifest().created_at {
                self.published.add(&labels, seconds(at));
            }
            if let Some(check) = store.last_check(agent, version)? {
                self.verified.add(&labels, seconds(check.at));
                self.sound.add(&labels, f64::from(u8::from(check.ok)));
            }
        }
        Ok(history)
    }

    fn families(self) -> [Family; 13] {
        [
            self.readable,
            self.versions,
            self.alone,
            self.shared,
            self.current,
            self.published,
            self.verified,
            self.sound,
            self.unverified,
            self.corrupt,
            self.quarantined,
            self.stagings,
            self.moves,
        ]
    }
}

fn collect(store: &ModelStore) -> anyhow::Result<Vec<Family>> {
    let now = Timestamp::now();
    let mut per_agent = PerAgent::new();
    let (mut readable, mut histories) = (Vec::new(), Vec::new());
    for agent in args::every_agent(store)? {
        let read = per_agent.read(store, &agent);
        per_agent.readable.add(&[("agent", agent.as_str())], f64::from(u8::from(read.is_ok())));
        match read {
            Ok(history) => {
                histories.extend(history);
                readable.push(agent);
            }
            Err(e) => out::warning(human::harmless(&human::with_causes(&e))),
        }
    }
    let mut families: Vec<Family> = per_agent.families().into();
    families.extend(candidates(store, &readable));
    families.extend(in_step(store, &readable, now));
    let space = store.space()?;
    let gauge = Family::gauge;
    families.extend([
        gauge("model_store_filesystem_size_bytes", "Size of the file system that the store is on.")
            .with(space.total_bytes as f64),
        gauge("model_store_filesystem_free_bytes", "Room on it for writers that are not root.")
            .with(space.free_bytes as f64),
    ]);
    let growth = Growth::of(&histories, now);
    families.push(
        gauge("model_store_growth_bytes", "What the store grew by in the last 30 days, by its histories.")
            .with(growth.bytes as f64),
    );
    if let Some(left) = growth.seconds_until_full(space.free_bytes) {
        let help =
            "When the file system is full if the store goes on growing; absent where it does not grow.";
        families.push(gauge("model_store_until_full_seconds", help).with(left));
    }
    Ok(families)
}

/// What `gc` would retire without any option.
fn candidates(store: &ModelStore, agents: &[AgentName]) -> Vec<Family> {
    let plan = match store.plan_gc(agents, &Policy::default()) {
        Ok(plan) => plan,
        Err(e) => {
            out::warning(human::harmless(&human::with_causes(&e)));
            return Vec::new();
        }
    };
    let mut versions = Family::gauge("model_store_gc_candidates", "Versions that gc would retire.");
    for agent in agents {
        let is_to_go = |verdict: &Verdict| matches!(verdict, Verdict::Retire { .. });
        let decisions = plan.decisions.iter();
        let count = decisions.filter(|one| one.agent == *agent && is_to_go(&one.verdict)).count();
        versions.add(&[("agent", agent.as_str())], count as f64);
    }
    let bytes = Family::gauge("model_store_gc_candidate_bytes", "What gc would free.");
    vec![versions, bytes.with(plan.bytes_to_free as f64)]
}

/// How far agents are behind their fleets, by what `pull`, `push` and `sync` noted.
fn in_step(store: &ModelStore, agents: &[AgentName], now: Timestamp) -> [Family; 7] {
    let (gauge, counter) = (Family::gauge, Family::counter);
    let mut serials =
        gauge("model_store_sync_lag_serials", "Moves of the remote's pointer not followed yet.");
    let mut lag = gauge(
        "model_store_sync_lag_seconds",
        "Since when the oldest of them is not followed; 0 where this host is in step.",
    );
    let mut contact = gauge("model_store_sync_contact_timestamp_seconds", "When the remote answered last.");
    let mut ok = gauge("model_store_sync_ok", "Whether the last look at the remote went well.");
    let mut failures = counter("model_store_sync_failures_total", "Looks at the remote that failed.");
    let mut received = counter("model_store_sync_received_bytes_total", "Bytes that came from the remote.");
    let mut sent = counter("model_store_sync_sent_bytes_total", "Bytes that went to the remote.");
    for agent in agents {
        for remote in store.noted_remotes(agent).unwrap_or_default() {
            let seen = match store.remote_note::<Seen>(agent, &remote) {
                Ok(Some(seen)) => seen,
                Ok(None) => continue,
                Err(e) => {
                    out::warning(human::harmless(&human::with_causes(&e)));
                    continue;
                }
            };
            let labels = [("agent", agent.as_str()), ("remote", seen.remote.as_str())];
            serials.add(&labels, seen.serial.saturating_sub(seen.applied_serial) as f64);
            let behind = seen.behind_since.map_or(0.0, |since| now.duration_since(since).as_secs_f64());
            lag.add(&labels, behind.max(0.0).round());
            if let Some(at) = seen.contact {
                contact.add(&labels, seconds(at));
            }
            ok.add(&labels, f64::from(u8::from(seen.trouble.is_none())));
            failures.add(&labels, seen.failures as f64);
            received.add(&labels, seen.received_bytes as f64);
            sent.add(&labels, seen.sent_bytes as f64);
        }
    }
    [serials, lag, contact, ok, failures, received, sent]
}

/// How the store grew.
#[derive(Debug, PartialEq)]
struct Growth {
    bytes: i64,
    over: SignedDuration,
}

impl Growth {
    fn of(records: &[Record], now: Timestamp) -> Self {
        let age = records.iter().map(|record| now.duration_since(record.at)).max().unwrap_or_default();
        let over = age.clamp(SHORTEST_WINDOW, WINDOW);
        let recent = records.iter().filter(|record| now.duration_since(record.at) <= over);
        let bytes = recent.map(|record| {
            let bytes = i64::try_from(record.bytes.unwrap_or_default()).unwrap_or(i64::MAX);
            match record.action {
                Action::Publish => bytes,
                Action::Retire => -bytes,
                _ => 0,
            }
        });
        Self { bytes: bytes.fold(0, i64::saturating_add), over }
    }

    fn seconds_until_full(&self, free_bytes: u64) -> Option<f64> {
        (self.bytes > 0).then(|| (free_bytes as f64 / self.bytes as f64 * self.over.as_secs_f64()).round())
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_came_less_what_went() {
        type Row<'a> = (&'a str, &'a [(Action, i64, u64)], i64, i64, Option<f64>);
        let day = 86_400.0;
        // Each record: what, how many days ago, how many bytes. Then bytes, days, and when 600 bytes are full.
        let rows: [Row<'_>; 6] = [
            ("nothing", &[], 0, 1, None),
            ("young", &[(Action::Publish, 0, 100)], 100, 1, Some(6.0 * day)),
            ("ten days", &[(Action::Publish, 10, 100), (Action::Publish, 1, 200)], 300, 10, Some(20.0 * day)),
            ("old", &[(Action::Publish, 90, 900), (Action::Publish, 15, 60)], 60, 30, Some(300.0 * day)),
            ("shrinks", &[(Action::Publish, 40, 900), (Action::Retire, 2, 500)], -500, 30, None),
            ("moves", &[(Action::Rollback, 12, 0), (Action::Publish, 6, 10)], 10, 12, Some(720.0 * day)),
        ];
        let now = Timestamp::from_second(1_800_000_000).unwrap_or_default();
        for (row, records, bytes, days, full) in rows {
            let records: Vec<Record> = records
                .iter()
                .map(|(action, days, bytes)| Record {
                    at: now - SignedDuration::from_hours(24 * days),
                    action: *action,
                    pointer: model_store::PointerName::Current,
                    from: None,
                    to: None,
                    checksum: None,
                    bytes: Some(*bytes),
                    by: String::new(),
                    reason: None,
                })
                .collect();
            let growth = Growth::of(&records, now);
            assert_eq!(growth, Growth { bytes, over: SignedDuration::from_hours(24 * days) }, "{row}");
            assert_eq!(growth.seconds_until_full(600), full, "{row}");
        }
    }
}

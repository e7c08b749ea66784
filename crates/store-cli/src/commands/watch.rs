//! `model-store watch`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use model_store::{AgentName, Change, Current, Digest, ModelStore, VersionName, Watch, exit};
use serde::Serialize;

use crate::args;
use crate::cli::Global;
use crate::{human, meter, out};

/// How soon Ctrl-C, and an agent that is new, are seen.
const LISTENS_EVERY: Duration = Duration::from_millis(100);
/// How often `--all` looks for agents that are new.
const LISTS_EVERY: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  model-store watch scout
  model-store watch --all --json | jq -r .checksum
  model-store watch scout --exec 'systemctl reload scout'
  model-store watch scout --once                   wait for the next move, then end

What --exec finds in its environment:
  MODEL_STORE_AGENT, MODEL_STORE_VERSION, MODEL_STORE_PATH and MODEL_STORE_CHECKSUM; the last three are
  empty where nothing is current any more";

/// Tell when `current` moves
///
/// A line says what is current now, and one more each time that changes. What lies between two looks does not
/// matter: only where `current` is. Ends with Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agents; one that is not there yet is waited for
    #[arg(required_unless_present = "all", value_name = "AGENT")]
    agents: Vec<AgentName>,
    /// Every agent, new ones too
    #[arg(long, conflicts_with = "agents")]
    all: bool,
    /// How often to look, at least
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = interval)]
    interval: Duration,
    /// Run this with `sh -c` after each change; the next one waits until it has ended
    ///
    /// What is current at the beginning is no change. Where it fails, a warning says so and the watch goes on.
    #[arg(long, value_name = "COMMAND")]
    exec: Option<String>,
    /// End after the first change
    #[arg(long)]
    once: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    match args::duration(text) {
        Ok(Duration::ZERO) => Err("there must be some time between two looks".to_owned()),
        other => other,
    }
}

/// A change as a script reads it.
#[derive(Serialize)]
struct Line<'a> {
    at: Timestamp,
    agent: &'a AgentName,
    from: Option<&'a VersionName>,
    to: Option<&'a VersionName>,
    checksum: Option<Digest>,
    path: Option<&'a std::path::Path>,
    /// Whether this is what was current when the watch began.
    first: bool,
}

struct Watched {
    watch: Watch,
    /// Whether it was looked at before.
    known: bool,
    /// What went wrong at the last look, so that it is said once.
    trouble: Option<String>,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let stop = meter::stop_on_request()?;
    let mut watched: Vec<Watched> =
        args.agents.iter().map(|agent| Watched::of(&store, agent, false)).collect();
    let (mut listed, mut looked): (Option<Instant>, Option<Instant>) = (None, None);
    while !stop.load(Ordering::Relaxed) {
        if args.all && listed.is_none_or(|at| at.elapsed() >= LISTS_EVERY.max(args.interval)) {
            add_new(&store, &mut watched, listed.is_some())?;
            listed = Some(Instant::now());
        }
        if looked.is_none_or(|at| at.elapsed() >= args.interval) {
            looked = Some(Instant::now());
            for one in &mut watched {
                let first = !one.known;
                let Some(change) = one.look() else { continue };
                // An agent whose first version is still being made.
                if change.from.is_none() && change.to.is_none() {
                    continue;
                }
                tell(global, &change, first)?;
                if !first {
                    if let Some(command) = &args.exec {
                        execute(command, &change, &stop)?;
                    }
                    if args.once && !stop.load(Ordering::Relaxed) {
                        return Ok(exit::OK);
                    }
                }
            }
        }
        let left = looked.map_or(Duration::ZERO, |at| args.interval.saturating_sub(at.elapsed()));
        std::thread::sleep(left.min(LISTENS_EVERY));
    }
    // Whoever waits for a move must not take a stop for one.
    Ok(if args.once { exit::INTERRUPTED } else { exit::OK })
}

/// Takes agents in that came into being. What such a one has is a change: it had nothing when the watch began.
fn add_new(store: &ModelStore, watched: &mut Vec<Watched>, known: bool) -> anyhow::Result<()> {
    for agent in args::every_agent(store)? {
        if watched.iter().all(|one| *one.watch.agent() != agent) {
            watched.push(Watched::of(store, &agent, known));
        }
    }
    Ok(())
}

impl Watched {
    fn of(store: &ModelStore, agent: &AgentName, known: bool) -> Self {
        Self { watch: store.watch(agent), known, trouble: None }
    }

    /// What changed. A look that failed is said once and tried again.
    fn look(&mut self) -> Option<Change> {
        match self.watch.poll() {
            Ok(change) => {
                self.known = true;
                self.trouble = None;
                change
            }
            Err(e) => {
                let trouble = human::with_causes(&e);
                if self.trouble.as_ref() != Some(&trouble) {
                    out::warning(human::harmless(&trouble));
                    self.trouble = Some(trouble);
                }
                None
            }
        }
    }
}

fn tell(global: &Global, change: &Change, first: bool) -> anyhow::Result<()> {
    let at = Timestamp::now();
    let at = at.round(jiff::Unit::Millisecond).unwrap_or(at);
    let mut out = out::stdout();
    let Change { agent, from, to } = change;
    let checksum = to.as_ref().map(Current::checksum);
    if global.json {
        let line = Line {
            at,
            agent,
            from: from.as_ref(),
            to: to.as_ref().map(Current::version),
            checksum,
            path: to.as_ref().map(Current::path),
            first,
        };
        writeln!(out, "{}", serde_json::to_string(&line)?)?;
    } else {
        let checksum = checksum.map_or_else(String::new, |checksum| format!("   checksum {checksum}"));
        let to = to.as_ref().map_or_else(|| "nothing".to_owned(), |to| to.version().to_string());
        match from {
            Some(from) => writeln!(out, "{at}  {agent}: {from} → {}{checksum}", out::styled(out::OK, to))?,
            None if first => writeln!(out, "{at}  {agent}: {to} is current{checksum}")?,
            None => writeln!(out, "{at}  {agent} → {}{checksum}", out::styled(out::OK, to))?,
        }
    }
    Ok(out.flush()?)
}

/// Runs a command and waits for it, unless the watch is to end.
fn execute(command: &str, change: &Change, stop: &AtomicBool) -> anyhow::Result<()> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).env("MODEL_STORE_AGENT", change.agent.as_str());
    let to = change.to.as_ref();
    shell.env("MODEL_STORE_VERSION", to.map_or("", |to| to.version().as_str()));
    shell.env("MODEL_STORE_CHECKSUM", to.map_or_else(String::new, |to| to.checksum().to_string()));
    match to {
        Some(to) => shell.env("MODEL_STORE_PATH", to.path()),
        None => shell.env("MODEL_STORE_PATH", ""),
    };
    let mut child = shell.spawn().context("could not start /bin/sh")?;
    while !stop.load(Ordering::Relaxed) {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                out::warning(format_args!("{command:?} ended with {status}"));
            }
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // It is of the terminal's group: Ctrl-C has reached it as well.
    Ok(())
}

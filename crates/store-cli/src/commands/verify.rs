//! `model-store verify`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use model_store::{
    AgentName, Check, ModelStore, RepairOptions, Report, Selector, StoreError, VerifyingKey, VersionName,
    exit,
};

use crate::args;
use crate::cli::Global;
use crate::meter::Meter;
use crate::scrub::{self, Targets, Verdict};
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  model-store verify                 the whole store
  model-store verify scout           every version of one agent
  model-store verify scout champion  one version
  model-store verify scout --signatures
  model-store verify --max-age 30d --budget 200MB/s --repair    for a timer

Without this program:
  cd \"$ROOT/scout/current\" && find . -type f ! -path ./manifest.json -printf '%P\\n' |
    LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum";

/// Read every file of one version, of an agent's versions or of all, and compare it with the manifest
///
/// Ends with 4 where anything is not as it was published. What was found is remembered, for `--max-age` and
/// for `ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent [default: all of them]
    agent: Option<AgentName>,
    /// The version, or a ref to it [default: all of the agent's]
    version: Option<Selector>,
    /// Read no faster than this, such as 200MB/s
    #[arg(long, value_name = "RATE", value_parser = args::bytes_per_second)]
    budget: Option<u64>,
    /// Only what was verified longer ago, or found damaged then, such as 30d; the oldest first
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    max_age: Option<Duration>,
    /// Mend what is damaged, as `repair` does
    #[arg(long)]
    repair: bool,
    /// Ask of every version that a key which the store trusts has signed it; ends with 6 where none has
    #[arg(long)]
    signatures: bool,
    /// With `--signatures`: trust this public key and not the store's, any number of times
    #[arg(long, value_name = "FILE", requires = "signatures")]
    public_key: Vec<PathBuf>,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let trusted = trusted(&store, args)?;
    let (mut targets, mut verdicts) = scrub::targets(&store, args.agent.as_ref(), args.version.as_ref())?;
    let there = targets.len();
    if let Some(max_age) = args.max_age {
        targets = due(&store, targets, max_age)?;
    }
    let meter = Meter::start("verifying", scrub::size_of(&store, &targets))?;
    let progress = meter.progress();
    let store = store.with_progress(match args.budget {
        Some(rate) => progress.with_budget(rate),
        None => progress,
    });
    if !global.json {
        for unread in &verdicts {
            out::unless_closed(unread.print(&store))?;
        }
    }
    let mut memory = Memory { store: &store, works: true };
    for (agent, version) in targets {
        let verdict = match check(&store, &agent, &version, args.repair, &mut memory) {
            Ok(verdict) => match &trusted {
                Some(trusted) => verdict.with_signature(&store, trusted),
                None => verdict,
            },
            Err(StoreError::Interrupted) => {
                meter.clear();
                out::plain_error("stopped");
                return Ok(exit::INTERRUPTED);
            }
            Err(e) => Verdict::failed(agent, Some(version), &e),
        };
        if !global.json {
            out::unless_closed(meter.clear_for(|| verdict.print(&store)))?;
        }
        verdicts.push(verdict);
    }
    meter.clear();
    if global.json {
        out::unless_closed(out::json(&verdicts))?;
    } else if there > 0 && verdicts.is_empty() {
        let versions = human::count(there, "version");
        out::plain_error(&format!("nothing is due: {versions} were verified since, and found sound"));
    } else if verdicts.is_empty() {
        out::plain_error(&format!("no versions in {} yet", store.root().display()));
    }
    Ok(scrub::exit_code(&verdicts))
}

/// Whose signatures are asked for; `None` where they are not.
fn trusted(store: &ModelStore, args: &Args) -> anyhow::Result<Option<Vec<VerifyingKey>>> {
    if !args.signatures {
        return Ok(None);
    }
    if args.public_key.is_empty() {
        return Ok(Some(store.signature_policy()?.trusted().to_vec()));
    }
    let keys: Result<_, _> = args.public_key.iter().map(|path| VerifyingKey::open(path)).collect();
    Ok(Some(keys?))
}

fn check(
    store: &ModelStore,
    agent: &AgentName,
    version: &VersionName,
    repair: bool,
    memory: &mut Memory<'_>,
) -> Result<Verdict, StoreError> {
    let begun = Instant::now();
    let report = store.verify(agent, version)?;
    if report.is_ok() || !repair {
        memory.note(&report, begun);
        // Sound, it may still bear a mark from before.
        let marked = repair && store.quarantine(agent, version)?.is_some();
        if !marked {
            return Ok(Verdict::of(report));
        }
    }
    let repaired = store.repair(agent, version, &RepairOptions::default())?;
    memory.note(&repaired.after, begun);
    Ok(Verdict::repaired(repaired))
}

/// Remembers what was found, as far as the store lets itself be written to.
pub(crate) struct Memory<'a> {
    pub(crate) store: &'a ModelStore,
    pub(crate) works: bool,
}

impl Memory<'_> {
    pub(crate) fn note(&mut self, report: &Report, begun: Instant) {
        if self.works
            && let Err(e) = self.store.note_check(report, begun.elapsed().as_secs_f64())
        {
            self.works = false;
            out::note(format_args!("what is found is not remembered: {}", human::with_causes(&e)));
        }
    }
}

/// What is to be verified again, the oldest first; what never was comes before.
fn due(store: &ModelStore, targets: Targets, max_age: Duration) -> Result<Targets, StoreError> {
    let now = Timestamp::now();
    let is_due = |check: &Check| {
        // One that is still to come, by a clock that was wrong, says nothing.
        let age = Duration::try_from(now.duration_since(check.at));
        !check.ok || age.map_or(true, |age| age >= max_age)
    };
    let mut due = Vec::new();
    for (agent, version) in targets {
        match store.last_check(&agent, &version)? {
            None => due.push((None, agent, version)),
            Some(check) if is_due(&check) => due.push((Some(check.at), agent, version)),
            Some(_) => {}
        }
    }
    // Stable: what is as old stays in the order of its agents and times.
    due.sort_by_key(|(at, ..)| *at);
    Ok(due.into_iter().map(|(_, agent, version)| (agent, version)).collect())
}

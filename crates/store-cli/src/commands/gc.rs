//! `model-store gc`.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;
use model_store::{AgentName, Collected, Decision, Plan, Policy, Verdict, exit, human_size};
use serde::Serialize;

use crate::args::{self, Mutation};
use crate::cli::Global;
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  model-store gc --all --dry-run                   what would go, what stays, and why
  model-store gc scout memory --keep 5
  model-store gc --all --older-than 30d --reason 'monthly'
  model-store gc --all --keep 1 --max-bytes 200GB  only as much as that takes";

/// Retire old versions
///
/// Whatever the options say, these stay: what `current` or a ref points at, what a process has open, mapped or
/// leased, and versions of a newer format. Ends with 1 where a version that was to go could not.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agents
    #[arg(required_unless_present = "all", value_name = "AGENT")]
    agents: Vec<AgentName>,
    /// Every agent
    #[arg(long, conflicts_with = "agents")]
    all: bool,
    /// So many of an agent's newest versions stay
    #[arg(long, value_name = "N", default_value_t = 3)]
    keep: usize,
    /// Only what was published longer ago may go, such as 30d
    #[arg(long, value_name = "TIME", value_parser = args::duration)]
    older_than: Option<Duration>,
    /// Retire, the oldest first, until the agents' versions take no more than this, such as 200GB
    #[arg(long, value_name = "SIZE", value_parser = args::bytes)]
    max_bytes: Option<u64>,
    /// What was published, or stopped being current, less than this ago stays
    #[arg(long, value_name = "TIME", default_value = "15min", value_parser = args::duration)]
    grace: Duration,
    /// Only say what would be done, and why
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    mutation: Mutation,
}

#[derive(Serialize)]
struct Answer {
    dry_run: bool,
    #[serde(flatten)]
    collected: Collected,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = args.mutation.open(global)?;
    let agents = if args.all { args::every_agent(&store)? } else { args.agents.clone() };
    let policy =
        Policy { keep: args.keep, older_than: args.older_than, max_bytes: args.max_bytes, grace: args.grace };
    let collected = if args.dry_run {
        let plan = store.plan_gc(&agents, &policy);
        let plan = args::or_stopped(plan, "nothing was retired")?;
        Collected { plan, retired: Vec::new(), bytes_freed: 0, problems: Vec::new() }
    } else {
        let collected = store.gc(&agents, &policy, &args.mutation.options());
        args::or_stopped(collected, "what was retired before stays retired")?
    };
    let answer = Answer { dry_run: args.dry_run, collected };
    out::unless_closed(if global.json { out::json(&answer) } else { print(&answer) })?;
    let Collected { plan, problems, .. } = &answer.collected;
    for note in &plan.notes {
        out::note(human::harmless(note));
    }
    for problem in problems {
        out::warning(human::harmless(problem));
    }
    Ok(if problems.is_empty() { exit::OK } else { exit::FAILURE })
}

fn print(answer: &Answer) -> anyhow::Result<()> {
    let Answer { dry_run, collected: Collected { plan, retired, bytes_freed, .. } } = answer;
    let mut out = out::stdout();
    let versions = human::count(plan.decisions.len(), "version");
    if plan.decisions.is_empty() {
        writeln!(out, "there are no versions yet")?;
    } else if *dry_run {
        print_plan(plan, &mut out)?;
        let going = plan.to_retire().count();
        let free = human_size(plan.bytes_to_free);
        writeln!(out, "of {versions} {going} would go, which would free {free}; nothing was changed")?;
    } else if retired.is_empty() {
        writeln!(out, "nothing to retire: {versions} stay, and `--dry-run` says why each does")?;
    } else {
        for gone in retired {
            let mut decisions = plan.decisions.iter();
            let decision = decisions.find(|one| one.agent == gone.agent && one.version == gone.version);
            let why = match decision.map(|decision| &decision.verdict) {
                Some(Verdict::Retire { reason }) => format!("   {reason}"),
                _ => String::new(),
            };
            writeln!(out, "{}  {}/{}{why}", out::styled(out::LOOK, "retired"), gone.agent, gone.version)?;
        }
        let gone = retired.len();
        writeln!(out, "of {versions} {gone} went, which freed {}", human_size(*bytes_freed))?;
    }
    Ok(out.flush()?)
}

fn print_plan(plan: &Plan, out: &mut impl Write) -> std::io::Result<()> {
    let now = Timestamp::now();
    let header = ["AGENT", "VERSION", "AGE", "SIZE", "ALONE", "PLAN", "WHY"];
    let rows = plan.decisions.iter().map(|decision| cells(decision, now)).collect();
    let lines = human::table(&header, &[2, 3, 4], rows);
    writeln!(out, "{}", out::styled(out::BOLD, &lines[0]))?;
    for (line, decision) in lines[1..].iter().zip(&plan.decisions) {
        let goes = matches!(decision.verdict, Verdict::Retire { .. });
        let style = if goes { out::LOOK } else { anstyle::Style::new() };
        writeln!(out, "{}", out::styled(style, line))?;
    }
    Ok(())
}

fn cells(decision: &Decision, now: Timestamp) -> Vec<String> {
    let (plan, why) = match &decision.verdict {
        Verdict::Keep { reasons } => ("keep", reasons.join(", ")),
        Verdict::Retire { reason } => ("retire", reason.clone()),
    };
    vec![
        decision.agent.to_string(),
        decision.version.to_string(),
        human::age(Some(decision.published_at), now),
        human_size(decision.bytes),
        human_size(decision.bytes_alone),
        plan.to_owned(),
        human::harmless(&why),
    ]
}

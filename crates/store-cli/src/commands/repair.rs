//! `model-store repair`.

use std::time::Instant;

use model_store::{AgentName, RepairOptions, Selector, StoreError, exit};

use crate::args::Mutation;
use crate::cli::Global;
use crate::commands::verify::Memory;
use crate::meter::Meter;
use crate::out;
use crate::scrub::{self, Verdict};

const EXAMPLES: &str = "\
Examples:
  model-store repair scout v1
  model-store repair                               the whole store
  model-store repair scout --remove-unlisted --reason 'stray files of a failed rsync'";

/// Verify versions and mend them from sound bytes elsewhere in the store
///
/// A file that was altered or lost is replaced by an identical one of any other version, from another inode.
/// Modes, groups and links are set right. What cannot be mended is quarantined: no pointer is moved to it,
/// strict readers refuse it and others are warned; once it is sound again it is released. Ends with 4 where
/// something stays damaged.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent [default: all of them]
    agent: Option<AgentName>,
    /// The version, or a ref to it [default: all of the agent's]
    version: Option<Selector>,
    /// Remove files that the manifest does not list; otherwise they are reported and stay
    #[arg(long)]
    remove_unlisted: bool,
    #[command(flatten)]
    mutation: Mutation,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?.with_lock_patience(args.mutation.wait());
    let (targets, mut verdicts) = scrub::targets(&store, args.agent.as_ref(), args.version.as_ref())?;
    let meter = Meter::start("verifying", scrub::size_of(&store, &targets))?;
    let store = store.with_progress(meter.progress());
    if !global.json {
        for unread in &verdicts {
            out::unless_closed(unread.print(&store))?;
        }
    }
    let options = RepairOptions { remove_unlisted: args.remove_unlisted, record: args.mutation.options() };
    let mut memory = Memory { store: &store, works: true };
    for (agent, version) in targets {
        let begun = Instant::now();
        let verdict = match store.repair(&agent, &version, &options) {
            Ok(repaired) => {
                memory.note(&repaired.after, begun);
                Verdict::repaired(repaired)
            }
            Err(StoreError::Interrupted) => {
                meter.clear();
                out::plain_error("stopped; what was mended stays mended");
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
    } else if verdicts.is_empty() {
        out::plain_error(&format!("no versions in {} yet", store.root().display()));
    }
    Ok(scrub::exit_code(&verdicts))
}

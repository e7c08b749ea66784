//! `model-store activate`.

use model_store::{AgentName, Selector};

use crate::args::{self, Mutation};
use crate::cli::Global;
use crate::moved;

const EXAMPLES: &str = "\
Examples:
  model-store activate scout v2
  model-store activate scout candidate --reason 'a week of shadow traffic without a difference'";

/// Make a published version current
///
/// One durable step: readers have the old version or the new one. A version that is quarantined, or whose
/// files are not all there in their sizes, is refused; its bytes are compared by `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The version, or a ref to it
    version: Selector,
    #[command(flatten)]
    mutation: Mutation,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = args.mutation.open(global)?;
    let version = store.select(&args.agent, &args.version)?.version().clone();
    // Under the name that was given: an alias is for readers, and the store says so.
    let moved = store.activate(&args.agent, &version, &args.mutation.options());
    moved::print(global, &args::or_stopped(moved, "nothing was moved")?)
}

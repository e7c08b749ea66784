//! `model-store rollback`.

use model_store::{AgentName, Selector};

use crate::args::{self, Mutation};
use crate::cli::Global;
use crate::moved;

const EXAMPLES: &str = "\
Examples:
  model-store rollback scout --reason 'labels flipped on short headlines'
  model-store rollback scout                       once more: back to where it was
  model-store rollback scout --to v1";

/// Make current again what was current before
///
/// One durable step; readers that have the newer version open keep it until they look again. Done twice, it
/// leads back.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The version, or a ref to it, instead of the one before
    #[arg(long, value_name = "VERSION")]
    to: Option<Selector>,
    #[command(flatten)]
    mutation: Mutation,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = args.mutation.open(global)?;
    let to = match &args.to {
        Some(selector) => Some(store.select(&args.agent, selector)?.version().clone()),
        None => None,
    };
    let moved = store.rollback(&args.agent, to.as_ref(), &args.mutation.options());
    moved::print(global, &args::or_stopped(moved, "nothing was moved")?)
}

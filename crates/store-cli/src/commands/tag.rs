//! `model-store tag`.

use model_store::{AgentName, RefName, Selector};

use crate::args::{self, Mutation};
use crate::cli::Global;
use crate::moved;

const EXAMPLES: &str = "\
Examples:
  model-store tag scout candidate v3
  model-store tag scout champion candidate         promote it
  model-store tag scout pin-audit current          keep it from being retired";

/// Point a ref of an agent at a version
///
/// A ref is a second pointer beside `current`, under a name of your own. Whatever takes a version takes a ref,
/// and what a ref points at is never retired.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The ref; it is made where it is new
    #[arg(value_name = "REF")]
    name: RefName,
    /// The version, another ref, or `current`
    version: Selector,
    #[command(flatten)]
    mutation: Mutation,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = args.mutation.open(global)?;
    let version = store.select(&args.agent, &args.version)?.version().clone();
    let moved = store.tag(&args.agent, &args.name, &version, &args.mutation.options());
    moved::print(global, &args::or_stopped(moved, "nothing was moved")?)
}

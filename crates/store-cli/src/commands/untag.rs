//! `model-store untag`.

use model_store::{AgentName, RefName};

use crate::args::{self, Mutation};
use crate::cli::Global;
use crate::moved;

/// Take a ref away; the version that it points at stays
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  model-store untag scout candidate --reason 'promoted'")]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The ref
    #[arg(value_name = "REF")]
    name: RefName,
    #[command(flatten)]
    mutation: Mutation,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = args.mutation.open(global)?;
    let moved = store.untag(&args.agent, &args.name, &args.mutation.options());
    moved::print(global, &args::or_stopped(moved, "nothing was taken away")?)
}

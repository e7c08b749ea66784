//! `model-store completions`.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;
use model_store::exit;

use crate::cli::Cli;

/// Print the completions of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  model-store completions bash > /etc/bash_completion.d/model-store")]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "model-store", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(exit::OK)
}

//! `model-store man`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::Man;
use model_store::exit;

use crate::cli::Cli;

const EXAMPLES: &str = "\
Examples:
  model-store man | man -l -
  model-store man gc | man -l -
  model-store man --dir /usr/local/share/man/man1";

/// Print a manual page, or write all of them
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The command the page is of [default: model-store itself]
    #[arg(conflicts_with = "dir")]
    command: Option<String>,
    /// Write all pages into this directory
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<u8> {
    let mut all = Cli::command().disable_help_subcommand(true);
    all.build();
    if let Some(dir) = &args.dir {
        fs::create_dir_all(dir).with_context(|| format!("could not make {}", dir.display()))?;
        for command in with_subcommands(&all) {
            let path = dir.join(Man::new(command.clone()).get_filename());
            fs::write(&path, page(command)?)
                .with_context(|| format!("could not write {}", path.display()))?;
        }
        return Ok(exit::OK);
    }
    let command = match &args.command {
        None => &all,
        Some(name) => all.find_subcommand(name).unwrap_or_else(|| {
            let message = format!("there is no command {name}");
            Cli::command().error(clap::error::ErrorKind::InvalidValue, message).exit()
        }),
    };
    io::stdout().lock().write_all(&page(command)?)?;
    Ok(exit::OK)
}

/// A command and all below it.
fn with_subcommands(command: &clap::Command) -> Vec<&clap::Command> {
    std::iter::once(command).chain(command.get_subcommands().flat_map(with_subcommands)).collect()
}

/// A page in the language of `man`.
fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone())
        .source(concat!("model-store ", env!("CARGO_PKG_VERSION")))
        .manual("model-store");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    // Examples keep their lines, which the generator would fill.
    let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    for line in notes.lines() {
        match line.strip_suffix(':').filter(|line| !line.starts_with(' ')) {
            Some(title) => writeln!(page, ".fi\n.SH \"{}\"\n.nf", title.to_uppercase())?,
            None => writeln!(page, "{}", escaped(line.strip_prefix("  ").unwrap_or(line)))?,
        }
    }
    page.extend(b".fi\n");
    Ok(page)
}

/// A line as it is: no request, no escape.
fn escaped(line: &str) -> String {
    format!("\\&{}", line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq"))
}

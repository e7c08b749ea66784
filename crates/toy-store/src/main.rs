//! `toy-store`: makes a miniature model store.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use model_store::{ModelStore, exit, human_size};
use serde_json::json;
use toy_store::{ALIAS, DEFAULT_SEED, Kind, Outcome, PublishedToy, ToyError};

const EXAMPLES: &str = "\
Examples:
  toy-store
      fill the store that MODEL_STORE_ROOT names; a second run finds everything there
  toy-store --store /tmp/store --seed 7
      another store, other models
  toy-store --json | jq -r '.versions[].checksum'
      for scripts

Exit codes:
  0 everything is there   1 failure   2 usage   4 corrupt   5 busy
  6 refused (a version of that name holds something else)   7 environment (no space, no permission)

The same seed makes the same files with the same checksums on every machine.";

/// Make a miniature of a real model store: three agents, two versions each, trained in seconds
///
/// `analyst` classifies sentences as negative, neutral or positive; `memory` embeds sentences; `synthesizer` writes small
/// news stories. `news-cleaner-agent` is a legacy alias of `synthesizer`.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    /// What everything is made from
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SEED)]
    seed: u64,

    /// The model store; made where it is missing [default: `MODEL_STORE_ROOT`, else /opt/justnews/models]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(error.downcast_ref::<ToyError>().map_or(exit::FAILURE, ToyError::exit_code))
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let root = cli.store.clone().unwrap_or_else(ModelStore::root_from_env);
    let store = ModelStore::create(root).map_err(ToyError::from)?;
    let rows = toy_store::publish(&store, cli.seed)?;
    let shown = if cli.json { as_json(&store, cli.seed, &rows)? } else { as_table(&store, &rows) };
    match io::stdout().write_all(shown.as_bytes()) {
        // A reader that has gone away has seen enough.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// The error and its causes, once each; those that a message already quotes are left out.
fn report(error: &anyhow::Error) {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    // Nobody is left to tell when the standard error is closed.
    let _ = writeln!(io::stderr(), "error: {message}");
}

fn as_json(store: &ModelStore, seed: u64, rows: &[PublishedToy]) -> anyhow::Result<String> {
    let object = json!({
        "store": store.root(),
        "seed": seed,
        "versions": rows,
        "aliases": {ALIAS: Kind::Synthesizer.agent()},
    });
    Ok(serde_json::to_string_pretty(&object)? + "\n")
}

fn as_table(store: &ModelStore, rows: &[PublishedToy]) -> String {
    let heading = ["AGENT", "VERSION", "KIND", "FILES", "SIZE", "CHECKSUM", ""].map(str::to_owned);
    let line = |row: &PublishedToy| {
        let state = match (row.outcome, row.is_current) {
            (Outcome::Published, true) => "published, current",
            (Outcome::Published, false) => "published",
            (Outcome::AlreadyThere, true) => "already there, same checksum, current",
            (Outcome::AlreadyThere, false) => "already there, same checksum",
        };
        [
            row.agent.to_string(),
            row.version.to_string(),
            row.kind.to_owned(),
            row.files.to_string(),
            human_size(row.bytes),
            row.checksum.to_string().chars().take(12).collect(),
            state.to_owned(),
        ]
    };
    let lines: Vec<_> = std::iter::once(heading).chain(rows.iter().map(line)).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            3 | 4 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    let total = rows.iter().map(|row| row.bytes).sum();
    let ending = format!(
        "{ALIAS} → {}\n\n{} in {}\nnext: cargo run -p build-engine -- --agent analyst --precision fp16\n",
        Kind::Synthesizer.agent(),
        human_size(total),
        store.root().display(),
    );
    text + &ending
}

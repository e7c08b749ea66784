//! The command line, from which help, man pages and completions come.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Parser, Subcommand};
use model_store::{DEFAULT_ROOT, ModelStore, StoreError};

use crate::commands::{
    activate, completions, diff, doctor, gc, history, keygen, ls, man, metrics, path, policy, publish, pull,
    push, refs, remote, repair, rollback, show, sign, sync, tag, untag, verify, watch,
};

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

const GLOBAL: &str = "Everywhere";

const AFTER_HELP: &str = "\
Examples:
  model-store ls                                  what is there
  model-store publish scout v2 --from ./trained   publish a folder and make it current
  cd \"$(model-store path scout)\"                  go to the current version
  model-store rollback scout                      back to what was current before
  model-store verify                              compare every file with its manifest
  model-store sign scout --key release.pem        sign what is current
  model-store gc --all --dry-run                  what could be retired, and why
  model-store push scout --remote s3://models     send it to an object store, for every other host
  model-store sync --all --follow 30s             on those hosts: keep in step
  model-store doctor                              what is wrong with the store or its host

Exit codes:
  0  ok             4  corrupt            8    remote
  1  failure        5  busy               130  stopped by Ctrl-C
  2  usage          6  refused
  3  not found      7  environment (no space, no permission)";

/// Look at a model store, publish into it, move its pointers, and keep it sound and small.
#[derive(Debug, Parser)]
#[command(name = "model-store", version, styles = STYLES, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every subcommand knows.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The store [default: /opt/justnews/models]
    #[arg(
        long,
        global = true,
        env = "MODEL_STORE_ROOT",
        value_name = "DIR",
        value_parser = OsStringValueParser::new().map(PathBuf::from),
        hide_env_values = true,
        help_heading = GLOBAL
    )]
    store: Option<PathBuf>,
    /// Print JSON, with exact sizes and times
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(crate) json: bool,
}

impl Global {
    /// Opens the store.
    pub(crate) fn open(&self) -> Result<ModelStore, StoreError> {
        // An empty variable is an unset one.
        let root = self.store.as_ref().filter(|root| !root.as_os_str().is_empty());
        ModelStore::open(root.cloned().unwrap_or_else(|| DEFAULT_ROOT.into()))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Ls(ls::Args),
    Show(show::Args),
    Publish(publish::Args),
    Path(path::Args),
    Diff(diff::Args),
    Activate(activate::Args),
    Rollback(rollback::Args),
    Tag(tag::Args),
    Untag(untag::Args),
    Refs(refs::Args),
    History(history::Args),
    Gc(gc::Args),
    Verify(verify::Args),
    Repair(repair::Args),
    Doctor(doctor::Args),
    Keygen(keygen::Args),
    Sign(sign::Args),
    Policy(policy::Args),
    Watch(watch::Args),
    Push(push::Args),
    Pull(pull::Args),
    Sync(sync::Args),
    Remote(remote::Args),
    Metrics(metrics::Args),
    Completions(completions::Args),
    Man(man::Args),
}

//! One file a subcommand; each owns its arguments.

pub(crate) mod activate;
pub(crate) mod completions;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod gc;
pub(crate) mod history;
pub(crate) mod keygen;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod metrics;
pub(crate) mod path;
pub(crate) mod policy;
pub(crate) mod publish;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod refs;
pub(crate) mod remote;
pub(crate) mod repair;
pub(crate) mod rollback;
pub(crate) mod show;
pub(crate) mod sign;
pub(crate) mod sync;
pub(crate) mod tag;
pub(crate) mod untag;
pub(crate) mod verify;
pub(crate) mod watch;

use crate::cli::{Cli, Command};

/// Runs a subcommand and gives its exit code.
pub(crate) fn run(cli: Cli) -> anyhow::Result<u8> {
    match cli.command {
        Command::Ls(args) => ls::run(&cli.global, &args),
        Command::Show(args) => show::run(&cli.global, &args),
        Command::Publish(args) => publish::run(&cli.global, args),
        Command::Path(args) => path::run(&cli.global, &args),
        Command::Diff(args) => diff::run(&cli.global, &args),
        Command::Activate(args) => activate::run(&cli.global, &args),
        Command::Rollback(args) => rollback::run(&cli.global, &args),
        Command::Tag(args) => tag::run(&cli.global, &args),
        Command::Untag(args) => untag::run(&cli.global, &args),
        Command::Refs(args) => refs::run(&cli.global, &args),
        Command::History(args) => history::run(&cli.global, &args),
        Command::Gc(args) => gc::run(&cli.global, &args),
        Command::Verify(args) => verify::run(&cli.global, &args),
        Command::Repair(args) => repair::run(&cli.global, &args),
        Command::Doctor(args) => doctor::run(&cli.global, &args),
        Command::Keygen(args) => keygen::run(&cli.global, &args),
        Command::Sign(args) => sign::run(&cli.global, &args),
        Command::Policy(args) => policy::run(&cli.global, &args),
        Command::Watch(args) => watch::run(&cli.global, &args),
        Command::Push(args) => push::run(&cli.global, &args),
        Command::Pull(args) => pull::run(&cli.global, &args),
        Command::Sync(args) => sync::run(&cli.global, &args),
        Command::Remote(args) => remote::run(&cli.global, &args),
        Command::Metrics(args) => metrics::run(&cli.global, &args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}

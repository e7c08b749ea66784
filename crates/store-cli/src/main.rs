//! `model-store`: look at a model store, publish into it, move its pointers, and keep it sound and small.

mod args;
mod cli;
mod commands;
mod human;
mod meter;
mod moved;
mod notify;
mod out;
mod prometheus;
mod remotes;
mod scrub;

use std::process::ExitCode;

use clap::Parser;
use model_store::{KeyError, NameError, StoreError, exit};
use store_sync::SyncError;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(report(&error)),
    }
}

/// A key's file is an argument: what is wrong with it is a mistake of the caller's.
fn code_of_key(error: &KeyError) -> u8 {
    match error {
        KeyError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => exit::NOT_FOUND,
        KeyError::Read { .. } | KeyError::NoRandomness(_) => exit::ENVIRONMENT,
        KeyError::Exposed { .. } => exit::REFUSED,
        _ => exit::USAGE,
    }
}

/// Prints an error with its causes, and says which code to end with.
fn report(error: &anyhow::Error) -> u8 {
    if out::is_closed(error) {
        // Whoever read our output has seen enough.
        return exit::OK;
    }
    let store_error = error.downcast_ref::<StoreError>();
    let sync_error = error.downcast_ref::<SyncError>();
    if let (Some(StoreError::Interrupted), _) | (_, Some(SyncError::Stopped)) = (store_error, sync_error) {
        out::plain_error(&error.to_string());
    } else {
        out::error(error);
    }
    store_error
        .map(StoreError::exit_code)
        .or_else(|| sync_error.map(SyncError::exit_code))
        .or_else(|| error.downcast_ref::<NameError>().map(NameError::exit_code))
        .or_else(|| error.downcast_ref::<KeyError>().map(code_of_key))
        .unwrap_or(exit::FAILURE)
}

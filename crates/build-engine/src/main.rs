//! The command that turns a model into a checked, published TensorRT engine.

mod bench;
mod build;
mod cli;
mod doctor;
mod failure;
mod fetching;
mod inspect;
mod preflight;
mod roster;
mod show;
mod source;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    #[cfg(feature = "tensorrt")]
    if std::env::args_os().nth(1).is_some_and(|argument| argument == trt_compiler::engine::WORKER_ARGUMENT) {
        return trt_compiler::engine::worker_main();
    }
    let cli = cli::Cli::parse();
    let result = match cli.command {
        Some(cli::Command::Doctor(args)) => doctor::run(&args),
        Some(cli::Command::Preflight(args)) => preflight::run(&args),
        Some(cli::Command::Inspect(args)) => inspect::run(&args),
        Some(cli::Command::Bench(args)) => bench::run(&args),
        Some(cli::Command::Completions { shell }) => cli::completions(shell),
        None => build::run(&cli.build),
    };
    match result {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

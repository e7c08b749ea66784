//! The row about building: a model folder to a published, gated fp16 engine, as the command does it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{bail, ensure};

use crate::embed::model_folder;
use crate::pairs::{Measured, timed};

/// From a folder to an engine in a store, against what only exports the model. No GPU takes part.
pub(crate) fn measure(place: &Path) -> anyhow::Result<Measured> {
    let (folder, optimum, build_engine) = (model_folder()?, optimum()?, build_engine()?);
    let (store, out) = (place.join("store"), place.join("out"));
    let run = |command: &mut Command| {
        let output = command.env("HF_HUB_OFFLINE", "1").output()?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    Measured::in_turn(
        |_| {
            let took = timed(|| {
                let agent = ["--agent", "bench", "--precision", "fp16", "--source"];
                run(Command::new(&build_engine).args(agent).arg(&folder).arg("--store").arg(&store))
            })?;
            std::fs::remove_dir_all(&store)?;
            Ok(took)
        },
        |_| {
            let took = timed(|| {
                let task = ["--task", "feature-extraction"];
                let arguments = ["export", "onnx", "--model"];
                run(Command::new(&optimum).args(arguments).arg(&folder).args(task).arg(&out))
            })?;
            std::fs::remove_dir_all(&out)?;
            Ok(took)
        },
    )
}

/// The command, built as this program is: it is a program of its own, and what is measured is a person's wait for it.
fn build_engine() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    let status = Command::new(cargo).args(["build", "-p", "build-engine", "--profile", profile]).status()?;
    ensure!(status.success(), "build-engine could not be built: {status}");
    Ok(std::env::current_exe()?.with_file_name("build-engine"))
}

fn optimum() -> anyhow::Result<PathBuf> {
    let optimum = std::env::var_os("BENCH_OPTIMUM")
        .map_or_else(|| "target/bench/optimum/bin/optimum-cli".into(), PathBuf::from);
    if !optimum.is_file() {
        bail!(
            "{} is not there: `make bench-peers` installs it, or name an optimum-cli with BENCH_OPTIMUM",
            optimum.display()
        );
    }
    Ok(optimum)
}

//! The row about exporting: all-MiniLM-L6-v2 to ONNX, a process each.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use onnx_export::{Checkpoint, ExportOptions, Head, Lowering, Precision, export};

use crate::embed::{model_folder, python};
use crate::pairs::{Measured, timed};

/// The word that makes this program a process that exports a model and ends.
pub(crate) const EXPORT: &str = "__export";

const PEER: &str = include_str!("../peers/export.py");

/// What [`EXPORT`] does.
pub(crate) fn export_one(folder: &str, out: &str) -> anyhow::Result<()> {
    let options = ExportOptions {
        lowering: Lowering::Portable,
        ..ExportOptions::new(Head::HiddenStates, Precision::Fp32)
    };
    std::fs::write(out, export(&Checkpoint::open(folder)?, &options)?.onnx)?;
    Ok(())
}

/// From a folder to a file, the start of the process and the load of the model among it.
pub(crate) fn measure(place: &Path) -> anyhow::Result<Measured> {
    let (folder, python) = (model_folder()?, python()?);
    let script = place.join("export.py");
    std::fs::write(&script, PEER)?;
    let (ours, out) = (std::env::current_exe()?, place.join("model.onnx"));
    let run = |command: &mut Command| {
        let output = command.arg(&folder).arg(&out).env("HF_HUB_OFFLINE", "1").output()?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(std::fs::remove_file(&out)?)
    };
    Measured::in_turn(
        |_| timed(|| run(Command::new(&ours).arg(EXPORT))),
        |_| timed(|| run(Command::new(&python).arg(&script))),
    )
}

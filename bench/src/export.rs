//! The row about exporting: all-MiniLM-L6-v2 to ONNX, a process each.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
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
    println!("{}", peak_kib()?);
    Ok(())
}

/// The most memory that this process has had, in KiB (`VmHWM` of proc(5)), as Python's `ru_maxrss` says it.
fn peak_kib() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let digits =
        peak.and_then(|rest| rest.trim().strip_suffix("kB")).context("no VmHWM in /proc/self/status")?;
    Ok(digits.trim().parse()?)
}

/// From a folder to a file, the start of the process and the load of the model among it.
pub(crate) fn measure(place: &Path) -> anyhow::Result<Measured> {
    let (folder, python) = (model_folder()?, python()?);
    let script = place.join("export.py");
    std::fs::write(&script, PEER)?;
    let (ours, out) = (std::env::current_exe()?, place.join("model.onnx"));
    let run = |command: &mut Command, peaks: &RefCell<Vec<f64>>| {
        let output = command.arg(&folder).arg(&out).env("HF_HUB_OFFLINE", "1").output()?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout)?;
        let peak: f64 =
            said.lines().last().unwrap_or_default().parse().with_context(|| format!("it said {said:?}"))?;
        peaks.borrow_mut().push(peak * 1024.0);
        Ok(std::fs::remove_file(&out)?)
    };
    let (ours_bytes, peer_bytes) = (RefCell::default(), RefCell::default());
    let measured = Measured::in_turn(
        |_| timed(|| run(Command::new(&ours).arg(EXPORT), &ours_bytes)),
        |_| timed(|| run(Command::new(&python).arg(&script), &peer_bytes)),
    )?;
    let (ours_bytes, peer_bytes) = (ours_bytes.into_inner(), peer_bytes.into_inner());
    Ok(Measured { bytes_of: "memory", ours_bytes, peer_bytes, ..measured })
}

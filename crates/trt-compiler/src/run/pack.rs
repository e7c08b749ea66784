//! The step that writes weights in few bits beside the graph.

use model_store::{FileEntry, Staging, human_size};
use onnx_export::Checkpoint;

use super::{Run, payload_path};
use crate::error::CompileError;
use crate::job::Plan;
use crate::observer::Step;
use crate::pack::{self, PackedRecord};

impl Run<'_> {
    /// Writes the second file of weights, where the precision has one.
    pub(super) fn pack(
        &mut self,
        staging: &Staging,
        plan: &Plan,
    ) -> Result<Option<(FileEntry, PackedRecord)>, CompileError> {
        let Some(packed) = &plan.exported.packed else { return Ok(None) };
        self.step(Step::Quantize, |run| {
            let checkpoint = Checkpoint::open(staging.path())?;
            let mut writer = staging.writer(&payload_path(packed.file)?)?;
            let record = pack::write(&checkpoint, packed, &mut writer, run.interrupt, |done, total| {
                run.observer.progress(Step::Quantize, done as u64, total as u64, "");
            })?;
            let entry = writer.finish()?;
            let summary = record.summary();
            Ok((Some((entry, record)), summary))
        })
    }
}

impl PackedRecord {
    /// For people, in a line.
    #[must_use]
    pub fn summary(&self) -> String {
        let Self { file, bytes, bits, block, layers, error, .. } = self;
        let blocks = if *bits < 8 { format!(", blocks of {block}") } else { String::new() };
        format!(
            "{file} {}: {layers} layers in {bits} bits{blocks}, weights off by {:.2} %",
            human_size(*bytes),
            100.0 * error
        )
    }
}

//! The step that writes the graph, and its weights where they are to be in its own precision.

use std::io;

use model_store::{FileEntry, Staging, human_size};
use onnx_export::{Checkpoint, ConvertedWeights, ExportError};

use super::{GRAPH, Run, payload_path};
use crate::error::CompileError;
use crate::interrupt::Interrupted;
use crate::job::{Plan, WeightForm};
use crate::observer::Step;

impl Run<'_> {
    /// Writes the graph of the plan, which is not known whole before that; what is written beside it joins the files.
    pub(super) fn write_graph(
        &self,
        staging: &Staging,
        plan: &mut Plan,
        files: &mut Vec<FileEntry>,
    ) -> Result<((), String), CompileError> {
        if let Some(given) = &plan.given {
            let summary = format!(
                "{GRAPH} as it came ({}), {}, opset {}, {} nodes, {} of weights",
                given.record.file,
                plan.export.precision,
                plan.export.opset,
                plan.export.nodes,
                human_size(plan.export.weight_bytes)
            );
            return Ok(((), summary));
        }
        let whose = match self.job.weights {
            WeightForm::Stored => "weights stay where they are".to_owned(),
            WeightForm::Materialised => self.materialise(staging, plan, files)?,
        };
        staging.write(&payload_path(GRAPH)?, &plan.exported.onnx)?;
        let summary = format!(
            "{GRAPH} {}, {}, {} nodes; {whose} ({})",
            human_size(plan.exported.onnx.len() as u64),
            plan.export.precision,
            plan.export.nodes,
            human_size(plan.export.weight_bytes)
        );
        Ok(((), summary))
    }

    fn materialise(
        &self,
        staging: &Staging,
        plan: &mut Plan,
        files: &mut Vec<FileEntry>,
    ) -> Result<String, CompileError> {
        let checkpoint = Checkpoint::open(staging.path())?;
        // A name that no model's own file has: which weights are whose is seen at a glance.
        let name = format!("graph-{}.safetensors", plan.export.precision);
        let (exported, weights) = onnx_export::materialise(&checkpoint, plan.exported.clone(), &name)?;
        plan.export = exported.report.clone();
        plan.exported = exported;
        let Some(weights) = weights else {
            return Ok("no weight is of another precision, so all stay where they are".to_owned());
        };
        files.push(self.write_weights(staging, &checkpoint, &weights, &name)?);
        Ok(format!("{} weights converted into {name}, the others stay where they are", weights.count()))
    }

    fn write_weights(
        &self,
        staging: &Staging,
        checkpoint: &Checkpoint,
        weights: &ConvertedWeights,
        name: &str,
    ) -> Result<FileEntry, CompileError> {
        let path = payload_path(name)?;
        let mut writer = staging.writer(&path)?;
        let written = weights.write(checkpoint, &mut writer, &mut |written| {
            self.observer.progress(Step::Export, written, weights.bytes(), name);
            self.interrupt.check().map_err(|stopped| io::Error::new(io::ErrorKind::Interrupted, stopped))
        });
        written.map_err(|error| match error {
            ExportError::Io { source, .. } if source.kind() == io::ErrorKind::Interrupted => {
                CompileError::Interrupted(Interrupted)
            }
            error => error.into(),
        })?;
        Ok(writer.finish()?)
    }
}

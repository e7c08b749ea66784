//! The step that finds the ranges of 8-bit products.

use model_store::Staging;
use onnx_export::Checkpoint;

use super::Run;
use super::batches::batches;
use crate::calibrate;
use crate::error::CompileError;
use crate::evidence::CalibrationRecord;
use crate::job::{Calibration, Plan};
use crate::observer::Step;
use crate::session::OnnxRuntime;
use crate::subject::Words;
use crate::texts;

impl Run<'_> {
    /// Finds the ranges of 8-bit products and writes the graph anew with them.
    pub(super) fn calibrate(
        &mut self,
        staging: &Staging,
        plan: &mut Plan,
        runtime: &OnnxRuntime,
    ) -> Result<Option<CalibrationRecord>, CompileError> {
        let Some(calibration) =
            self.job.calibration.as_ref().filter(|_| self.job.precision.needs_calibration())
        else {
            return Ok(None);
        };
        let Calibration { texts, source, method } = calibration;
        self.step(Step::Calibrate, |run| {
            let words = Words::open(staging.path(), &plan.options.head)?;
            let batches: Vec<_> = batches(texts, plan, &words)?.into_iter().map(|it| it.1).collect();
            let request = calibrate::Request {
                runtime,
                folder: staging.path(),
                options: &plan.options,
                method: *method,
                batches: &batches,
                interrupt: run.interrupt,
            };
            let ranges = calibrate::ranges(&request, |done, total| {
                run.observer.progress(Step::Calibrate, done as u64, total as u64, "");
            })?;
            plan.options.ranges.clone_from(&ranges);
            plan.exported = onnx_export::export(&Checkpoint::open(staging.path())?, &plan.options)?;
            plan.export = plan.exported.report.clone();
            let summary = format!("{} texts, ranges of {} layers by {method}", texts.len(), ranges.len());
            let record = CalibrationRecord {
                source: source.clone(),
                texts: texts.len(),
                texts_sha256: texts::digest(texts),
                method: *method,
                ranges,
            };
            Ok((Some(record), summary))
        })
    }
}

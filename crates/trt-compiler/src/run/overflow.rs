//! The step that keeps in fp32 what fp16 could not hold.

use model_store::Staging;
use onnx_export::Checkpoint;

use super::Run;
use super::batches::batches;
use crate::error::CompileError;
use crate::job::{EngineWish, Plan};
use crate::observer::Step;
use crate::overflow::{self, OverflowRecord, Widened};
use crate::session::OnnxRuntime;
use crate::subject::Words;
use crate::texts;

/// Modules that the step's line names.
const NAMED: usize = 4;

impl Run<'_> {
    /// Looks for modules that fp16 is too narrow for, and writes the graph anew where there are any.
    pub(super) fn look_for_overflow(
        &mut self,
        staging: &Staging,
        plan: &mut Plan,
        runtime: &OnnxRuntime,
    ) -> Result<Option<OverflowRecord>, CompileError> {
        let Some(limits) = plan.overflow else { return Ok(None) };
        let job = self.job;
        let (texts, source) = match &job.calibration {
            Some(calibration) => (&calibration.texts, calibration.source.as_str()),
            None => (&job.texts, "the check"),
        };
        self.step(Step::Calibrate, |run| {
            let words = Words::open(staging.path(), &plan.options.head)?;
            let batches: Vec<_> = batches(texts, plan, &words)?.into_iter().map(|it| it.1).collect();
            let request = overflow::Request {
                runtime,
                folder: staging.path(),
                options: &plan.options,
                limits,
                batches: &batches,
                interrupt: run.interrupt,
            };
            let found = overflow::look(&request, |done, total| {
                run.observer.progress(Step::Calibrate, done as u64, total as u64, "");
            })?;
            if !found.modules.is_empty() {
                if job.engine == EngineWish::Build && job.targets.iter().any(|target| target.sm() == 75) {
                    return Err(CompileError::Turing);
                }
                let whys = found.modules.iter().map(|it| (it.module.clone(), it.why()));
                plan.options.too_large = whys.collect();
                plan.exported = onnx_export::export(&Checkpoint::open(staging.path())?, &plan.options)?;
                plan.export = plan.exported.report.clone();
            }
            let record = OverflowRecord {
                limits,
                source: source.to_owned(),
                texts: texts.len(),
                texts_sha256: texts::digest(texts),
                watched: found.watched,
                largest: found.largest,
                modules: found.modules,
            };
            let summary = record.summary();
            Ok((Some(record), summary))
        })
    }
}

impl OverflowRecord {
    /// For people, in a line.
    #[must_use]
    pub fn summary(&self) -> String {
        let seen = format!("{} texts in fp32, magnitudes up to {:.1}", self.texts, self.largest);
        if self.modules.is_empty() {
            return format!("{seen}: fp16 holds them");
        }
        let named: Vec<String> = self.modules.iter().take(NAMED).map(Widened::in_words).collect();
        let more = match self.modules.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("{seen}; kept in fp32: {}{more}", named.join(", "))
    }
}

impl Widened {
    fn in_words(&self) -> String {
        format!("{} ({:.1e})", self.module, self.largest)
    }
}

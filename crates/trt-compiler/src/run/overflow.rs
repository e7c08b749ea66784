//! The step that keeps in fp32 what fp16 could not hold.

use model_store::Staging;
use onnx_export::{Checkpoint, Head, Precision};

use super::Run;
use super::batches::batches;
use crate::error::CompileError;
use crate::job::{EngineWish, Plan, WeightForm};
use crate::observer::Step;
use crate::overflow::{self, Found, Limits, OverflowRecord, Widened};
use crate::session::OnnxRuntime;
use crate::subject::Words;
use crate::texts;

/// Whose texts are looked at where no others are given.
const THE_CHECK: &str = "the check";
/// Modules that the step's line names.
const NAMED: usize = 4;

/// When what fp16 cannot hold is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// While the graph is checked, which then tells how large its values get: most models have nothing to be found, and the
    /// texts are the same.
    WithCheck,
    /// Before the graph is written, by a graph in fp32, which knows how large each value gets.
    First,
}

impl Run<'_> {
    /// When to look at first. A graph whose values do get too large is looked into before it is written again.
    pub(super) fn when_to_look(&self, plan: &Plan) -> Look {
        let job = self.job;
        let same = job.precision == Precision::Fp16 && job.weights == WeightForm::Stored;
        let cached = matches!(plan.export.head, Head::CausalLm { cache: true });
        if same && job.calibration.is_none() && !cached { Look::WithCheck } else { Look::First }
    }

    /// Of the check's texts, what the check itself saw.
    pub(super) fn seen_in_check(&self, found: Found, limits: Limits) -> OverflowRecord {
        Self::record(found, limits, Precision::Fp16, &self.job.texts, THE_CHECK)
    }

    fn record(
        found: Found,
        limits: Limits,
        computed_in: Precision,
        texts: &[String],
        source: &str,
    ) -> OverflowRecord {
        let Found { watched, largest, modules } = found;
        OverflowRecord {
            limits,
            computed_in,
            source: source.to_owned(),
            texts: texts.len(),
            texts_sha256: texts::digest(texts),
            watched,
            largest,
            modules,
        }
    }

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
            None => (&job.texts, THE_CHECK),
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
            let record = Self::record(found, limits, Precision::Fp32, texts, source);
            let summary = record.summary();
            Ok((Some(record), summary))
        })
    }
}

impl OverflowRecord {
    /// How large things got, and, where that was all right, that it was.
    pub(super) fn magnitudes(&self) -> String {
        let held = if self.modules.is_empty() { ": fp16 holds them" } else { "" };
        format!("magnitudes up to {:.1}{held}", self.largest)
    }

    /// For people, in a line.
    #[must_use]
    pub fn summary(&self) -> String {
        let seen = format!("{} texts in {}, {}", self.texts, self.computed_in, self.magnitudes());
        if self.modules.is_empty() {
            return seen;
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

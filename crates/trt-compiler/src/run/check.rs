//! The steps that run the graph beside its reference, and judge it.

use std::thread;

use model_loader::{Output, TokenBatch};
use model_store::Staging;
use onnx_export::{Bf16, Checkpoint, ExportOptions, Head, Precision};
use serde_json::{Map, Value, json};

use super::batches::{batches, cut};
use super::builder_graph::BuilderGraph;
use super::overflow::Look;
use super::side_by_side::{HalfTheCores, Share, Sides};
use super::{Run, stepwise};
use crate::error::CompileError;
use crate::evidence::Evidence;
use crate::explain::{self, Explanation};
use crate::gate::{Gate, Thresholds, Verdict};
use crate::job::{Plan, WeightForm};
use crate::observer::Step;
use crate::overflow::{OverflowRecord, Watch};
use crate::session::{OnnxRuntime, OnnxSession};
use crate::subject::{Subject, Words};
use crate::texts;

/// What a comparison gives: the gate, how bfloat16 was computed, and how the graph was written, where it may have to be
/// explained.
type Judged = (Gate, Option<Bf16>, Option<ExportOptions>);

/// A comparison and what was seen by the way.
type Seen = (Judged, Option<OverflowRecord>);

/// What a check comes to that refuses nothing.
pub(super) enum Checked {
    Passed(Box<Evidence>),
    /// The graph holds in fp16 what fp16 cannot hold: it is to be looked into, and written anew.
    TooLarge,
}

impl Run<'_> {
    /// Runs the graph and the reference on the texts, and judges; watches meanwhile how large the graph's values get, if
    /// that is wanted.
    pub(super) fn check(
        &mut self,
        staging: &Staging,
        plan: &Plan,
        graph: &BuilderGraph,
        runtime: &OnnxRuntime,
        (look, share): (Look, Share),
    ) -> Result<Checked, CompileError> {
        let job = self.job;
        let watch = match (look, plan.overflow) {
            (Look::WithCheck, Some(limits)) => Some(Watch::of_graph(staging.path(), &plan.options, limits)?),
            _ => None,
        };
        let compared =
            self.step(Step::Check, |run| run.compare(staging, plan, graph, runtime, (watch, share)))?;
        let Some(((gate, bf16, judged), overflow)) = compared else { return Ok(Checked::TooLarge) };
        let verdict = self.step(Step::Gate, |run| {
            let verdict = gate.judge(plan.thresholds);
            if !verdict.passed() {
                let explanation = match judged {
                    // That it cannot be explained makes it no less of a refusal.
                    Some(judged) => match run.explain(staging, plan, runtime, &verdict, &judged) {
                        Err(CompileError::Interrupted(stopped)) => return Err(stopped.into()),
                        explained => Some(Box::new(explained.map_err(|error| error.to_string()))),
                    },
                    None => None,
                };
                let (agent, version) = (job.agent.to_string(), job.version.to_string());
                return Err(CompileError::Gate {
                    agent,
                    version,
                    precision: job.precision,
                    verdict: Box::new(verdict),
                    explanation,
                });
            }
            let summary = passed(&verdict);
            Ok((verdict, summary))
        })?;
        let by = if matches!(plan.export.head, Head::CausalLm { .. }) { "candle" } else { "own kernels" };
        let reference = job.reference.as_deref().map_or_else(
            || format!("the model itself, {by}, fp32"),
            |folder| format!("{}, {by}, fp32", folder.display()),
        );
        Ok(Checked::Passed(Box::new(Evidence {
            format: 1,
            source: plan.source.clone(),
            graph: None,
            reference,
            texts: job.texts.len(),
            texts_sha256: texts::digest(&job.texts),
            bf16,
            calibration: None,
            overflow,
            packed: None,
            keep_fp32: job.keep_fp32.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
            materialised: job.weights == WeightForm::Materialised,
            export: plan.export.clone(),
            verdict,
            engine_verdict: None,
            tools: tools(runtime),
            host: host_name(),
        })))
    }

    /// `None` once the graph was seen to hold what fp16 cannot.
    fn compare(
        &mut self,
        staging: &Staging,
        plan: &Plan,
        graph: &BuilderGraph,
        runtime: &OnnxRuntime,
        (mut watch, share): (Option<Watch>, Share),
    ) -> Result<(Option<Seen>, String), CompileError> {
        let job = self.job;
        if let Some(watch) = &watch
            && !watch.weights(staging.path(), self.interrupt, |_, _| ())?.is_empty()
        {
            return Ok((None, "a weight is too large for fp16".to_owned()));
        }
        // ONNX Runtime has no bfloat16 kernels for a CPU: there the same graph is checked with rounding written out.
        let bf16 = (job.precision == Precision::Bf16).then_some(Bf16::Emulated);
        let options = ExportOptions { bf16: bf16.unwrap_or_default(), ..plan.options.clone() };
        let exported = match bf16 {
            None => plan.exported.clone(),
            Some(_) => onnx_export::export(&Checkpoint::open(staging.path())?, &options)?,
        };
        // A graph that tells more is the same graph: what it gives else, and how, does not change.
        let onnx = watch.as_ref().map_or(exported.onnx.as_slice(), Watch::onnx).to_vec();
        let onnx = graph.with_its_weights(staging, onnx)?;
        let cached = matches!(plan.export.head, Head::CausalLm { cache: true });
        let words = Words::open(staging.path(), &plan.options.head)?;
        let batches = batches(&job.texts, plan, &words)?;
        // The files it came from, not the copies: what copying did to them shows as well.
        let folder = job.reference.as_deref().unwrap_or_else(|| job.source.folder());
        let output = plan.export.head.output();
        let told: Vec<String> = watch.iter().flat_map(Watch::outputs).map(str::to_owned).collect();
        let outputs: Vec<&str> = std::iter::once(output).chain(told.iter().map(String::as_str)).collect();
        let (onnx, exported, outputs, mut watching) = (&onnx, &exported, &outputs, watch.as_mut());
        let scores = matches!(
            plan.export.head,
            Head::SequenceClassification | Head::TokenClassification | Head::CausalLm { .. }
        );
        let mut gate = Gate::new(output, scores);
        let sides = Sides { batches: &batches, share, interrupt: self.interrupt };
        let total = batches.len() as u64;
        let over = thread::scope(|scope| {
            let expected = sides.start(scope, || {
                let cores = HalfTheCores::new();
                let reference = cores.run(|| Subject::open(folder, &plan.export.head))?;
                Ok(move |batch: &TokenBatch| cores.run(|| reference.run(batch)))
            });
            let found = sides.start(scope, move || {
                let mut session = runtime.load(onnx, staging.path())?;
                Ok(move |batch: &TokenBatch| match &mut watching {
                    Some(watch) => run_watched(&mut session, batch, outputs, watch),
                    None if cached => {
                        Ok(Some(stepwise::run(&mut session, &exported.report.inputs, batch, output)?))
                    }
                    None => Ok(Some(session.run(batch, output)?)),
                })
            });
            for (done, (texts, batch)) in (0..).zip(&batches) {
                self.observer.progress(Step::Check, done, total, "");
                let Some(found) = found.next()? else { return Ok(Some(texts.first().copied().unwrap_or(1))) };
                gate.add(batch, texts, &expected.next()?, &found);
            }
            Ok::<_, CompileError>(None)
        })?;
        if let Some(text) = over {
            return Ok((None, format!("text {text} takes the graph beyond fp16")));
        }
        let overflow = watch
            .zip(plan.overflow)
            .map(|(watch, limits)| self.seen_in_check(watch.found(Vec::new()), limits));
        let how = match job.precision {
            Precision::Bf16 => ", bf16 rounding emulated",
            Precision::Tf32 => ", in fp32 (only a GPU rounds to tf32)",
            _ => "",
        };
        let steps = if cached { ", the last tokens one by one with the cache" } else { "" };
        let seen = overflow.as_ref().map(|record| format!(", {}", record.magnitudes())).unwrap_or_default();
        let judged = job.explain.then_some(options);
        let summary =
            format!("onnx runtime {}, {} texts{how}{steps}{seen}", runtime.version, job.texts.len());
        Ok((Some(((gate, bf16, judged), overflow)), summary))
    }

    /// Where the graph that was judged parts from the same graph in fp32, on the text that is worst.
    fn explain(
        &self,
        staging: &Staging,
        plan: &Plan,
        runtime: &OnnxRuntime,
        verdict: &Verdict,
        options: &ExportOptions,
    ) -> Result<Explanation, CompileError> {
        let words = Words::open(staging.path(), &plan.options.head)?;
        let number = verdict.comparison.worst.text.clamp(1, self.job.texts.len().max(1));
        let text = self.job.texts.get(number - 1..number).unwrap_or_default();
        let mut tokens = words.encode(text)?;
        for tokens in &mut tokens {
            cut(tokens, plan);
        }
        explain::explain(&explain::Request {
            runtime,
            folder: staging.path(),
            options,
            thresholds: plan.thresholds,
            text: (number, &TokenBatch::pad(&tokens, words.pad_id())),
            interrupt: self.interrupt,
        })
    }
}

/// Runs one batch, and hands on the first of the outputs; the others tell of magnitudes. `None` once one is too large.
fn run_watched(
    session: &mut OnnxSession,
    batch: &TokenBatch,
    outputs: &[&str],
    watch: &mut Watch,
) -> Result<Option<Output>, CompileError> {
    let mut found = None;
    session.run_each(batch, outputs, |place, output| match place.checked_sub(1) {
        Some(place) => watch.see(place, &output.values),
        None => found = Some(output),
    })?;
    Ok(found.filter(|_| !watch.is_over()))
}

pub(super) fn passed(verdict: &Verdict) -> String {
    let measured = &verdict.comparison;
    let top1 = measured.top1.map(|agree| format!("  top-1 {agree}/{}", measured.rows)).unwrap_or_default();
    let Thresholds { min_cosine, mean_cosine, .. } = verdict.thresholds;
    let mean = if mean_cosine > min_cosine {
        format!(", mean {:.6} (≥ {mean_cosine})", measured.cosine_mean)
    } else {
        String::new()
    };
    format!(
        "{}  max abs {:.1e} (≤ {:.0e})  cosine {:.6} (≥ {min_cosine}){mean}{top1}  passed",
        measured.output,
        measured.max_abs,
        verdict.allowed_abs(),
        measured.cosine_min,
    )
}

/// The tools of a check and their versions.
pub(super) fn tools(runtime: &OnnxRuntime) -> Map<String, Value> {
    let tools = json!({
        "trt-compiler": env!("CARGO_PKG_VERSION"),
        "onnxruntime": runtime.version,
    });
    tools.as_object().cloned().unwrap_or_default()
}

pub(super) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

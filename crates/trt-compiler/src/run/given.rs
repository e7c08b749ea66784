//! The steps of a graph that came as ONNX: taken over as it is, and judged beside a reference or by itself.

use std::path::Path;

use model_loader::TokenBatch;
use model_store::{FileEntry, Staging};
use onnx_export::{Head, Precision};

use super::batches::batches;
use super::check::{host_name, passed, tools};
use super::{GRAPH, Run, payload_path};
use crate::error::CompileError;
use crate::evidence::Evidence;
use crate::gate::{Gate, Verdict};
use crate::given::{Against, Alone, Given, GraphError};
use crate::job::{ModelSource, Plan};
use crate::observer::Step;
use crate::session::{OnnxRuntime, OnnxSession};
use crate::subject::{Subject, Words};
use crate::texts;

/// Batches of texts, each with the numbers of its texts.
type Batches = [(Vec<usize>, TokenBatch)];

impl Run<'_> {
    /// Brings the graph and the files that its tensors lie in into the staging, under the names that the graph has for
    /// them.
    pub(super) fn stage_graph(
        &self,
        staging: &Staging,
        plan: &Plan,
        given: &Given,
        model: &mut Vec<FileEntry>,
    ) -> Result<(), CompileError> {
        let beside = given.path.parent().unwrap_or(Path::new(""));
        let graph = self.take_over(staging, &given.path, GRAPH)?;
        if graph.sha256.to_string() != plan.export.onnx_sha256 {
            return Err(GraphError::Changed { path: given.path.clone() }.into());
        }
        model.push(graph);
        for (name, bytes) in &given.record.data_bytes {
            self.interrupt.check()?;
            let path = beside.join(name);
            if let Some(taken) = model.iter().find(|entry| entry.path.as_str() == name) {
                let own = self.job.source.folder().join(name);
                if own.canonicalize().ok() == path.canonicalize().ok() && taken.size == *bytes {
                    continue;
                }
                return Err(GraphError::Hostile {
                    path: given.path.clone(),
                    tensor: String::new(),
                    location: name.clone(),
                    reason: format!("is another file than {} of the model", own.display()),
                }
                .into());
            }
            let entry = self.take_over(staging, &path, name)?;
            if entry.size != *bytes {
                return Err(GraphError::Changed { path }.into());
            }
            model.push(entry);
        }
        Ok(())
    }

    /// Shares a file of the version that the model comes from, and copies any other.
    fn take_over(&self, staging: &Staging, file: &Path, name: &str) -> Result<FileEntry, CompileError> {
        let path = payload_path(name)?;
        if let ModelSource::Graph { files, .. } = &self.job.source
            && let ModelSource::Published(version) = &**files
            && file == version.path().join(name)
            && version.manifest().file(&path).is_some()
        {
            return Ok(staging.share(version, &path)?);
        }
        Ok(staging.import(file, &path)?)
    }

    /// Runs the graph on the texts, and judges it by its reference, or by itself where there is none.
    pub(super) fn check_given(
        &mut self,
        staging: &Staging,
        plan: &Plan,
        given: &Given,
        runtime: &OnnxRuntime,
    ) -> Result<Evidence, CompileError> {
        let job = self.job;
        let verdict = self.step(Step::Check, |run| {
            let mut session = runtime.load_file(&staging.path().join(GRAPH))?;
            let words = Words::of_given(staging.path(), &plan.options.head)?;
            let batches = batches(&job.texts, plan, &words)?;
            let verdict = match &given.against {
                Against::Model(folder) => run.beside(plan, given, folder, &batches, &mut session)?,
                Against::Nothing(_) => run.by_itself(plan, given, &batches, &mut session)?,
            };
            let how =
                if job.precision == Precision::Tf32 { ", in fp32 (only a GPU rounds to tf32)" } else { "" };
            Ok((verdict, format!("onnx runtime {}, {} texts{how}", runtime.version, job.texts.len())))
        })?;
        let verdict = self.step(Step::Gate, |_| {
            if !verdict.passed() {
                let no_other = "the graph came as ONNX, and there is none of the same nodes in fp32";
                return Err(CompileError::Gate {
                    agent: job.agent.to_string(),
                    version: job.version.to_string(),
                    precision: job.precision,
                    verdict: Box::new(verdict),
                    explanation: Some(Box::new(Err(no_other.to_owned()))),
                });
            }
            let summary = match &given.against {
                Against::Model(_) => passed(&verdict),
                Against::Nothing(why) => format!(
                    "{}  {} rows, none NaN, infinite or all the same; compared with nothing ({why}; --reference DIR gives a model)",
                    verdict.comparison.output, verdict.comparison.rows
                ),
            };
            Ok((verdict, summary))
        })?;
        Ok(Evidence {
            format: 1,
            source: plan.source.clone(),
            graph: Some(given.record.clone()),
            reference: given.against.words(&plan.export.head),
            texts: job.texts.len(),
            texts_sha256: texts::digest(&job.texts),
            bf16: None,
            calibration: None,
            overflow: None,
            packed: None,
            keep_fp32: Vec::new(),
            materialised: false,
            export: plan.export.clone(),
            verdict,
            engine_verdict: None,
            tools: tools(runtime),
            host: host_name(),
        })
    }

    /// Graph and reference on the same tokens.
    fn beside(
        &self,
        plan: &Plan,
        given: &Given,
        folder: &Path,
        batches: &Batches,
        session: &mut OnnxSession,
    ) -> Result<Verdict, CompileError> {
        let reference = Subject::open(folder, &plan.export.head)?;
        let scores = matches!(plan.export.head, Head::SequenceClassification | Head::CausalLm { .. });
        let mut gate = Gate::new(&given.output, scores);
        for (done, (texts, batch)) in (0..).zip(batches) {
            self.interrupt.check()?;
            self.observer.progress(Step::Check, done, batches.len() as u64, "");
            let expected = reference.run(batch)?;
            gate.add(batch, texts, &expected, &session.run(batch, &given.output)?);
        }
        Ok(gate.judge(plan.thresholds))
    }

    /// The graph without a reference.
    fn by_itself(
        &self,
        plan: &Plan,
        given: &Given,
        batches: &Batches,
        session: &mut OnnxSession,
    ) -> Result<Verdict, CompileError> {
        let mut gate = Alone::new(&given.output);
        for (done, (texts, batch)) in (0..).zip(batches) {
            self.interrupt.check()?;
            self.observer.progress(Step::Check, done, batches.len() as u64, "");
            gate.add(batch, texts, &session.run(batch, &given.output)?);
        }
        Ok(gate.judge(plan.thresholds))
    }
}

//! The step that builds an engine, or takes over an equal one.

use std::fs;
use std::path::Path;
use std::time::Duration;

use engine_runtime::EngineRecord;
use model_store::{Digest, FileEntry, PayloadPath, Staging, human_size};
use onnx_export::Precision;
use serde_json::Value;

use super::beside::Beside;
use super::builder_graph::BuilderGraph;
use super::check::passed;
use super::{GRAPH, Host, Run, json_file, payload_path};
use crate::engine::{
    self, EngineFacts, EngineOptions, EngineRequest, InputShape, JudgeRequest, Tf32, check_memory,
};
use crate::error::CompileError;
use crate::evidence::EngineDescription;
use crate::gate::Verdict;
use crate::job::Plan;
use crate::observer::Step;
use crate::reuse::{self, FLAVOUR, LAYERS_FILE, Reuse, Search};
use crate::runtimes::RtxLibraries;
use crate::target::{self, Target};

/// An engine that is to be, and the equal one that the store may have.
pub(super) struct Wanted {
    request: EngineRequest,
    /// Where in the version it goes.
    folder: String,
    path: PayloadPath,
    weights: Vec<FileEntry>,
    key: String,
    search: Search,
}

impl Wanted {
    /// Whether a builder has to be asked: the store has no equal engine.
    pub(super) fn is_new(&self) -> bool {
        self.search.found.is_none()
    }

    /// What a builder is asked, with the graph that is meant for it.
    pub(super) fn request(&self, graph: &BuilderGraph) -> EngineRequest {
        EngineRequest { onnx: graph.onnx().to_owned(), ..self.request.clone() }
    }
}

impl Run<'_> {
    pub(super) fn request(&self, staging: &Staging, plan: &Plan, libraries: RtxLibraries) -> EngineRequest {
        EngineRequest {
            onnx: staging.path().join(GRAPH),
            plan: staging.path().join("engines/building.engine"),
            layers: staging.path().join("engines/building.layers"),
            libraries,
            profiles: std::iter::once(&plan.profile)
                .chain(&plan.more_profiles)
                .map(|profile| {
                    plan.export.inputs.iter().map(|input| InputShape::of(input, profile)).collect()
                })
                .collect(),
            targets: plan.targets.clone(),
            tf32: if self.job.precision == Precision::Tf32 { Tf32::Allowed } else { Tf32::Forbidden },
            options: EngineOptions { more_profiles: plan.more_profiles.clone(), ..self.job.options.clone() },
        }
    }

    /// Looks for an equal engine in the store, which is then in the staging. Without one, memory for a build is asked
    /// after: before the check, which takes its time.
    pub(super) fn look_for_engine(
        &self,
        staging: &Staging,
        plan: &Plan,
        version: &str,
        request: EngineRequest,
        files: &[FileEntry],
    ) -> Result<Wanted, CompileError> {
        let parts: Vec<&str> = version.split('.').take(3).collect();
        let targets = target::label(&plan.targets);
        let folder = format!("engines/{FLAVOUR}-{}/{targets}-{}", parts.join("."), plan.export.precision);
        let path = payload_path(&format!("{folder}/model.engine"))?;
        let weights: Vec<FileEntry> =
            files.iter().filter(|file| plan.is_weight(file.path.as_str())).cloned().collect();
        let key = reuse::key(version, &plan.export.onnx_sha256, &weights, &request);
        let search = match self.job.reuse {
            Reuse::Allowed => reuse::take_over(&self.job.store, staging, &path, &key)?,
            Reuse::Forbidden => Search::default(),
        };
        if search.found.is_none() {
            check_memory(plan.memory_bytes())?;
        }
        Ok(Wanted { request, folder, path, weights, key, search })
    }

    pub(super) fn build_engine(
        &mut self,
        host: &Host,
        staging: &Staging,
        plan: &Plan,
        graph: &BuilderGraph,
        wanted: Wanted,
        beside: Option<Beside>,
    ) -> Result<((EngineDescription, PayloadPath), String, Duration), CompileError> {
        let asked = wanted.request(graph);
        let Wanted { request, folder, path, weights, key, search } = wanted;
        let mut took_beside = Duration::ZERO;
        let (facts, plan_sha256, reused_from) = if let Some((record, whose)) = search.found {
            (record.facts, record.plan_sha256, Some(whose))
        } else {
            let (facts, digest, took) = self.run_builder(host, staging, &asked, &path, beside)?;
            took_beside = took;
            (facts, digest.to_string(), None)
        };
        let description = EngineDescription {
            format: 1,
            flavour: FLAVOUR.to_owned(),
            plan_sha256,
            targets: plan.targets.clone(),
            precision: plan.export.precision,
            profile: plan.profile,
            options: request.options.clone(),
            key,
            reused_from,
            inputs: request.profiles.first().cloned().unwrap_or_default(),
            outputs: plan.export.outputs.clone(),
            onnx_sha256: plan.export.onnx_sha256.clone(),
            weights_sha256: weights
                .iter()
                .map(|file| (file.path.to_string(), Value::from(file.sha256.to_string())))
                .collect(),
            checked: "the graph, on ONNX Runtime; the plan runs on no CPU, and where there was a GPU evidence.json has \
                      what it gave (`engine_verdict`)"
                .to_owned(),
            facts,
        };
        staging.write(&payload_path(&format!("{folder}/engine.json"))?, &json_file(&description))?;
        let sms: Vec<String> = plan.targets.iter().map(Target::to_string).collect();
        let more = match plan.more_profiles.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let how = description.reused_from.as_ref();
        let how =
            how.map(|whose| format!(", reused from {whose} (--rebuild builds anew)")).unwrap_or_default();
        let damaged: String =
            search.damaged.iter().flat_map(|line| ["\n            ", line.as_str()]).collect();
        let summary = format!(
            "{FLAVOUR} {}, SM {}, {}{more}, {}{how}{damaged}",
            description.facts.version,
            sms.join(" "),
            plan.profile.in_words(),
            human_size(description.facts.plan_bytes)
        );
        Ok(((description, path), summary, took_beside))
    }

    /// Has the child process build, unless one is at it already, and puts what it made where it belongs; gives the digest of
    /// the plan, and how long one took that was at it already.
    fn run_builder(
        &self,
        host: &Host,
        staging: &Staging,
        request: &EngineRequest,
        path: &PayloadPath,
        beside: Option<Beside>,
    ) -> Result<(EngineFacts, Digest, Duration), CompileError> {
        let progress = |phase: &str, step: i32, steps: i32| {
            let number = |n: i32| u64::try_from(n).unwrap_or_default();
            self.observer.progress(Step::Engine, number(step), number(steps), phase);
        };
        let (facts, took_beside) = if let Some(beside) = beside {
            beside.wait(progress)?
        } else {
            let child = host.builder(self.job)?;
            let facts = engine::build_in(child, request, &self.job.build, self.interrupt, progress)?;
            (facts, Duration::ZERO)
        };
        let place = staging.path().join(path.as_str());
        let io = |doing| move |source| CompileError::Io { doing, path: request.plan.clone(), source };
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(io("make room for"))?;
            fs::rename(&request.layers, parent.join(LAYERS_FILE)).map_err(io("move"))?;
        }
        fs::rename(&request.plan, &place).map_err(io("move"))?;
        Ok((facts, staging.hash(path)?.sha256, took_beside))
    }

    /// The gate once more, with what the engine itself gives, where this host has a GPU that runs it. `None` elsewhere.
    pub(super) fn judge_engine(
        &mut self,
        staging: &Staging,
        plan: &Plan,
        library: &Path,
        engine: &PayloadPath,
    ) -> Result<Option<Verdict>, CompileError> {
        let job = self.job;
        let folder = staging.path().join(engine.as_str());
        let Some(folder) = folder.parent().filter(|_| plan.given.is_none()) else { return Ok(None) };
        // Asked before the library, which takes longer to open.
        if engine_runtime::gpus().map_or(true, |gpus| gpus.is_empty()) {
            return Ok(None);
        }
        let record = EngineRecord::of_folder(folder)?;
        let Ok(fit) = engine_runtime::fit(&record, Some(library), 0) else { return Ok(None) };
        let request = JudgeRequest {
            engine: folder.to_owned(),
            model: staging.path().to_owned(),
            library: library.to_owned(),
            texts: job.texts.clone(),
            wishes: job.thresholds,
        };
        self.step(Step::Gpu, |run| {
            let verdict = engine::judge(&request, &job.build, run.interrupt)?;
            if !verdict.passed() {
                return Err(CompileError::Gate {
                    agent: job.agent.to_string(),
                    version: job.version.to_string(),
                    precision: job.precision,
                    verdict: Box::new(verdict),
                    explanation: Some(Box::new(Err(format!(
                        "the graph passed on ONNX Runtime, so it is what TensorRT made of it on {}",
                        fit.gpu
                    )))),
                });
            }
            let summary = format!("{}, on {}", passed(&verdict), fit.gpu);
            Ok((Some(verdict), summary))
        })
    }
}

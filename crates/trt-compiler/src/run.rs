//! One run: a model folder in, a checked and published version out, or nothing at all.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use model_loader::{TokenBatch, Tokens};
use model_store::{
    Digest, FileEntry, FinalizeOptions, MoveOptions, PayloadPath, Policy, Progress, Published, Staging,
    StoreError, VersionName, human_size, with_causes,
};
use onnx_export::{Bf16, Checkpoint, ExportOptions, Head, Precision};
use serde::Serialize;
use serde_json::{Value, json};

use crate::calibrate;
use crate::engine::{self, EngineError, EngineFacts, EngineRequest, InputShape, Tf32};
use crate::error::CompileError;
use crate::evidence::{self, CalibrationRecord, EngineDescription, Evidence, Provenance};
use crate::explain::{self, Explanation};
use crate::gate::{Gate, Thresholds, Verdict};
use crate::interrupt::Interrupt;
use crate::job::{Calibration, EngineWish, Job, ModelSource, Plan, plan};
use crate::native;
use crate::observer::{Observer, Step};
use crate::report;
use crate::reuse::{self, FLAVOUR, LAYERS_FILE, Reuse, Search};
use crate::runtimes::RtxLibraries;
use crate::session::OnnxRuntime;
use crate::subject::{Subject, Words};
use crate::target::{self, Target};
use crate::texts;

/// Name of the graph in a version.
const GRAPH: &str = "model.onnx";
/// Tokens in one batch of the check, padding included: small enough that a stop is heeded at once.
const CHECK_TOKENS: usize = 512;

/// What a run made.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The version.
    pub published: Published,
    /// What the gate measured.
    pub evidence: Evidence,
    /// The engine, if one was built.
    pub engine: Option<EngineDescription>,
    /// Path of the plan, if one was built.
    pub plan: Option<PathBuf>,
    /// The versions that retention took away afterwards, and what hindered it.
    pub retired: Vec<VersionName>,
    /// What hindered retention; the new version is published all the same.
    pub problems: Vec<String>,
    /// The steps and the seconds each took.
    pub steps: Vec<(Step, f64)>,
}

/// Exports, checks, compiles and publishes.
///
/// Everything happens in the staging of the new version, so whatever fails (a bad model, the gate, a crash of the
/// compiler, a stop) leaves the store as it was.
pub fn run(job: &Job, observer: &dyn Observer, interrupt: &Interrupt) -> Result<Outcome, CompileError> {
    let mut run = Run { job, observer, interrupt, steps: Vec::new() };
    let host = preflight(job)?;
    let stop = interrupt.clone();
    let progress =
        Progress::new(
            move |_| {
                if stop.is_raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
    let staging = job.store.clone().with_progress(progress).stage_new(&job.agent, &job.version)?;
    let mut plan = plan(job)?;
    if host.libraries.is_some() {
        engine::check_memory(plan.export.weight_bytes)?;
    }
    let files = run.step(Step::Source, |run| run.stage_model(&staging, &plan))?;
    let calibration = run.calibrate(&staging, &mut plan, &host.onnxruntime)?;
    run.step(Step::Export, |_| Run::write_graph(&staging, &plan))?;
    let evidence = Evidence { calibration, ..run.check(&staging, &plan, &host.onnxruntime)? };
    let engine = match host.libraries {
        Some(libraries) => {
            let request = run.request(&staging, &plan, libraries);
            Some(run.step(Step::Engine, |run| run.build_engine(&staging, &plan, &request, &files))?)
        }
        None => None,
    };
    interrupt.check()?;
    let published = run.step(Step::Publish, |run| run.publish(staging, &evidence, engine.as_ref()))?;
    let (engine, plan) = engine
        .map_or((None, None), |(engine, path)| (Some(engine), Some(published.path.join(path.as_str()))));
    let (retired, problems) = job.keep.map_or_else(Default::default, |keep| retire(job, keep));
    Ok(Outcome { published, evidence, engine, plan, retired, problems, steps: run.steps })
}

/// Applies retention to the agent. That it failed is no reason to call the publish a failure.
fn retire(job: &Job, keep: usize) -> (Vec<VersionName>, Vec<String>) {
    let policy = Policy { keep, ..Policy::default() };
    match job.store.gc(std::slice::from_ref(&job.agent), &policy, &MoveOptions::default()) {
        Ok(collected) => {
            let retired = collected.retired.into_iter().map(|gone| gone.version).collect();
            (retired, collected.problems)
        }
        Err(error) => (Vec::new(), vec![with_causes(&error)]),
    }
}

/// What a run needs of this host.
struct Host {
    onnxruntime: OnnxRuntime,
    libraries: Option<RtxLibraries>,
}

/// Says what is missing on this host, or in the way in the store, before any work is done.
fn preflight(job: &Job) -> Result<Host, CompileError> {
    let onnxruntime = OnnxRuntime::open(&job.runtimes)?;
    let libraries = match job.engine {
        EngineWish::Build => Some(job.runtimes.tensorrt_rtx()?),
        EngineWish::Skip => None,
    };
    if job.store.get_version(&job.agent, &job.version)?.is_some() {
        let (agent, version) = (job.agent.clone(), job.version.clone());
        return Err(StoreError::VersionExists { agent, version }.into());
    }
    Ok(Host { onnxruntime, libraries })
}

/// What [`run`] would do on this host, found out without writing anything.
pub fn dry_run(job: &Job) -> Result<Plan, CompileError> {
    preflight(job)?;
    plan(job)
}

/// What a comparison gives: the gate, how bfloat16 was computed, and the graph itself where it may have to be explained.
type Judged = (Gate, Option<Bf16>, Option<Vec<u8>>);

/// A run under way.
struct Run<'a> {
    job: &'a Job,
    observer: &'a dyn Observer,
    interrupt: &'a Interrupt,
    steps: Vec<(Step, f64)>,
}

impl Run<'_> {
    /// Runs one step between a word of its begin and one of its end; `work` returns its result and a summary.
    fn step<T>(
        &mut self,
        step: Step,
        work: impl FnOnce(&mut Self) -> Result<(T, String), CompileError>,
    ) -> Result<T, CompileError> {
        self.interrupt.check()?;
        self.observer.begin(step);
        let start = Instant::now();
        let (result, summary) = work(self)?;
        self.end(step, &summary, start.elapsed());
        Ok(result)
    }

    fn end(&mut self, step: Step, summary: &str, took: Duration) {
        self.observer.end(step, summary, took);
        self.steps.push((step, took.as_secs_f64()));
    }

    fn stage_model(
        &mut self,
        staging: &Staging,
        plan: &Plan,
    ) -> Result<(Vec<FileEntry>, String), CompileError> {
        let mut entries = Vec::new();
        let total = plan.files.len() as u64;
        for (done, name) in (0..).zip(&plan.files) {
            self.interrupt.check()?;
            self.observer.progress(Step::Source, done, total, name);
            let path = payload_path(name)?;
            entries.push(match &self.job.source {
                ModelSource::Folder { path: folder, .. } => staging.import(&folder.join(name), &path)?,
                ModelSource::Published(version) => staging.share(version, &path)?,
            });
        }
        let source = match &plan.source {
            Provenance::Folder { path } => format!("folder {path}"),
            Provenance::Store { agent, version, .. } => format!("store: {agent}/{version}"),
            Provenance::Hub { model_id, commit, .. } => {
                format!("hub: {model_id} at {}", commit.get(..12).unwrap_or(commit))
            }
        };
        let bytes = entries.iter().map(|entry| entry.size).sum();
        let summary =
            format!("{source} ({}, {} files, {})", plan.export.model_type, entries.len(), human_size(bytes));
        Ok((entries, summary))
    }

    /// Finds the ranges of 8-bit products and writes the graph anew with them.
    fn calibrate(
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

    fn write_graph(staging: &Staging, plan: &Plan) -> Result<((), String), CompileError> {
        staging.write(&payload_path(GRAPH)?, &plan.exported.onnx)?;
        let summary = format!(
            "{GRAPH} {}, {}, {} nodes; weights stay where they are ({})",
            human_size(plan.exported.onnx.len() as u64),
            plan.export.precision,
            plan.export.nodes,
            human_size(plan.export.weight_bytes)
        );
        Ok(((), summary))
    }

    /// Runs the graph and the reference on the texts, and judges.
    fn check(
        &mut self,
        staging: &Staging,
        plan: &Plan,
        runtime: &OnnxRuntime,
    ) -> Result<Evidence, CompileError> {
        let job = self.job;
        let (gate, bf16, judged) = self.step(Step::Check, |run| run.compare(staging, plan, runtime))?;
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
        let tools = json!({
            "trt-compiler": env!("CARGO_PKG_VERSION"),
            "onnxruntime": runtime.version,
        });
        Ok(Evidence {
            format: 1,
            source: plan.source.clone(),
            reference,
            texts: job.texts.len(),
            texts_sha256: texts::digest(&job.texts),
            bf16,
            calibration: None,
            keep_fp32: job.keep_fp32.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
            export: plan.export.clone(),
            verdict,
            tools: tools.as_object().cloned().unwrap_or_default(),
            host: host_name(),
        })
    }

    fn compare(
        &mut self,
        staging: &Staging,
        plan: &Plan,
        runtime: &OnnxRuntime,
    ) -> Result<(Judged, String), CompileError> {
        let job = self.job;
        // ONNX Runtime has no bfloat16 kernels for a CPU: there the same graph is checked with rounding written out.
        let bf16 = (job.precision == Precision::Bf16).then_some(Bf16::Emulated);
        let onnx = match bf16 {
            None => plan.exported.onnx.clone(),
            Some(bf16) => {
                let options = ExportOptions { bf16, ..plan.options.clone() };
                onnx_export::export(&Checkpoint::open(staging.path())?, &options)?.onnx
            }
        };
        let mut session = runtime.load(&onnx, staging.path())?;
        let words = Words::open(staging.path(), &plan.options.head)?;
        let batches = batches(&job.texts, plan, &words)?;
        // The files it came from, not the copies: what copying did to them shows as well.
        let folder = job.reference.as_deref().unwrap_or_else(|| job.source.folder());
        let reference = Subject::open(folder, &plan.export.head)?;
        let output = plan.export.head.output();
        let scores = matches!(
            plan.export.head,
            Head::SequenceClassification | Head::TokenClassification | Head::CausalLm { .. }
        );
        let mut gate = Gate::new(output, scores);
        let total = batches.len() as u64;
        for (done, (texts, batch)) in (0..).zip(&batches) {
            self.interrupt.check()?;
            self.observer.progress(Step::Check, done, total, "");
            let expected = reference.run(batch)?;
            gate.add(batch, texts, &expected, &session.run(batch, output)?);
        }
        let how = match job.precision {
            Precision::Bf16 => ", bf16 rounding emulated",
            Precision::Tf32 => ", in fp32 (only a GPU rounds to tf32)",
            Precision::Fp32 | Precision::Fp16 | Precision::Fp8 | Precision::Int8 => "",
        };
        let judged = job.explain.then_some(onnx);
        Ok((
            (gate, bf16, judged),
            format!("onnx runtime {}, {} texts{how}", runtime.version, job.texts.len()),
        ))
    }

    /// Where the graph that was judged parts from the same graph in fp32, on the text that is worst.
    fn explain(
        &self,
        staging: &Staging,
        plan: &Plan,
        runtime: &OnnxRuntime,
        verdict: &Verdict,
        onnx: &[u8],
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
            onnx,
            options: &plan.options,
            thresholds: plan.thresholds,
            text: (number, &TokenBatch::pad(&tokens, words.pad_id())),
            interrupt: self.interrupt,
        })
    }

    fn request(&self, staging: &Staging, plan: &Plan, libraries: RtxLibraries) -> EngineRequest {
        EngineRequest {
            onnx: staging.path().join(GRAPH),
            plan: staging.path().join("engines/building.engine"),
            layers: staging.path().join("engines/building.layers"),
            libraries,
            profiles: std::iter::once(&plan.profile)
                .chain(&self.job.options.more_profiles)
                .map(|profile| {
                    let inputs = plan.export.inputs.iter();
                    inputs.map(|input| InputShape::new(&input.name, input.dtype, profile)).collect()
                })
                .collect(),
            targets: plan.targets.clone(),
            tf32: if self.job.precision == Precision::Tf32 { Tf32::Allowed } else { Tf32::Forbidden },
            options: self.job.options.clone(),
        }
    }

    fn build_engine(
        &mut self,
        staging: &Staging,
        plan: &Plan,
        request: &EngineRequest,
        files: &[FileEntry],
    ) -> Result<((EngineDescription, PayloadPath), String), CompileError> {
        let version = native::tensorrt_version(&request.libraries.core, None).map_err(|error| {
            EngineError::Refused {
                stage: "load TensorRT-RTX".to_owned(),
                reason: error.to_string(),
                log: Vec::new(),
            }
        })?;
        let parts: Vec<&str> = version.split('.').take(3).collect();
        let targets = target::label(&plan.targets);
        let folder = format!("engines/{FLAVOUR}-{}/{targets}-{}", parts.join("."), plan.export.precision);
        let path = payload_path(&format!("{folder}/model.engine"))?;
        let weights: Vec<FileEntry> =
            files.iter().filter(|file| file.path.as_str().ends_with(".safetensors")).cloned().collect();
        let key = reuse::key(&version, &plan.export.onnx_sha256, &weights, request);
        let search = match self.job.reuse {
            Reuse::Allowed => reuse::take_over(&self.job.store, staging, &path, &key)?,
            Reuse::Forbidden => Search::default(),
        };
        let (facts, plan_sha256, reused_from) = if let Some((record, whose)) = search.found {
            (record.facts, record.plan_sha256, Some(whose))
        } else {
            let (facts, digest) = self.run_builder(staging, request, &path)?;
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
            checked: "the graph, on ONNX Runtime; the plan itself runs on no CPU".to_owned(),
            facts,
        };
        staging.write(&payload_path(&format!("{folder}/engine.json"))?, &json_file(&description))?;
        let sms: Vec<String> = plan.targets.iter().map(Target::to_string).collect();
        let more = match self.job.options.more_profiles.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let how = description.reused_from.as_ref();
        let how =
            how.map(|whose| format!(", reused from {whose} (--rebuild builds anew)")).unwrap_or_default();
        let damaged: String =
            search.damaged.iter().flat_map(|line| ["\n            ", line.as_str()]).collect();
        let summary = format!(
            "{FLAVOUR} {}, SM {}, batch {} × seq {}{more}, {}{how}{damaged}",
            description.facts.version,
            sms.join(" "),
            plan.profile.batch,
            plan.profile.sequence,
            human_size(description.facts.plan_bytes)
        );
        Ok(((description, path), summary))
    }

    /// Has the child process build, and puts what it made where it belongs; gives the digest of the plan.
    fn run_builder(
        &self,
        staging: &Staging,
        request: &EngineRequest,
        path: &PayloadPath,
    ) -> Result<(EngineFacts, Digest), CompileError> {
        let progress = |phase: &str, step: i32, steps: i32| {
            let number = |n: i32| u64::try_from(n).unwrap_or_default();
            self.observer.progress(Step::Engine, number(step), number(steps), phase);
        };
        let facts = engine::build(request, &self.job.build, self.interrupt, progress)?;
        let place = staging.path().join(path.as_str());
        let io = |doing| move |source| CompileError::Io { doing, path: request.plan.clone(), source };
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(io("make room for"))?;
            fs::rename(&request.layers, parent.join(LAYERS_FILE)).map_err(io("move"))?;
        }
        fs::rename(&request.plan, &place).map_err(io("move"))?;
        let (digest, _) =
            fs::File::open(&place).and_then(|mut plan| Digest::of_reader(&mut plan)).map_err(io("read"))?;
        Ok((facts, digest))
    }

    fn publish(
        &mut self,
        staging: Staging,
        evidence: &Evidence,
        engine: Option<&(EngineDescription, PayloadPath)>,
    ) -> Result<(Published, String), CompileError> {
        staging.write(&payload_path("evidence.json")?, &json_file(evidence))?;
        let layers: Option<Vec<engine::Layer>> = engine.and_then(|(_, plan)| {
            let list = staging.path().join(plan.as_str()).with_file_name(LAYERS_FILE);
            serde_json::from_slice(&fs::read(list).ok()?).ok()
        });
        let page = report::html(&report::Parts {
            agent: self.job.agent.as_str(),
            version: self.job.version.as_str(),
            evidence,
            engine: engine.map(|(engine, _)| engine),
            layers: &layers.unwrap_or_default(),
            steps: &self.steps,
        });
        staging.write(&payload_path("report.html")?, page.as_bytes())?;
        let options = FinalizeOptions {
            metadata: evidence::metadata(evidence, engine.map(|(engine, _)| engine)),
            activation: self.job.activation,
            reason: Some(format!("build-engine, {}", self.job.precision)),
            ..FinalizeOptions::default()
        };
        let published = staging.finalize(options)?;
        let summary = format!(
            "{}/{}, {} files, {}",
            published.agent,
            published.version,
            published.files,
            human_size(published.bytes)
        );
        Ok((published, summary))
    }
}

fn passed(verdict: &Verdict) -> String {
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

/// The texts as batches of about [`CHECK_TOKENS`], short ones first, each with the numbers of its texts, from 1.
///
/// An engine takes no longer sequences than its profile says, so none longer is checked. Where the model tells segments
/// apart, the first batch comes once more with its second halves in the second segment.
fn batches(
    texts: &[String],
    plan: &Plan,
    words: &Words,
) -> Result<Vec<(Vec<usize>, TokenBatch)>, CompileError> {
    let mut texts: Vec<(usize, Tokens)> = (1..).zip(words.encode(texts)?).collect();
    for (_, tokens) in &mut texts {
        cut(tokens, plan);
    }
    texts.sort_by_key(|(_, tokens)| tokens.len());
    let mut groups: Vec<Vec<(usize, Tokens)>> = Vec::new();
    for (number, tokens) in texts {
        match groups.last_mut() {
            // The text at hand is the longest so far, so the rectangle is as wide as it.
            Some(group) if (group.len() + 1) * tokens.len() <= CHECK_TOKENS => group.push((number, tokens)),
            _ => groups.push(vec![(number, tokens)]),
        }
    }
    let segments = plan.export.inputs.iter().any(|input| input.name == "token_type_ids");
    if let Some(first) = groups.first().filter(|_| segments && words.tells_segments()) {
        let mut paired = first.clone();
        for (_, tokens) in &mut paired {
            let half = tokens.len() / 2;
            tokens.type_ids.iter_mut().skip(half).for_each(|segment| *segment = 1);
        }
        groups.push(paired);
    }
    let pad = |group: Vec<(usize, Tokens)>| {
        let batch = TokenBatch::pad(group.iter().map(|(_, tokens)| tokens), words.pad_id());
        (group.into_iter().map(|(number, _)| number).collect(), batch)
    };
    Ok(groups.into_iter().map(pad).collect())
}

/// As long as the engine's profiles allow.
fn cut(tokens: &mut Tokens, plan: &Plan) {
    tokens.ids.truncate(plan.longest);
    tokens.type_ids.truncate(plan.longest);
}

fn payload_path(name: &str) -> Result<PayloadPath, CompileError> {
    name.parse().map_err(|error: model_store::NameError| {
        let source = io::Error::new(io::ErrorKind::InvalidInput, error.to_string());
        CompileError::Io { doing: "take over", path: name.into(), source }
    })
}

fn json_file(value: &impl Serialize) -> Vec<u8> {
    // Plain structs of strings and numbers: nothing in them can fail to serialise.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

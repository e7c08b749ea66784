//! One run: a model folder in, a checked and published version out, or nothing at all.

mod batches;
mod beside;
mod builder_graph;
mod calibrate;
mod check;
mod engine;
mod export;
mod given;
mod overflow;
mod pack;
mod side_by_side;
mod stepwise;

use std::cell::{Cell, OnceCell};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use model_store::{
    FileEntry, FinalizeOptions, MoveOptions, PayloadPath, Policy, Progress, Published, Staging, StoreError,
    VersionName, human_size, with_causes,
};
use serde::Serialize;

use crate::engine::{EngineError, Layer, Waiting};
use crate::error::CompileError;
use crate::evidence::{self, EngineDescription, Evidence, Provenance};
use crate::interrupt::Interrupt;
use crate::job::{EngineWish, Job, ModelSource, Plan, plan};
use crate::native;
use crate::observer::{Observer, Step};
use crate::report;
use crate::reuse::LAYERS_FILE;
use crate::runtimes::RtxLibraries;
use crate::session::OnnxRuntime;
use builder_graph::BuilderGraph;
use check::Checked;
use overflow::Look;
use side_by_side::Share;

pub(crate) use batches::CHECK_TOKENS;

/// Name of the graph in a version.
const GRAPH: &str = "model.onnx";

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
    let mut host = preflight(job)?;
    let libraries = host.libraries.as_ref();
    host.waiting = Cell::new(libraries.and_then(|open| Waiting::start(&job.build, Some(open)).ok()));
    let stop = interrupt.clone();
    let progress =
        Progress::new(
            move |_| {
                if stop.is_raised() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
    let staging = job.store.clone().with_progress(progress).stage_new(&job.agent, &job.version)?;
    let mut plan = plan(job)?;
    let mut files = run.step(Step::Source, |run| run.stage_model(&staging, &plan))?;
    staging.sync_early();
    let calibration = run.calibrate(&staging, &mut plan, &host.onnxruntime)?;
    let mut look = run.when_to_look(&plan);
    let before = run.steps.len();
    let (evidence, engine) = loop {
        if let Some(made) = run.make(&staging, &mut plan, &mut files, &host, look)? {
            break made;
        }
        look = Look::First;
        // What was said is said; written down is what led to the version.
        run.steps.truncate(before);
    };
    let mut evidence = Evidence { calibration, ..evidence };
    let library = host.libraries.as_ref().map(|libraries| libraries.core.clone());
    if let (Some(library), Some((_, path))) = (&library, &engine) {
        evidence.engine_verdict = run.judge_engine(&staging, &plan, library, path)?;
    }
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
    /// A builder that opens TensorRT's libraries while the model comes in; one that could not be started is started when it
    /// is needed, and says why.
    waiting: Cell<Option<Waiting>>,
    version: OnceCell<String>,
}

impl Host {
    /// The builder that waits, or another one.
    fn builder(&self, job: &Job) -> Result<Waiting, EngineError> {
        self.waiting.take().map_or_else(|| Waiting::start(&job.build, None), Ok)
    }

    /// What TensorRT says its version is, asked of the builder that waits; here, where none could be started, since an engine
    /// that the store has needs none.
    fn tensorrt_version(
        &self,
        job: &Job,
        libraries: &RtxLibraries,
        interrupt: &Interrupt,
    ) -> Result<String, EngineError> {
        if let Some(version) = self.version.get() {
            return Ok(version.clone());
        }
        let version = if let Some(builder) = self.waiting.take() {
            let (builder, version) = builder.opened(&job.build, interrupt)?;
            self.waiting.set(Some(builder));
            version
        } else {
            native::tensorrt_version(&libraries.core, None).map_err(|error| {
                let stage = "load TensorRT-RTX".to_owned();
                EngineError::Refused { stage, reason: error.to_string(), log: Vec::new() }
            })?
        };
        Ok(self.version.get_or_init(|| version).clone())
    }
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
    Ok(Host { onnxruntime, libraries, waiting: Cell::default(), version: OnceCell::new() })
}

/// What [`run`] would do on this host, found out without writing anything.
pub fn dry_run(job: &Job) -> Result<Plan, CompileError> {
    preflight(job)?;
    plan(job)
}

/// An engine's description, and where in the version its plan is.
type Engine = (EngineDescription, PayloadPath);

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
        self.step_begun_before(step, |run| {
            let (result, summary) = work(run)?;
            Ok((result, summary, Duration::ZERO))
        })
    }

    /// [`step`](Self::step) for one that may have begun beside another; `work` also returns how long that was at it.
    fn step_begun_before<T>(
        &mut self,
        step: Step,
        work: impl FnOnce(&mut Self) -> Result<(T, String, Duration), CompileError>,
    ) -> Result<T, CompileError> {
        self.interrupt.check()?;
        self.observer.begin(step);
        let start = Instant::now();
        let (result, summary, took_beside) = work(self)?;
        self.end(step, &summary, start.elapsed().max(took_beside));
        Ok(result)
    }

    fn end(&mut self, step: Step, summary: &str, took: Duration) {
        self.observer.end(step, summary, took);
        self.steps.push((step, took.as_secs_f64()));
    }

    /// From the look at what fp16 cannot hold to the engine. `None` if it was left to the check, and the check has seen such a
    /// thing: all is as before then.
    fn make(
        &mut self,
        staging: &Staging,
        plan: &mut Plan,
        files: &mut Vec<FileEntry>,
        host: &Host,
        look: Look,
    ) -> Result<Option<(Evidence, Option<Engine>)>, CompileError> {
        let runtime = &host.onnxruntime;
        let overflow = match look {
            Look::First => self.look_for_overflow(staging, plan, runtime)?,
            Look::WithCheck => None,
        };
        let packed = self.pack(staging, plan)?.map(|(file, record)| {
            files.push(file);
            record
        });
        self.step(Step::Export, |run| run.write_graph(staging, plan, files))?;
        let wanted = match &host.libraries {
            Some(libraries) => {
                let request = self.request(staging, plan, libraries.clone());
                let version = host.tensorrt_version(self.job, libraries, self.interrupt)?;
                Some(self.look_for_engine(staging, plan, &version, request, files)?)
            }
            None => None,
        };
        let graph = match &wanted {
            Some(wanted) if wanted.is_new() => self.graph_for_builder(staging, plan)?,
            _ => BuilderGraph::as_stored(staging),
        };
        let beside = self.build_beside(host, plan, &graph, wanted.as_ref())?;
        let share = if beside.is_some() { Share::BesideBuilder } else { Share::All };
        let evidence = match &plan.given {
            Some(given) => self.check_given(staging, plan, given, runtime)?,
            None => match self.check(staging, plan, &graph, runtime, (look, share))? {
                Checked::Passed(evidence) => {
                    let overflow = overflow.or_else(|| evidence.overflow.clone());
                    Evidence { overflow, packed, ..*evidence }
                }
                Checked::TooLarge => {
                    drop(beside);
                    Self::take_back(staging)?;
                    return Ok(None);
                }
            },
        };
        let engine = match wanted {
            Some(wanted) => {
                let work = |run: &mut Run<'_>| run.build_engine(host, staging, plan, &graph, wanted, beside);
                Some(self.step_begun_before(Step::Engine, work)?)
            }
            None => None,
        };
        Ok(Some((evidence, engine)))
    }

    /// Takes the graph out of the staging, and an engine that was taken over for it.
    fn take_back(staging: &Staging) -> Result<(), CompileError> {
        let (graph, engines) = (staging.path().join(GRAPH), staging.path().join("engines"));
        let io = |path: PathBuf| move |source| CompileError::Io { doing: "take back", path, source };
        fs::remove_file(&graph).map_err(io(graph))?;
        match fs::remove_dir_all(&engines) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(engines)(error)),
            _ => Ok(()),
        }
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
            let source = match &self.job.source {
                ModelSource::Graph { files, .. } => files,
                source => source,
            };
            entries.push(match source {
                ModelSource::Published(version) => staging.share(version, &path)?,
                folder => staging.import(&folder.folder().join(name), &path)?,
            });
        }
        if let Some(given) = &plan.given {
            self.stage_graph(staging, plan, given, &mut entries)?;
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

    fn publish(
        &mut self,
        staging: Staging,
        evidence: &Evidence,
        engine: Option<&Engine>,
    ) -> Result<(Published, String), CompileError> {
        staging.write(&payload_path("evidence.json")?, &json_file(evidence))?;
        let layers: Option<Vec<Layer>> = engine.and_then(|(_, plan)| {
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

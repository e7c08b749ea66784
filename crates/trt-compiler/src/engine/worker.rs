//! The child process: parses the graph, builds the plan, writes it, and says so.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[cfg(feature = "tensorrt-enterprise")]
use engine_runtime::Timings;
use engine_runtime::{Caching, Engine, RuntimeOptions};
use model_store::with_causes;
use rustix::process::Signal;
use trtx::BuilderFlag;
#[cfg(not(feature = "tensorrt-enterprise"))]
use trtx::builder::ComputeCapability;
use trtx::logger::{LogHandler, Severity};
use trtx::trtx_sys::MemoryPoolType;
use trtx::trtx_sys::nvinfer1::IBuilderConfig;

use super::builder::{self, Builder, BuilderError, Listener};
use super::examiner::examine;
use super::host::memory_bytes;
use super::memory;
use super::{
    EngineFacts, EngineOptions, EngineRequest, JudgeRequest, PlanTrait, Tf32, WorkerMessage, WorkerRequest,
};
use crate::engine_gate::judge_engine;
use crate::gate::Verdict;
use crate::interrupt::Interrupt;
use crate::native;

/// Where messages go: the standard output that the process was started with.
#[derive(Clone)]
pub(super) struct Channel(Arc<Mutex<File>>);

impl Channel {
    pub(super) fn send(&self, message: &WorkerMessage) {
        // A parent that is gone cannot be told; the death signal ends this process anyway.
        if let (Ok(mut file), Ok(mut line)) = (self.0.lock(), serde_json::to_vec(message)) {
            line.push(b'\n');
            let _ = file.write_all(&line);
        }
    }
}

/// Runs the child process: reads one request, builds, reports. Call it when the first argument is
/// [`WORKER_ARGUMENT`](super::WORKER_ARGUMENT).
#[must_use]
pub fn worker_main() -> ExitCode {
    // The build dies with whoever asked for it, also when that is killed and cannot say so.
    if rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(channel) = take_over_stdout() else {
        return ExitCode::FAILURE;
    };
    // Libraries that it will need, if it was told of them: nobody asks it anything yet. What is wrong with one, if anything is,
    // shows when it is needed.
    let early: Vec<PathBuf> = std::env::args_os().skip(2).map(PathBuf::from).collect();
    let _open: Vec<_> = early.iter().map(|path| builder::open(path)).collect();
    if let Some(core) = early.first() {
        match native::tensorrt_version(core, None) {
            Ok(version) => channel.send(&WorkerMessage::Opened { version }),
            Err(error) => {
                let (stage, reason) = (LOADING.to_owned(), with_causes(&error));
                channel.send(&WorkerMessage::Failed { stage, reason, os_error: None });
                return ExitCode::FAILURE;
            }
        }
    }
    let outcome = read_request().and_then(|request| match request {
        WorkerRequest::Build(request) => build(&request, &channel).map(WorkerMessage::Built),
        WorkerRequest::Examine(request) => examine(&request, &channel).map(WorkerMessage::Examined),
        WorkerRequest::Judge(request) => judge(&request).map(Box::new).map(WorkerMessage::Judged),
    });
    match outcome {
        Ok(answer) => {
            channel.send(&answer);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let Failure { stage, reason, os_error } = failure;
            channel.send(&WorkerMessage::Failed { stage: stage.to_owned(), reason, os_error });
            ExitCode::FAILURE
        }
    }
}

/// The first stage of anything; the exit code of an error there says that the host lacks something.
pub(super) const LOADING: &str = "load its libraries";

pub(super) struct Failure {
    pub(super) stage: &'static str,
    pub(super) reason: String,
    pub(super) os_error: Option<i32>,
}

/// Says at which stage an error happened.
pub(super) trait At<T> {
    fn at(self, stage: &'static str) -> Result<T, Failure>;
}

impl<T, E: Into<Box<dyn std::error::Error>>> At<T> for Result<T, E> {
    fn at(self, stage: &'static str) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            let os_error = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            Failure { stage, reason: with_causes(&*error), os_error }
        })
    }
}

/// Keeps the standard output for messages and sends what native code prints to the standard error instead.
fn take_over_stdout() -> io::Result<Channel> {
    let ours = rustix::io::dup(io::stdout())?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(Channel(Arc::new(Mutex::new(File::from(ours)))))
}

fn read_request() -> Result<WorkerRequest, Failure> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).at("read the request")?;
    serde_json::from_str(&line).at("read the request")
}

/// Loads the engine as an agent would, and holds what it gives against the model.
fn judge(request: &JudgeRequest) -> Result<Verdict, Failure> {
    let options = RuntimeOptions {
        library: Some(request.library.clone()),
        caching: Caching::Off,
        version: Some(request.model.clone()),
        ..RuntimeOptions::default()
    };
    let engine = Engine::open(&request.engine, &options).at("load the engine")?;
    let interrupt = Interrupt::default();
    let verdict = judge_engine(&engine, &request.model, &request.texts, request.wishes, &interrupt);
    let verdict = verdict.at("run the engine")?;
    Ok(Verdict { comparison: verdict.comparison.in_numbers(), ..verdict })
}

fn build(request: &EngineRequest, channel: &Channel) -> Result<EngineFacts, Failure> {
    let heard = Box::new(Reporter::new(channel.clone()));
    let mut builder = Builder::open(&request.libraries, heard).map_err(|error| {
        let stage = if matches!(error, BuilderError::Library(_)) { LOADING } else { "create the builder" };
        Failure { stage, reason: with_causes(&error), os_error: None }
    })?;
    // It is open by now, which takes a tenth of a second.
    let version = native::tensorrt_version(&request.libraries.core, None).at(LOADING)?;

    let start = Instant::now();
    let path = request.onnx.to_str().ok_or("the path of the graph is not UTF-8").at("parse the graph")?;
    builder.parse(path).at("parse the graph")?;
    let parse_seconds = start.elapsed().as_secs_f64();
    if builder.nb_outputs() == 0 {
        // An empty file is an empty message, which the parser takes for a graph.
        return Err(Failure {
            stage: "parse the graph",
            reason: "it has no outputs".to_owned(),
            os_error: None,
        });
    }
    for inputs in &request.profiles {
        builder.add_profile(inputs).at("set the profile")?;
    }
    set_targets(builder.config(), request)?;
    set_options(builder.config(), &request.options)?;
    match request.tf32 {
        Tf32::Allowed => builder.config().setFlag(BuilderFlag::kTF32.into()),
        Tf32::Forbidden => builder.config().clearFlag(BuilderFlag::kTF32.into()),
    }
    #[cfg(feature = "tensorrt-enterprise")]
    let kept = begin_with_timings(&mut builder, &version);
    let layers = serde_json::to_vec(&builder.layers()).at("list the layers")?;
    write_new(&request.layers, &layers).at("write the list of layers")?;

    let start = Instant::now();
    let plan = create_new(&request.plan).at("write the plan")?;
    let plan_bytes = match builder.build_to(plan) {
        Err(BuilderError::Write(error)) => return Err(error).at("write the plan"),
        built => built.at("build the engine")?,
    };
    #[cfg(feature = "tensorrt-enterprise")]
    if let Some(kept) = kept {
        keep_timings(&builder, &kept, channel);
    }
    Ok(EngineFacts {
        version,
        plan_bytes,
        parse_seconds,
        build_seconds: start.elapsed().as_secs_f64(),
        peak_memory_bytes: memory_bytes("self", "VmHWM:").unwrap_or_default(),
        // Whoever waits for this process looks at it: a thread of its own would need memory where there may be none.
        peak_private_bytes: 0,
        warnings: Vec::new(),
    })
}

/// Has the builder begin with the times of kernels that earlier builds measured on this GPU. Without them it measures.
#[cfg(feature = "tensorrt-enterprise")]
fn begin_with_timings(builder: &mut Builder, version: &str) -> Option<Timings> {
    let timings = Timings::of(version, native::gpus().ok()?.first()?)?;
    builder.begin_with_timings(&timings.load()).ok()?;
    Some(timings)
}

/// Keeps what was measured. The engine is there without it, so what goes wrong is a warning.
#[cfg(feature = "tensorrt-enterprise")]
fn keep_timings(builder: &Builder, timings: &Timings, channel: &Channel) {
    let kept = builder.timings().and_then(|serialised| Ok(timings.save(&serialised)?));
    if let Err(error) = kept {
        let text = format!("the times of kernels are not kept: {}", with_causes(&error));
        channel.send(&WorkerMessage::Log { error: false, text });
    }
}

fn set_options(mut config: Pin<&mut IBuilderConfig>, options: &EngineOptions) -> Result<(), Failure> {
    if let Some(level) = options.level {
        config.as_mut().setBuilderOptimizationLevel(level.into());
    }
    if let Some(bytes) = options.workspace_bytes {
        let bytes = usize::try_from(bytes).at("set the workspace")?;
        config.as_mut().setMemoryPoolLimit(MemoryPoolType::kWORKSPACE.into(), bytes);
    }
    if options.traits.contains(&PlanTrait::WeightStreaming) {
        config.as_mut().setFlag(BuilderFlag::kWEIGHT_STREAMING.into());
    }
    if options.traits.contains(&PlanTrait::Stripped) {
        // Without another flag the weights that it gets later must be those it was built with, which they are.
        config.as_mut().setFlag(BuilderFlag::kSTRIP_PLAN.into());
    }
    // TensorRT-RTX has neither, which is said before a build.
    #[cfg(feature = "tensorrt-enterprise")]
    {
        if options.traits.contains(&PlanTrait::VersionCompatible) {
            config.as_mut().setFlag(BuilderFlag::kVERSION_COMPATIBLE.into());
        }
        if options.traits.contains(&PlanTrait::HardwareCompatible) {
            let level = trtx::HardwareCompatibilityLevel::kAMPERE_PLUS;
            config.as_mut().setHardwareCompatibilityLevel(level.into());
        }
    }
    Ok(())
}

#[cfg(not(feature = "tensorrt-enterprise"))]
fn set_targets(mut config: Pin<&mut IBuilderConfig>, request: &EngineRequest) -> Result<(), Failure> {
    let stage = "set the targets";
    if request.targets.is_empty() {
        // TensorRT then builds for the GPU of this host, whatever that is, and says so where there is none.
        return Ok(());
    }
    let count = i32::try_from(request.targets.len()).at(stage)?;
    let refused = || BuilderError::Refused;
    config.as_mut().setNbComputeCapabilities(count).then_some(()).ok_or_else(refused).at(stage)?;
    for (index, target) in (0..).zip(&request.targets) {
        let capability = match target.sm() {
            75 => ComputeCapability::kSM75,
            80 => ComputeCapability::kSM80,
            86 => ComputeCapability::kSM86,
            89 => ComputeCapability::kSM89,
            120 => ComputeCapability::kSM120,
            121 => ComputeCapability::kSM121,
            other => {
                return Err(Failure { stage, reason: format!("SM {other} is unknown"), os_error: None });
            }
        };
        let set = config.as_mut().setComputeCapability(capability.into(), index);
        set.then_some(()).ok_or_else(refused).at(stage)?;
    }
    Ok(())
}

/// This TensorRT times kernels on the GPU of this host, and builds for no other generation.
#[cfg(feature = "tensorrt-enterprise")]
fn set_targets(_config: Pin<&mut IBuilderConfig>, request: &EngineRequest) -> Result<(), Failure> {
    let stage = "set the targets";
    let gpus = native::gpus().map_err(|reason| Failure { stage, reason, os_error: None })?;
    let here = gpus.first().map(|gpu| gpu.sm).unwrap_or_default();
    match request.targets.iter().find(|target| target.sm() != here) {
        None => Ok(()),
        Some(target) => {
            let reason = format!(
                "it builds for the GPU of this host, SM {here}, not for SM {target}; give --target {here}"
            );
            Err(Failure { stage, reason, os_error: None })
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create_new(path)?.write_all(bytes)
}

fn create_new(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    File::create_new(path)
}

/// Sends warnings and errors of TensorRT to the parent, and how far it is. The parser's errors, with the names of the nodes,
/// come this way.
pub(super) struct Reporter {
    channel: Channel,
    phases: Mutex<Vec<(String, i32)>>,
    /// When a step was told of last. TensorRT has hundreds in some milliseconds.
    told: Mutex<Instant>,
}

/// How often a step is told of, at most; the begin of a phase always is.
const BETWEEN_STEPS: Duration = Duration::from_millis(50);

impl Reporter {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel, phases: Mutex::new(Vec::new()), told: Mutex::new(Instant::now()) }
    }
}

impl LogHandler for Reporter {
    fn log(&self, severity: Severity, message: &str) {
        Listener::log(self, severity, message);
    }
}

impl Listener for Reporter {
    fn log(&self, severity: Severity, message: &str) {
        if severity <= Severity::Warning {
            let error = severity <= Severity::Error;
            self.channel.send(&WorkerMessage::Log { error, text: message.trim().to_owned() });
        }
    }

    fn phase_start(&self, phase: &str, steps: i32) {
        if let Ok(mut phases) = self.phases.lock() {
            phases.push((phase.to_owned(), steps));
        }
        self.channel.send(&WorkerMessage::Progress { phase: phase.to_owned(), step: 0, steps });
    }

    fn step_complete(&self, phase: &str, step: i32) -> ControlFlow<()> {
        let Ok(mut told) = self.told.lock() else { return ControlFlow::Continue(()) };
        if told.elapsed() < BETWEEN_STEPS {
            return ControlFlow::Continue(());
        }
        *told = Instant::now();
        drop(told);
        let steps =
            self.phases.lock().ok().and_then(|phases| {
                phases.iter().rev().find(|(name, _)| name == phase).map(|(_, steps)| *steps)
            });
        let steps = steps.unwrap_or_default();
        self.channel.send(&WorkerMessage::Progress { phase: phase.to_owned(), step: step + 1, steps });
        ControlFlow::Continue(())
    }

    fn phase_finish(&self, phase: &str) {
        memory::give_back();
        if let Ok(mut phases) = self.phases.lock() {
            phases.retain(|(name, _)| name != phase);
        }
    }
}

//! `build-engine --agent …`: the main job.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use model_store::{Activation, AgentName, ModelStore, exit};
use onnx_export::Precision;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use trt_compiler::engine::BuildOptions;
use trt_compiler::{
    Calibration, CompileError, EngineWish, HostUse, Interrupt, Job, KvCache, ModelSource, Overflow, Reuse,
    Runtimes, Target, ThresholdWishes, WeightForm, default_version, now, texts,
};

use crate::cli::BuildArgs;
use crate::failure::Failure;
use crate::source::Chosen;
use crate::{fetching, roster, show, source};

pub(crate) fn run(args: &BuildArgs) -> Result<ExitCode, Failure> {
    let interrupt = listen()?;
    if args.all {
        return roster::run(args, &interrupt);
    }
    let mut out = anstream::stdout();
    let job = match task(args, &interrupt)? {
        Task::Build(job) => *job,
        Task::Fetch(plan) => {
            let text = if args.json {
                to_json(&fetching::plan_object(&plan, &args.revision))?
            } else {
                fetching::plan(&plan, &args.revision)
            };
            writeln!(out, "{text}").map_err(Failure::output)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    if args.dry_run {
        let plan = trt_compiler::dry_run(&job).map_err(|error| source::failed(error, &job.source))?;
        let text =
            if args.json { to_json(&plan)? } else { show::plan(&plan, job.engine == EngineWish::Build) };
        writeln!(out, "{text}").map_err(Failure::output)?;
        return Ok(ExitCode::SUCCESS);
    }
    if job.engine == EngineWish::Skip && !args.no_engine {
        anstream::eprintln!(
            "note: built without the feature `tensorrt`: the version will hold a checked graph and no engine"
        );
    }
    let report = show::Report::new(args.json);
    let outcome = trt_compiler::run(&job, &report, &interrupt);
    let outcome = outcome.map_err(|error| source::failed(error, &job.source))?;
    drop(report);
    let text = if args.json { to_json(&outcome)? } else { show::summary(&outcome) };
    writeln!(out, "{text}").map_err(Failure::output)?;
    Ok(ExitCode::SUCCESS)
}

/// The first Ctrl-C asks the run to stop and clean up; a second one ends the process on the spot, and the next writer
/// clears what it leaves.
pub(crate) fn listen() -> Result<Interrupt, Failure> {
    let interrupt = Interrupt::default();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, exit::INTERRUPTED.into(), interrupt.flag())
            .and_then(|_| signal_hook::flag::register(signal, interrupt.flag()))
            .map_err(|error| Failure::new(exit::FAILURE, error))?;
    }
    Ok(interrupt)
}

/// What is to be done, as far as it is known.
enum Task {
    Build(Box<Job>),
    /// A dry run of a model that is not here yet ends with saying what would be fetched.
    Fetch(hub_fetch::Plan),
}

fn task(args: &BuildArgs, interrupt: &Interrupt) -> Result<Task, Failure> {
    let Some(agent) = args.agent.clone() else {
        return Err(Failure::message(exit::USAGE, "an agent is needed: --agent AGENT".to_owned()));
    };
    let texts = texts_of(args)?;
    let root = args.store.clone().unwrap_or_else(ModelStore::root_from_env);
    let (store, source) = match source::named(args, interrupt)? {
        // A first publish makes the store; a dry run makes nothing.
        Some(source) if !args.dry_run => (ModelStore::create(root)?, source),
        Some(source) => (ModelStore::open(root)?, source),
        None => {
            let store = ModelStore::open(root)?;
            let source = source::of_agent(args, &agent, &store, interrupt)?;
            (store, source)
        }
    };
    match source {
        Chosen::Here(source) => job(args, &agent, store, source, texts).map(|job| Task::Build(Box::new(job))),
        Chosen::ToFetch(plan) => Ok(Task::Fetch(plan)),
    }
}

/// The texts that the arguments name, read once however many agents there are.
#[derive(Clone)]
pub(crate) struct Texts {
    /// Of the check.
    pub(crate) check: Vec<String>,
    pub(crate) calibration: Option<Calibration>,
}

/// Reads them: what is wrong with them is said before anything is fetched.
pub(crate) fn texts_of(args: &BuildArgs) -> Result<Texts, Failure> {
    let precision = args.precision();
    // A graph that is taken as it is has been calibrated by whoever wrote it.
    let needs_calibration = precision.needs_calibration() && args.from_onnx.is_none() && !args.use_repo_onnx;
    match (&args.calib_data, needs_calibration) {
        (None, true) => return Err(CompileError::NoCalibration { precision }.into()),
        (Some(_), false) if !precision.may_overflow() => {
            let unused = format!(
                "--calib-data is for int8 and fp8, and for fp16, w8a16 and w4a16 to look for overflow; {precision} has no use for it"
            );
            return Err(Failure::message(exit::USAGE, unused));
        }
        _ => {}
    }
    let check = args.texts.as_deref().map_or_else(|| Ok(texts::built_in()), read_texts)?;
    let calibration = |path: &PathBuf| {
        let source = path.display().to_string();
        Ok::<_, Failure>(Calibration { texts: read_texts(path)?, source, method: args.calib_method })
    };
    let calibration = args.calib_data.as_ref().map(calibration).transpose()?;
    Ok(Texts { check, calibration })
}

/// What the arguments ask for, for one agent.
pub(crate) fn job(
    args: &BuildArgs,
    agent: &AgentName,
    store: ModelStore,
    source: ModelSource,
    texts: Texts,
) -> Result<Job, Failure> {
    let Texts { check: texts, calibration } = texts;
    let build = BuildOptions::this_program().map_err(|error| Failure::new(exit::FAILURE, error))?;
    let precision = precision(args, &source)?;
    let version = match &args.output_version {
        Some(version) => version.clone(),
        None => default_version(now(), precision)
            .parse()
            .map_err(|error: model_store::NameError| Failure::new(exit::USAGE, error))?,
    };
    Ok(Job {
        agent: agent.clone(),
        store,
        version,
        source,
        precision,
        keep_fp32: args.keep_fp32.clone(),
        weights: weights(args),
        overflow: if args.no_auto_fp32 { Overflow::LetBe } else { Overflow::KeepInFp32 },
        kv_cache: kv_cache(args),
        calibration,
        profile: args.profile.first().copied(),
        targets: targets(args),
        engine: if args.no_engine || !cfg!(feature = "tensorrt") {
            EngineWish::Skip
        } else {
            EngineWish::Build
        },
        reference: args.reference.clone(),
        texts,
        thresholds: ThresholdWishes {
            max_abs: args.max_abs,
            min_cosine: args.min_cosine,
            mean_cosine: args.mean_cosine,
            min_top1: None,
        },
        explain: args.explain,
        keep: args.keep,
        activation: if args.no_activate { Activation::Keep } else { Activation::Activate },
        runtimes: Runtimes::from_env(),
        host: if args.jobs > 1 { HostUse::Shared } else { HostUse::Alone },
        build: BuildOptions { timeout: args.build_timeout, ..build },
        options: args.engine_options(),
        reuse: if args.rebuild { Reuse::Forbidden } else { Reuse::Allowed },
    })
}

/// What is asked for, and of a graph that is taken as it is, where nothing is asked for it alone, what it computes in.
pub(crate) fn precision(args: &BuildArgs, source: &ModelSource) -> Result<Precision, Failure> {
    match (source, args.precision) {
        (ModelSource::Graph { onnx, .. }, asked) if asked.is_none() || args.all => {
            Ok(trt_compiler::graph_precision(onnx).map_err(CompileError::from)?)
        }
        _ => Ok(args.precision()),
    }
}

/// In which type the weights are to lie.
pub(crate) fn weights(args: &BuildArgs) -> WeightForm {
    if args.materialise { WeightForm::Materialised } else { WeightForm::Stored }
}

/// Whether a language model's engine shall have a cache.
pub(crate) fn kv_cache(args: &BuildArgs) -> KvCache {
    if args.no_kv_cache { KvCache::Without } else { KvCache::With }
}

/// The GPU generations that are asked for.
pub(crate) fn targets(args: &BuildArgs) -> Vec<Target> {
    let mut targets = if args.target.is_empty() { Target::defaults() } else { args.target.clone() };
    targets.sort_unstable();
    targets.dedup();
    targets
}

fn read_texts(path: &Path) -> Result<Vec<String>, Failure> {
    let texts = texts::read(path).map_err(|error| {
        Failure::io(error).context(format!("cannot read the texts in {}", path.display()))
    })?;
    if texts.is_empty() {
        let nothing = format!(
            "{} holds no text: one a line, JSONL, or a folder of such files is wanted",
            path.display()
        );
        return Err(Failure::message(exit::USAGE, nothing));
    }
    Ok(texts)
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value).map_err(|error| Failure::new(exit::FAILURE, error))
}

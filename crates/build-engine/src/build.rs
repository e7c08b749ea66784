//! `build-engine --agent …`: the main job.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use model_store::{Activation, AgentName, ModelStore, exit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use trt_compiler::engine::BuildOptions;
use trt_compiler::{
    Calibration, CompileError, EngineWish, Interrupt, Job, ModelSource, Reuse, Runtimes, Target,
    ThresholdWishes, default_version, now, texts,
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
        let plan = trt_compiler::dry_run(&job)?;
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
    let outcome = trt_compiler::run(&job, &report, &interrupt)?;
    drop(report);
    let text = if args.json { to_json(&outcome)? } else { show::summary(&outcome) };
    writeln!(out, "{text}").map_err(Failure::output)?;
    Ok(ExitCode::SUCCESS)
}

/// The first Ctrl-C asks the run to stop and clean up; a second one ends the process on the spot, and the next writer
/// clears what it leaves.
fn listen() -> Result<Interrupt, Failure> {
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
    check_texts(args)?;
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
        Chosen::Here(source) => job(args, &agent, store, source).map(|job| Task::Build(Box::new(job))),
        Chosen::ToFetch(plan) => Ok(Task::Fetch(plan)),
    }
}

/// What is wrong with the texts is said before anything is fetched.
pub(crate) fn check_texts(args: &BuildArgs) -> Result<(), Failure> {
    let precision = args.precision;
    match (&args.calib_data, precision.needs_calibration()) {
        (None, true) => return Err(CompileError::NoCalibration { precision }.into()),
        (Some(_), false) => {
            let unused = format!("--calib-data is for int8 and fp8; {precision} needs no calibration");
            return Err(Failure::message(exit::USAGE, unused));
        }
        _ => {}
    }
    args.texts.iter().chain(&args.calib_data).try_for_each(|path| read_texts(path).map(drop))
}

/// What the arguments ask for, for one agent.
pub(crate) fn job(
    args: &BuildArgs,
    agent: &AgentName,
    store: ModelStore,
    source: ModelSource,
) -> Result<Job, Failure> {
    let texts = args.texts.as_deref().map_or_else(|| Ok(texts::built_in()), read_texts)?;
    let calibration = match &args.calib_data {
        Some(path) => Some(Calibration {
            texts: read_texts(path)?,
            source: path.display().to_string(),
            method: args.calib_method,
        }),
        None => None,
    };
    let build = BuildOptions::this_program().map_err(|error| Failure::new(exit::FAILURE, error))?;
    let version = match &args.output_version {
        Some(version) => version.clone(),
        None => default_version(now(), args.precision)
            .parse()
            .map_err(|error: model_store::NameError| Failure::new(exit::USAGE, error))?,
    };
    Ok(Job {
        agent: agent.clone(),
        store,
        version,
        source,
        precision: args.precision,
        keep_fp32: args.keep_fp32.clone(),
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
        build: BuildOptions { timeout: args.build_timeout, ..build },
        options: args.engine_options(),
        reuse: if args.rebuild { Reuse::Forbidden } else { Reuse::Allowed },
    })
}

/// The GPU generations that are asked for.
pub(crate) fn targets(args: &BuildArgs) -> Vec<Target> {
    let mut targets = if args.target.is_empty() { Target::DEFAULT.to_vec() } else { args.target.clone() };
    targets.sort_unstable();
    targets.dedup();
    targets
}

pub(crate) fn read_texts(path: &Path) -> Result<Vec<String>, Failure> {
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

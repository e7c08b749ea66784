//! `build-engine --all`: every agent's engine, as far as it is not what a build would give today.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use hub_fetch::Graphs;
use model_loader::AgentMap;
use model_store::{AgentEntry, AgentName, Current, ModelStore, exit};
use serde::Serialize;
use trt_compiler::{
    CompileError, EngineWanted, Interrupt, Job, Observer, Outcome, Runtimes, Step, Wish, staleness, texts,
};

use crate::build::{self, Texts};
use crate::cli::BuildArgs;
use crate::failure::Failure;
use crate::show::{BAD, GOOD, QUIET, seconds};
use crate::source::{self, Chosen, Download};

/// What is to be done for one agent.
struct Task {
    agent: AgentName,
    now: String,
    todo: Todo,
}

enum Todo {
    Nothing,
    Build {
        job: Box<Job>,
        why: String,
    },
    /// The model is on the Hub and not here.
    Fetch {
        id: String,
        graphs: Graphs,
        why: String,
    },
    /// There is nothing to build from, or it cannot be read.
    Cannot(Failure),
}

/// What is to be done for one agent, as `--dry-run` tells it.
#[derive(Serialize)]
struct Wanted<'a> {
    agent: &'a AgentName,
    now: &'a str,
    todo: &'static str,
    why: String,
    #[serde(skip)]
    exit_code: u8,
}

impl<'a> Wanted<'a> {
    fn of(task: &'a Task) -> Self {
        let (todo, why, exit_code) = match &task.todo {
            Todo::Nothing => ("nothing", "up to date".to_owned(), exit::OK),
            Todo::Build { why, .. } => ("build", why.clone(), exit::OK),
            Todo::Fetch { id, why, .. } => ("fetch, build", format!("{why}; from {id}"), exit::OK),
            Todo::Cannot(failure) => ("cannot", failure.to_string(), failure.code()),
        };
        Self { agent: &task.agent, now: &task.now, todo, why, exit_code }
    }
}

/// How it ended for one agent, as `--json` has it.
#[derive(Serialize)]
struct Ended {
    agent: AgentName,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    exit_code: u8,
}

pub(crate) fn run(args: &BuildArgs, interrupt: &Interrupt) -> Result<ExitCode, Failure> {
    let texts = build::texts_of(args)?;
    let root = args.store.clone().unwrap_or_else(ModelStore::root_from_env);
    let store = ModelStore::open(root)?;
    let tasks = plan(args, &texts, &store, interrupt)?;
    interrupt.check().map_err(CompileError::from)?;
    let mut out = anstream::stdout();
    if !args.json {
        writeln!(out, "{}", table(&tasks)).map_err(Failure::output)?;
    }
    if args.dry_run {
        let wanted: Vec<Wanted<'_>> = tasks.iter().map(Wanted::of).collect();
        if args.json {
            writeln!(out, "{}", build::to_json(&wanted)?).map_err(Failure::output)?;
        }
        return Ok(exit_code(wanted.iter().map(|it| it.exit_code)));
    }
    let ended = build_all(tasks, args, &texts, &store, interrupt);
    if args.json {
        writeln!(out, "{}", build::to_json(&ended)?).map_err(Failure::output)?;
    } else {
        let built = ended.iter().filter(|it| it.outcome.is_some()).count();
        let failed = ended.iter().filter(|it| it.exit_code != exit::OK).count();
        let words = format!("{built} built, {} as they were, {failed} failed", ended.len() - built - failed);
        writeln!(out, "{words}").map_err(Failure::output)?;
    }
    if interrupt.check().is_err() {
        return Ok(ExitCode::from(exit::INTERRUPTED));
    }
    Ok(exit_code(ended.iter().map(|it| it.exit_code)))
}

/// The code that all failures have, or that of a failure.
fn exit_code(codes: impl Iterator<Item = u8>) -> ExitCode {
    let codes: BTreeSet<u8> = codes.filter(|code| *code != exit::OK).collect();
    match (codes.len(), codes.first()) {
        (0, _) => ExitCode::SUCCESS,
        (1, Some(code)) => ExitCode::from(*code),
        _ => ExitCode::from(exit::FAILURE),
    }
}

/// Every agent of the map and of the store, and what is to be done for it.
fn plan(
    args: &BuildArgs,
    texts: &Texts,
    store: &ModelStore,
    interrupt: &Interrupt,
) -> Result<Vec<Task>, Failure> {
    let map = AgentMap::from_env()?;
    let mut agents: BTreeSet<AgentName> =
        map.agents().filter_map(|name| AgentName::try_from(name).ok()).collect();
    for entry in store.agents()? {
        match entry {
            AgentEntry::Agent(name) => agents.insert(name),
            // Writers refuse an alias; its target is an agent of the store.
            AgentEntry::Alias { alias, .. } => agents.remove(&alias),
        };
    }
    if agents.is_empty() {
        let next =
            "there is no agent in the store or in the agent map; build one with --agent NAME --source DIR";
        return Err(Failure::message(exit::NOT_FOUND, next.to_owned()));
    }
    agents.into_iter().map(|agent| task(args, texts, store, &map, agent, interrupt)).collect()
}

fn task(
    args: &BuildArgs,
    texts: &Texts,
    store: &ModelStore,
    map: &AgentMap,
    agent: AgentName,
    interrupt: &Interrupt,
) -> Result<Task, Failure> {
    let current = match store.get_current(&agent) {
        Ok(current) => current,
        Err(error) => return Ok(Task { agent, now: "?".to_owned(), todo: Todo::Cannot(error.into()) }),
    };
    let now = current.as_ref().map_or_else(|| "–".to_owned(), |current| current.version().to_string());
    let graphs = match &current {
        Some(current) if source::came_as_graph(current) => Graphs::Take,
        _ => Graphs::Leave,
    };
    let chosen = match map.model_id(agent.as_str()) {
        Some(id) => source::from_hub(id, args, graphs, Download::Later, interrupt),
        None => source::of_agent(args, &agent, store, interrupt),
    };
    let chosen = match chosen {
        Ok(chosen) => chosen,
        Err(failure) => return Ok(Task { agent, now, todo: Todo::Cannot(failure) }),
    };
    let engine = match engine(args) {
        Ok(engine) => engine,
        Err(failure) => return Ok(Task { agent, now, todo: Todo::Cannot(failure) }),
    };
    let calibration = texts.calibration.as_ref().map(|it| (texts::digest(&it.texts), it.method));
    let precision = match &chosen {
        Chosen::Here(source) => build::precision(args, source),
        Chosen::ToFetch(_) => Ok(args.precision()),
    };
    let precision = match precision {
        Ok(precision) => precision,
        Err(failure) => return Ok(Task { agent, now, todo: Todo::Cannot(failure) }),
    };
    let wish = Wish {
        source: chosen.provenance(args),
        precision,
        profile: args.profile.first().copied(),
        keep_fp32: args.keep_fp32.iter().map(|pattern| pattern.as_str().to_owned()).collect(),
        weights: build::weights(args),
        kv_cache: build::kv_cache(args),
        calibration,
        engine,
    };
    // What is built and not activated stays behind `current`: the newest says whether it is to be built again.
    let newest = if args.no_activate { newest(store, &agent)? } else { None };
    let why = if args.rebuild {
        Some("asked for".to_owned())
    } else {
        staleness(store, newest.as_ref().or(current.as_ref()), &wish)
    };
    let todo = match (why, chosen) {
        (None, _) => Todo::Nothing,
        (Some(why), Chosen::ToFetch(plan)) => Todo::Fetch { id: plan.model_id, graphs, why },
        (Some(why), Chosen::Here(source)) => {
            match build::job(args, &agent, store.clone(), source, texts.clone()) {
                Ok(job) => Todo::Build { job: Box::new(job), why },
                Err(failure) => Todo::Cannot(failure),
            }
        }
    };
    Ok(Task { agent, now, todo })
}

/// The agent's newest version.
fn newest(store: &ModelStore, agent: &AgentName) -> Result<Option<Current>, Failure> {
    if store.get_current(agent)?.is_none() {
        return Ok(None);
    }
    let versions = store.versions(agent)?;
    let Some(newest) = versions.last() else { return Ok(None) };
    Ok(store.get_version(agent, newest)?)
}

/// The engine that a build would give; `None` where the arguments or this host say that there is none.
fn engine(args: &BuildArgs) -> Result<Option<EngineWanted>, Failure> {
    if args.no_engine || !cfg!(feature = "tensorrt") {
        return Ok(None);
    }
    let libraries = Runtimes::from_env().tensorrt_rtx().map_err(CompileError::from)?;
    let version = trt_compiler::tensorrt_version(&libraries.core, None);
    let version = version.map_err(|error| Failure::new(exit::ENVIRONMENT, error))?;
    Ok(Some(EngineWanted { version, targets: build::targets(args) }))
}

fn table(tasks: &[Task]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["AGENT", "NOW", "TO DO", "WHY"]);
    for task in tasks {
        let Wanted { agent, now, todo, why, .. } = Wanted::of(task);
        table.add_row([agent.as_str(), now, todo, &why]);
    }
    table
}

/// Builds what is to be built, up to `--jobs` at a time and as many as there is memory for. A failure stops no other.
fn build_all(
    tasks: Vec<Task>,
    args: &BuildArgs,
    texts: &Texts,
    store: &ModelStore,
    interrupt: &Interrupt,
) -> Vec<Ended> {
    let free = Memory::new();
    let queue = Mutex::new(tasks.into_iter());
    let ended = Mutex::new(Vec::new());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        // Through a function: a lock in the loop's own condition would be held while the task is done.
        while let Some(task) = next() {
            let one = Bench { args, texts, store, interrupt, free: &free }.end(task);
            ended.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(work);
        }
    });
    let mut ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended.sort_by(|a, b| a.agent.cmp(&b.agent));
    ended
}

/// What every build works with.
struct Bench<'a> {
    args: &'a BuildArgs,
    texts: &'a Texts,
    store: &'a ModelStore,
    interrupt: &'a Interrupt,
    free: &'a Memory,
}

impl Bench<'_> {
    fn end(&self, task: Task) -> Ended {
        let Task { agent, todo, .. } = task;
        let mut ended = Ended { agent, why: None, outcome: None, error: None, exit_code: exit::OK };
        let built = match todo {
            Todo::Nothing => return ended,
            Todo::Cannot(failure) => Err(failure),
            Todo::Build { job, why } => {
                ended.why = Some(why);
                self.build(&ended.agent, &job)
            }
            Todo::Fetch { id, graphs, why } => {
                ended.why = Some(why);
                self.fetch(&ended.agent, &id, graphs).and_then(|job| self.build(&ended.agent, &job))
            }
        };
        match built {
            Ok(outcome) => ended.outcome = Some(outcome),
            Err(failure) => {
                ended.exit_code = failure.code();
                let text = failure.to_string();
                if !self.args.json && ended.exit_code != exit::INTERRUPTED {
                    // One line: the whole text of a refusal has many.
                    let line = text.lines().next().unwrap_or_default();
                    anstream::eprintln!("{BAD}{}: {line}{BAD:#}", ended.agent);
                }
                ended.error = Some(text);
            }
        }
        ended
    }

    fn fetch(&self, agent: &AgentName, id: &str, graphs: Graphs) -> Result<Job, Failure> {
        match source::from_hub(id, self.args, graphs, Download::Now, self.interrupt)? {
            Chosen::Here(source) => {
                build::job(self.args, agent, self.store.clone(), source, self.texts.clone())
            }
            Chosen::ToFetch(_) => Err(Failure::message(exit::REMOTE, format!("{id} was not fetched"))),
        }
    }

    fn build(&self, agent: &AgentName, job: &Job) -> Result<Outcome, Failure> {
        self.interrupt.check().map_err(CompileError::from)?;
        let needed = trt_compiler::dry_run(job).map(|plan| plan.memory_bytes());
        let _share = self.free.take(needed.unwrap_or_default());
        let report = Lines { agent: agent.to_string(), quiet: self.args.json };
        trt_compiler::run(job, &report, self.interrupt).map_err(|error| source::failed(error, &job.source))
    }
}

/// The memory that builds may take together: what was free when the first began.
struct Memory {
    free_bytes: Mutex<u64>,
    given_back: Condvar,
    all_bytes: u64,
}

/// A build's part of it.
struct Share<'a> {
    memory: &'a Memory,
    bytes: u64,
}

impl Memory {
    fn new() -> Self {
        let all_bytes = trt_compiler::available_memory_bytes().unwrap_or(u64::MAX);
        Self { free_bytes: Mutex::new(all_bytes), given_back: Condvar::new(), all_bytes }
    }

    /// Waits until there is so much. What no host could give is let through: the build itself refuses it, and says why.
    fn take(&self, bytes: u64) -> Share<'_> {
        let bytes = bytes.min(self.all_bytes);
        let mut free = self.free_bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while *free < bytes {
            free = self.given_back.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= bytes;
        Share { memory: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.memory.free_bytes.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.memory.given_back.notify_all();
    }
}

/// A line for each step, with the agent's name: several builds share the terminal.
struct Lines {
    agent: String,
    quiet: bool,
}

impl Observer for Lines {
    fn end(&self, step: Step, summary: &str, took: Duration) {
        if !self.quiet {
            let took = seconds(took.as_secs_f64());
            let line = format!(
                " {:<14} {GOOD}{:<9}{GOOD:#}  {summary}  {QUIET}{took}{QUIET:#}",
                self.agent,
                step.to_string()
            );
            let _ = writeln!(anstream::stdout(), "{line}");
        }
    }
}

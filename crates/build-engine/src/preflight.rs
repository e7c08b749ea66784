//! `build-engine preflight`: whether this host runs the engines of a version, and if not why.

use std::io::Write;
use std::process::ExitCode;

use model_store::{AgentEntry, AgentName, Current, ModelStore, exit};
use serde::Serialize;
use trt_compiler::engine::BuildOptions;
use trt_compiler::{EngineCheck, HostFacts, Interrupt, Runtimes};

use crate::cli::EngineArgs;
use crate::failure::Failure;
use crate::show::{BAD, GOOD, QUIET};

/// The object that `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    host: HostFacts,
    versions: Vec<Checked>,
}

#[derive(Debug, Serialize)]
struct Checked {
    agent: AgentName,
    version: String,
    engines: Vec<EngineCheck>,
}

pub(crate) fn run(args: &EngineArgs) -> Result<ExitCode, Failure> {
    let build = BuildOptions::this_program().map_err(|error| Failure::new(exit::FAILURE, error))?;
    let host = HostFacts::of_this_host(&Runtimes::from_env());
    let mut versions = Vec::new();
    for version in chosen(args)? {
        let engines = trt_compiler::preflight(&version, &host, &build, &Interrupt::default())
            .map_err(|stopped| Failure::new(exit::INTERRUPTED, stopped))?;
        let (agent, name) = (version.agent().clone(), version.version().to_string());
        versions.push(Checked { agent, version: name, engines });
    }
    let runs = versions.iter().flat_map(|version| &version.engines).any(EngineCheck::runs);
    let report = Report { host, versions };
    let text = if args.json {
        serde_json::to_string_pretty(&report).map_err(|error| Failure::new(exit::FAILURE, error))?
    } else {
        shown(&report)
    };
    writeln!(anstream::stdout(), "{text}").map_err(Failure::output)?;
    Ok(ExitCode::from(if runs { exit::OK } else { exit::ENVIRONMENT }))
}

/// The versions meant: the one named, the agent's current one, or every agent's.
pub(crate) fn chosen(args: &EngineArgs) -> Result<Vec<Current>, Failure> {
    let store = ModelStore::open(args.store.clone().unwrap_or_else(ModelStore::root_from_env))?;
    match (&args.agent, &args.version) {
        (Some(agent), Some(version)) => Ok(vec![store.require_version(agent, version)?]),
        (Some(agent), None) => Ok(vec![store.require_current(agent)?]),
        (None, _) => {
            let mut found = Vec::new();
            for entry in store.agents()? {
                if let AgentEntry::Agent(agent) = entry {
                    found.extend(store.get_current(&agent)?);
                }
            }
            Ok(found)
        }
    }
}

fn shown(report: &Report) -> String {
    let mut lines = Vec::new();
    match &report.host.gpus {
        Ok(gpus) => lines.extend(gpus.iter().map(|gpu| {
            let (major, minor) = (gpu.driver_cuda / 1000, gpu.driver_cuda % 1000 / 10);
            let memory = model_store::human_size(gpu.memory_bytes);
            format!("host  {gpu}, SM {}, {memory}, driver good for CUDA {major}.{minor}", gpu.sm)
        })),
        Err(missing) => lines.push(format!("host  {missing}")),
    }
    match &report.host.tensorrt_rtx {
        Ok(version) => lines.push(format!("host  TensorRT-RTX {version}")),
        Err(missing) => lines.push(format!("host  no TensorRT-RTX: {missing}")),
    }
    if report.versions.is_empty() {
        lines.push(
            "no agent of this store has a current version; `build-engine --agent …` makes one".to_owned(),
        );
    }
    for version in &report.versions {
        let name = format!("{}/{}", version.agent, version.version);
        if version.engines.is_empty() {
            let next = format!("build-engine --agent {}", version.agent);
            lines.push(format!("{BAD}no{BAD:#}    {name} holds no engine; next: {next}"));
        }
        for engine in &version.engines {
            match &engine.runs_on {
                Some(gpu) => lines.push(format!("{GOOD}runs{GOOD:#}  {name}  {}  on {gpu}", engine.plan)),
                None => lines.push(format!("{BAD}no{BAD:#}    {name}  {}", engine.plan)),
            }
            lines.extend(
                engine
                    .obstacles
                    .iter()
                    .map(|it| format!("      {}; {QUIET}next:{QUIET:#} {}", it.reason, it.next)),
            );
        }
    }
    lines.join("\n")
}

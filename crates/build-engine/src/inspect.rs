//! `build-engine inspect`: what the engines of a version are.

use std::io::Write;
use std::process::ExitCode;

use model_store::{exit, human_size};
use serde::Serialize;
use trt_compiler::engine::BuildOptions;
use trt_compiler::{Inspection, Interrupt, Runtimes};

use crate::cli::EngineArgs;
use crate::failure::Failure;
use crate::preflight::chosen;
use crate::show::{BAD, GOOD, QUIET, peak_memory, seconds};

/// The engines of one version, as `--json` prints them.
#[derive(Debug, Serialize)]
struct Inspected {
    agent: String,
    version: String,
    engines: Vec<Inspection>,
}

pub(crate) fn run(args: &EngineArgs) -> Result<ExitCode, Failure> {
    let build = BuildOptions::this_program().map_err(|error| Failure::new(exit::FAILURE, error))?;
    let runtimes = Runtimes::from_env();
    let report: Vec<Inspected> = chosen(args)?
        .iter()
        .map(|version| Inspected {
            agent: version.agent().to_string(),
            version: version.version().to_string(),
            engines: trt_compiler::inspect(version, &runtimes, &build, &Interrupt::default()),
        })
        .collect();
    let text = if args.json {
        serde_json::to_string_pretty(&report).map_err(|error| Failure::new(exit::FAILURE, error))?
    } else {
        report.iter().map(shown).collect::<Vec<_>>().join("\n\n")
    };
    writeln!(anstream::stdout(), "{text}").map_err(Failure::output)?;
    let mut engines = report.iter().flat_map(|version| &version.engines).peekable();
    if engines.peek().is_none() {
        let nothing = "there is no engine to inspect; `build-engine --agent AGENT` builds one".to_owned();
        return Err(Failure::message(exit::NOT_FOUND, nothing));
    }
    let sound = engines.all(|engine| engine.problems.is_empty());
    Ok(ExitCode::from(if sound { exit::OK } else { exit::CORRUPT }))
}

fn shown(version: &Inspected) -> String {
    let mut lines = vec![format!("{}/{}", version.agent, version.version)];
    if version.engines.is_empty() {
        lines.push("  no engine".to_owned());
    }
    for engine in &version.engines {
        lines.push(format!("  {}", engine.plan));
        lines.extend(facts(engine));
        lines.extend(engine.problems.iter().map(|problem| format!("    {BAD}wrong{BAD:#}      {problem}")));
        if engine.problems.is_empty() {
            lines.push(format!("    {GOOD}sound{GOOD:#}      SHA-256 {}", engine.plan_sha256));
        }
    }
    lines.join("\n")
}

fn facts(engine: &Inspection) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |what: &str, text: String| lines.push(format!("    {what:<10} {text}"));
    let header = engine.header_version.as_deref().unwrap_or("no version");
    say("plan", format!("{}, its header says {header}", human_size(engine.plan_bytes)));
    if let Some(it) = &engine.description {
        let targets: Vec<String> = it.targets.iter().map(ToString::to_string).collect();
        say(
            "built by",
            format!(
                "{} {} in {}, peak memory {}",
                it.flavour,
                it.facts.version,
                seconds(it.facts.build_seconds),
                peak_memory(&it.facts)
            ),
        );
        if let Some(whose) = &it.reused_from {
            say("reused", format!("from {whose}"));
        }
        say("for", format!("SM {}, {}", targets.join(" "), it.precision));
        for input in &it.inputs {
            let dims: Vec<String> = input.dims.iter().map(ToString::to_string).collect();
            let dtype = format!("{:?}", input.dtype).to_lowercase();
            say("input", format!("{} {dtype} [{}]", input.name, dims.join(" × ")));
        }
        for profile in &it.options.more_profiles {
            say("profile", format!("also {profile}"));
        }
        for output in &it.outputs {
            let dtype = format!("{:?}", output.dtype).to_lowercase();
            say("output", format!("{} {dtype} [{}]", output.name, output.shape.join(" × ")));
        }
    }
    if let Some(graph) = &engine.graph {
        let opset = graph.opsets.get("").copied().unwrap_or_default();
        say(
            "graph",
            format!(
                "opset {opset}, {} nodes, {} of them casts, {} initializers ({} in other files)",
                graph.nodes, graph.casts, graph.initializers, graph.external
            ),
        );
        let mut operators: Vec<_> = graph.operators.iter().collect();
        operators.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), (*name).clone()));
        let list = operators.iter().map(|(name, count)| format!("{name} {count}"));
        say("", list.collect::<Vec<_>>().join(", "));
    }
    say("layers", format!("{} as parsed, by the type that they give:", engine.layers.len()));
    let mut by_type: Vec<(&str, Vec<String>)> = Vec::new();
    for ((dtype, kind), count) in engine.precisions() {
        match by_type.last_mut() {
            Some((last, kinds)) if *last == dtype => kinds.push(format!("{kind} {count}")),
            _ => by_type.push((dtype, vec![format!("{kind} {count}")])),
        }
    }
    for (dtype, kinds) in by_type {
        say("", format!("{dtype}: {}", kinds.join(", ")));
    }
    match (&engine.inspected, &engine.not_inspected) {
        (Some(inspected), _) => {
            let layers = inspected["Layers"].as_array().map_or(0, Vec::len);
            say("inspector", format!("{layers} layers in the engine (--json lists them)"));
        }
        (None, Some(reason)) => {
            say("inspector", format!("{QUIET}nothing from it: {reason}{QUIET:#}"));
        }
        (None, None) => {}
    }
    lines
}

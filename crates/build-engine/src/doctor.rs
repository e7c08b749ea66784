//! `build-engine doctor`: what this host has, what it lacks, and the command that installs it.

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::process::ExitCode;

use model_loader::hub_cache;
use model_store::{ModelStore, exit};
use serde::Serialize;
use trt_compiler::runtime::Flavour;
use trt_compiler::session::{OnnxRuntime, SessionError};
use trt_compiler::{MissingRuntime, Runtimes, tensorrt_version};

use crate::cli::DoctorArgs;
use crate::failure::Failure;
use crate::show::{BAD, GOOD, QUIET};

/// What brings a library that is there but of no use.
const INSTALL: &str = "`make runtimes` in a checkout installs one that can be used";

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It is there.
    Ok,
    /// It is not there, and `build-engine` works without it.
    Absent,
    /// It is not there, and `build-engine` does not work without it.
    Missing,
}

/// One thing looked for.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Display) -> Self {
        Self { what, state: State::Ok, found: found.to_string(), next: None }
    }

    fn lacking(what: &'static str, state: State, found: impl Display, next: impl Display) -> Self {
        Self { what, state, found: found.to_string(), next: Some(next.to_string()) }
    }
}

pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let runtimes = Runtimes::from_env();
    let findings = [onnxruntime(&runtimes), tensorrt(&runtimes), driver(), gpu(), store(args), cache()];
    let text = if args.json {
        serde_json::to_string_pretty(&findings).map_err(|error| Failure::new(exit::FAILURE, error))?
    } else {
        findings.iter().map(line).collect::<Vec<_>>().join("\n")
    };
    writeln!(anstream::stdout(), "{text}").map_err(Failure::output)?;
    let missing = findings.iter().any(|finding| finding.state == State::Missing);
    Ok(ExitCode::from(if missing { exit::ENVIRONMENT } else { exit::OK }))
}

fn line(finding: &Finding) -> String {
    let (style, word) = match finding.state {
        State::Ok => (GOOD, "ok"),
        State::Absent => (QUIET, "none"),
        State::Missing => (BAD, "missing"),
    };
    let next = finding.next.as_ref().map(|next| format!("\n{:24}next: {next}", "")).unwrap_or_default();
    format!("{:<14} {style}{word:<8}{style:#} {}{next}", finding.what, finding.found)
}

fn onnxruntime(runtimes: &Runtimes) -> Finding {
    let what = "onnx runtime";
    match OnnxRuntime::open(runtimes) {
        Ok(opened) => Finding::ok(what, format!("{}  {}", opened.version, opened.path.display())),
        Err(SessionError::Missing(missing)) => lacking(what, &missing),
        Err(error) => Finding::lacking(what, State::Missing, error, INSTALL),
    }
}

fn tensorrt(runtimes: &Runtimes) -> Finding {
    let what = Flavour::HERE.name();
    if !cfg!(feature = "tensorrt") {
        let next = "cargo build -p build-engine (the feature `tensorrt` is on by default)";
        return Finding::lacking(what, State::Absent, "this binary was built without it: no engines", next);
    }
    let libraries = match runtimes.tensorrt_rtx() {
        Ok(libraries) => libraries,
        Err(missing) => return lacking(what, &missing),
    };
    match tensorrt_version(&libraries.core, Some(&libraries.parser)) {
        Ok(version) => Finding::ok(what, format!("{version}  {}", libraries.core.display())),
        Err(error) => {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            let found = format!("{} and its parser do not open: {error}{cause}", libraries.core.display());
            Finding::lacking(what, State::Missing, found, INSTALL)
        }
    }
}

fn lacking(what: &'static str, missing: &MissingRuntime) -> Finding {
    let searched: Vec<String> = missing.searched.iter().map(|path| path.display().to_string()).collect();
    let found = format!("no {} in {}", missing.file, searched.join(", "));
    Finding::lacking(what, State::Missing, found, missing.next())
}

fn driver() -> Finding {
    match fs::read_to_string("/proc/driver/nvidia/version") {
        Ok(text) => Finding::ok("gpu driver", text.lines().next().unwrap_or_default()),
        Err(_) => Finding::lacking(
            "gpu driver",
            State::Absent,
            "no NVIDIA driver is loaded",
            "nothing: engines are built and graphs checked without one; engines run only where there is one",
        ),
    }
}

fn gpu() -> Finding {
    let models: Vec<String> = fs::read_dir("/proc/driver/nvidia/gpus")
        .into_iter()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("information")).ok())
        .filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned()))
        .collect();
    if models.is_empty() {
        return Finding {
            what: "gpu",
            state: State::Absent,
            found: "none on this host".to_owned(),
            next: None,
        };
    }
    Finding::ok("gpu", models.join(", "))
}

fn store(args: &DoctorArgs) -> Finding {
    let root = args.store.clone().unwrap_or_else(ModelStore::root_from_env);
    let counted = ModelStore::open(&root).and_then(|store| Ok(store.agents()?.len()));
    match counted {
        Ok(agents) => Finding::ok("model store", format!("{}, {agents} agents", root.display())),
        Err(error) => Finding::lacking(
            "model store",
            State::Absent,
            error,
            "cargo run -p toy-store makes a small real one",
        ),
    }
}

fn cache() -> Finding {
    match hub_cache::dir() {
        Some(path) if path.is_dir() => Finding::ok("hub cache", path.display()),
        Some(path) => Finding {
            what: "hub cache",
            state: State::Absent,
            found: format!("{} does not exist", path.display()),
            next: None,
        },
        None => Finding {
            what: "hub cache",
            state: State::Absent,
            found: "no home folder".to_owned(),
            next: None,
        },
    }
}

//! A host against the engines of a version: which run here, and why the others do not, before anything is loaded.

use model_store::{Current, Digest, with_causes};
use serde::{Serialize, Serializer};

use crate::engine::{self, BuildOptions, Depth, ExamineRequest};
use crate::interrupt::{Interrupt, Interrupted};
use crate::reuse::{FLAVOUR, FoundEngine, engines_of};
use crate::runtimes::{RtxLibraries, Runtimes};
use engine_runtime::{EngineRecord, Gpu};

/// What a host has to run engines with.
#[derive(Clone, Debug, Serialize)]
pub struct HostFacts {
    /// Its GPUs, as the CUDA driver lists them; or why there are none to list.
    #[serde(serialize_with = "either")]
    pub gpus: Result<Vec<Gpu>, String>,
    /// Exact version of its TensorRT-RTX; or why there is none.
    #[serde(serialize_with = "either")]
    pub tensorrt_rtx: Result<String, String>,
    #[serde(skip)]
    libraries: Option<RtxLibraries>,
}

/// What there is as it is, and what there is not as `{"missing": "why"}`.
fn either<T: Serialize, S: Serializer>(value: &Result<T, String>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Ok(found) => found.serialize(serializer),
        Err(why) => std::collections::BTreeMap::from([("missing", why)]).serialize(serializer),
    }
}

impl HostFacts {
    /// Asks the CUDA driver and TensorRT-RTX, each opened at run time.
    #[must_use]
    pub fn of_this_host(runtimes: &Runtimes) -> Self {
        let libraries = runtimes.tensorrt_rtx().map_err(|missing| {
            let searched: Vec<String> =
                missing.searched.iter().map(|path| path.display().to_string()).collect();
            format!("no {} in {}", missing.file, searched.join(", "))
        });
        let tensorrt_rtx = libraries.clone().and_then(|libraries| {
            let opened = engine_runtime::tensorrt_version(&libraries.core, None);
            opened.map_err(|error| {
                format!("{} does not open: {}", libraries.core.display(), with_causes(&error))
            })
        });
        Self { gpus: engine_runtime::gpus(), tensorrt_rtx, libraries: libraries.ok() }
    }
}

/// One thing that is in the way, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// What it is.
    pub reason: String,
    /// What to do.
    pub next: String,
}

/// What preflight found of one engine.
#[derive(Clone, Debug, Serialize)]
pub struct EngineCheck {
    /// The plan, within the version.
    pub plan: String,
    /// The GPU it would run on; `None` if it runs here on none.
    pub runs_on: Option<String>,
    /// What is in the way; none if it runs.
    pub obstacles: Vec<Obstacle>,
}

impl EngineCheck {
    /// Whether this host can run it.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.runs_on.is_some()
    }
}

/// Holds every engine of a version against a host.
///
/// Bytes are hashed and compared with `engine.json`. Where nothing speaks against an engine, TensorRT itself is asked, in
/// a child process: it knows best whether the driver is recent enough. It is asked about the first GPU only.
///
/// # Errors
///
/// Only a stop; whatever else goes wrong is an obstacle.
pub fn preflight(
    version: &Current,
    host: &HostFacts,
    build: &BuildOptions,
    interrupt: &Interrupt,
) -> Result<Vec<EngineCheck>, Interrupted> {
    let mut checks = Vec::new();
    for found in engines_of(version) {
        interrupt.check()?;
        let mut obstacles = Vec::new();
        let mut runs_on = None;
        match &found.record {
            Err(reason) => obstacles.push(Obstacle { reason: reason.clone(), next: again(version) }),
            Ok(record) => {
                obstacles.extend(damage(version, &found, record));
                let (gpu, wrong) = against(record, host, version);
                obstacles.extend(wrong);
                // A process sees the first GPU first; of another one TensorRT is not asked.
                if obstacles.is_empty() && gpu.as_ref().is_some_and(|gpu| gpu.index == 0) {
                    obstacles.extend(verdict(version, &found, host, build, interrupt));
                    interrupt.check()?;
                }
                runs_on = gpu.filter(|_| obstacles.is_empty()).map(|gpu| gpu.to_string());
            }
        }
        checks.push(EngineCheck { plan: found.plan.to_string(), runs_on, obstacles });
    }
    Ok(checks)
}

/// The command that makes the engine anew.
fn again(version: &Current) -> String {
    format!("build it again here: build-engine --agent {} --rebuild", version.agent())
}

fn damage(version: &Current, found: &FoundEngine, record: &EngineRecord) -> Option<Obstacle> {
    let digest = version
        .open(&found.plan)
        .map_err(|error| with_causes(&error))
        .and_then(|mut plan| Digest::of_reader(&mut plan).map_err(|error| error.to_string()));
    let next = format!("model-store repair {} {}, or {}", version.agent(), version.version(), again(version));
    match digest {
        Err(error) => Some(Obstacle { reason: format!("the plan cannot be read: {error}"), next }),
        Ok((digest, _)) if digest.to_string() != record.plan_sha256 => {
            let named = &record.plan_sha256;
            Some(Obstacle {
                reason: format!("the plan's digest is {digest}, engine.json says {named}"),
                next,
            })
        }
        Ok(_) => None,
    }
}

/// Everything that can be told without loading anything: the GPU it would run on, or what is in the way.
fn against(record: &EngineRecord, host: &HostFacts, version: &Current) -> (Option<Gpu>, Vec<Obstacle>) {
    let mut wrong = Vec::new();
    let mut say = |reason: String, next: String| wrong.push(Obstacle { reason, next });
    if record.flavour != FLAVOUR {
        let next = "build it with this tool, or use the tool that built it".to_owned();
        say(format!("it is for {}, and this tool runs {FLAVOUR}", record.flavour), next);
    }
    match &host.tensorrt_rtx {
        Err(missing) => say(
            format!("TensorRT-RTX {} is needed: {missing}", record.facts.version),
            "`make runtimes` in a checkout, or name a folder with TENSORRT_RTX_LIB_DIR".to_owned(),
        ),
        Ok(here) if *here != record.facts.version => {
            let built = &record.facts.version;
            let next = format!("install TensorRT-RTX {built}, or {}", again(version));
            say(format!("TensorRT-RTX {built} built it, and this host has {here}"), next);
        }
        Ok(_) => {}
    }
    let gpus = match &host.gpus {
        Ok(gpus) => gpus.as_slice(),
        Err(missing) => {
            let next = "a GPU and its driver; until then the version serves on the CPU, through model.onnx";
            say(missing.clone(), next.to_owned());
            &[]
        }
    };
    let fits = |gpu: &&Gpu| {
        record.targets.iter().any(|target| target.sm() == gpu.sm)
            && gpu.memory_bytes > record.facts.plan_bytes
    };
    let chosen = gpus.iter().find(fits);
    if chosen.is_none() {
        for gpu in gpus {
            let (reason, next) = misfit(gpu, record, version);
            say(reason, next);
        }
    }
    (chosen.cloned(), wrong)
}

fn misfit(gpu: &Gpu, record: &EngineRecord, version: &Current) -> (String, String) {
    let targets: Vec<String> = record.targets.iter().map(ToString::to_string).collect();
    if record.targets.iter().any(|target| target.sm() == gpu.sm) {
        let (has, needs) = (gpu.memory_bytes >> 20, record.facts.plan_bytes >> 20);
        let reason = format!("{gpu} has {has} MiB of memory, and the plan alone is {needs} MiB");
        return (reason, "a GPU with more memory, or a --precision of fewer bits".to_owned());
    }
    let reason = format!("{gpu} is SM {}, and the engine is for SM {}", gpu.sm, targets.join(", "));
    let next = match gpu.sm.to_string().parse::<crate::target::Target>() {
        Ok(target) => format!("build-engine --agent {} --target {target}", version.agent()),
        Err(why) => format!(
            "{why}; without an engine the version serves on this GPU through model-loader's feature `cuda`, and on the CPU"
        ),
    };
    (reason, next)
}

/// What TensorRT itself says, where there is a GPU to ask about.
fn verdict(
    version: &Current,
    found: &FoundEngine,
    host: &HostFacts,
    build: &BuildOptions,
    interrupt: &Interrupt,
) -> Vec<Obstacle> {
    let Some(libraries) = host.libraries.clone().filter(|_| cfg!(feature = "tensorrt")) else {
        return Vec::new();
    };
    let plan = version.path().join(found.plan.as_path());
    let request = ExamineRequest { plan, libraries, depth: Depth::Header };
    let problems = match engine::examine(&request, build, interrupt) {
        Ok(examined) => examined.problems,
        Err(error) => vec![with_causes(&error).replace("\n ", ";")],
    };
    let next = || format!("bring the driver up to date, or {}", again(version));
    let said = problems.into_iter();
    said.map(|problem| Obstacle { reason: format!("TensorRT-RTX says: {problem}"), next: next() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Nothing = Result<(), Box<dyn std::error::Error>>;

    fn gpu(sm: u16, memory_bytes: u64) -> Gpu {
        Gpu { index: 0, name: "Test GPU".to_owned(), sm, memory_bytes, driver_cuda: 13_000 }
    }

    #[test]
    fn hosts_that_differ_in_one_thing_are_told_that_thing() -> Nothing {
        let scratch = tempfile::tempdir()?;
        let store = model_store::ModelStore::create(scratch.path().join("store"))?;
        let (agent, name) = ("analyst".parse()?, "v1".parse()?);
        let staging = store.stage_new(&agent, &name)?;
        staging.write(&"config.json".parse()?, b"{}")?;
        staging.finalize(model_store::FinalizeOptions::default())?;
        let version = store.require_current(&agent)?;
        let record: EngineRecord = serde_json::from_value(serde_json::json!({
            "flavour": "tensorrt-rtx", "version": "1.7.1.116", "plan_bytes": 1000, "parse_seconds": 0.1,
            "build_seconds": 1.0, "peak_memory_bytes": 5, "plan_sha256": "0", "targets": [80, 89],
            "precision": "fp16", "inputs": [], "outputs": [], "onnx_sha256": "0"
        }))?;
        let host = |gpus, library: Result<&str, &str>| HostFacts {
            gpus,
            tensorrt_rtx: library.map(str::to_owned).map_err(str::to_owned),
            libraries: None,
        };
        let check = |row: &str, host: &HostFacts, expected: Result<(), &[&str]>| {
            let (chosen, wrong) = against(&record, host, &version);
            match expected {
                Ok(()) => assert!(chosen.is_some() && wrong.is_empty(), "{row}: {wrong:?}"),
                Err(parts) => {
                    assert_eq!(wrong.len(), 1, "{row}: {wrong:?}");
                    for part in parts {
                        let text = format!("{} {}", wrong[0].reason, wrong[0].next);
                        assert!(text.contains(part), "{row}: {part} is not in {text}");
                        assert!(!text.contains('\n'), "{row}: one line");
                    }
                }
            }
        };
        let right = Ok("1.7.1.116");
        check("all is well", &host(Ok(vec![gpu(89, 1 << 30)]), right), Ok(()));
        check("the second GPU fits", &host(Ok(vec![gpu(90, 1 << 30), gpu(80, 1 << 30)]), right), Ok(()));
        check("no driver", &host(Err("no CUDA driver".to_owned()), right), Err(&["no CUDA driver", "CPU"]));
        let turing = host(Ok(vec![gpu(75, 1 << 30)]), right);
        check("not among the targets", &turing, Err(&["SM 75", "SM 80, 89", "--target 75"]));
        let hopper = host(Ok(vec![gpu(90, 1 << 30)]), right);
        check("no target at all", &hopper, Err(&["SM 90", "enterprise"]));
        check("little memory", &host(Ok(vec![gpu(89, 10)]), right), Err(&["memory"]));
        let older = host(Ok(vec![gpu(89, 1 << 30)]), Ok("1.6.0.5"));
        check("another version", &older, Err(&["1.7.1.116", "1.6.0.5", "--rebuild"]));
        let bare = host(Ok(vec![gpu(89, 1 << 30)]), Err("no libtensorrt_rtx.so.1 in /opt"));
        check("no library", &bare, Err(&["libtensorrt_rtx.so.1", "make runtimes"]));
        Ok(())
    }
}

//! What `make gpu-check` asks of a host with a GPU beyond what the commands do: plans for the GPU at hand, stripped plans,
//! recorded work, kept kernels, the loader. Prints Markdown; an error is an answer, too.
//!
//! `gpu-check probe` says which GPU there is, or why there is none. `gpu-check tries STORE SENTENCES VERSION…` tries
//! everything on these versions of the agent `gpu-check`, with a file of sentences, one a line, to embed.
//! `gpu-check gate STORE AGENT VERSION…` only builds for the GPU at hand, and judges.

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use model_loader::{Backend, Device, LoadOptions, SentenceEmbedder};
use model_store::{Current, Digest, ModelStore, exit, with_causes};
use serde_json::Value;
use trt_compiler::engine::{self, BuildOptions, EngineOptions, EngineRequest, InputShape, PlanTrait, Tf32};
use trt_compiler::runtime::{Caching, CudaGraphs, Engine, EngineRecord, Flavour, RuntimeOptions, gpus};
use trt_compiler::{
    Interrupt, Runtimes, ThresholdWishes, bench_engine, engines_of, judge_engine, tensorrt_version, texts,
};

type Answer<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == engine::WORKER_ARGUMENT) {
        return engine::worker_main();
    }
    let mut out = io::stdout().lock();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["probe"] => return probe(&mut out),
        ["tries", store, sentences, versions @ ..] => {
            tries(&mut out, Path::new(store), Path::new(sentences), versions)
        }
        ["gate", store, agent, versions @ ..] => gate(&mut out, Path::new(store), agent, versions),
        _ => {
            Err("usage: gpu-check probe | tries STORE SENTENCES VERSION… | gate STORE AGENT VERSION…".into())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {}", with_causes(&*error));
            ExitCode::from(exit::FAILURE)
        }
    }
}

/// The GPUs and the library, a line each; else why nothing can be checked here.
fn probe(out: &mut impl Write) -> ExitCode {
    let library = Flavour::HERE.find().map_err(|error| error.to_string()).and_then(|path| {
        let version = tensorrt_version(&path, None).map_err(|error| error.to_string())?;
        Ok(format!("{} {version}", Flavour::HERE.title()))
    });
    let said = gpus().and_then(|gpus| Ok((gpus, library?)));
    match said {
        Ok((gpus, library)) => {
            for gpu in gpus {
                let (major, minor) = (gpu.driver_cuda / 1000, gpu.driver_cuda % 1000 / 10);
                let _ = writeln!(out, "{gpu}, SM {}, driver good for CUDA {major}.{minor}", gpu.sm);
            }
            let _ = writeln!(out, "{library}");
            ExitCode::SUCCESS
        }
        Err(missing) => {
            let _ = writeln!(io::stderr(), "nothing was checked: {missing}");
            ExitCode::from(exit::ENVIRONMENT)
        }
    }
}

fn row(out: &mut impl Write, what: &str, answer: Answer<String>) -> io::Result<()> {
    let text = answer.unwrap_or_else(|error| format!("**refused**: {}", with_causes(&*error)));
    writeln!(out, "- {what}: {}", text.replace('\n', " "))
}

/// Where engines are built that are not published.
fn scratch(store: &ModelStore) -> PathBuf {
    store.root().join("gpu-check.tries")
}

fn gate(out: &mut impl Write, store: &Path, agent: &str, versions: &[&str]) -> Answer<()> {
    let store = ModelStore::open(store.to_owned())?;
    for name in versions {
        let made = || made(&store.require_version(&agent.parse()?, &name.parse()?)?, &scratch(&store), &[]);
        row(out, &format!("{agent} {name}, built for the GPU at hand"), made())?;
    }
    Ok(())
}

fn tries(out: &mut impl Write, store: &Path, sentences: &Path, versions: &[&str]) -> Answer<()> {
    let store = ModelStore::open(store.to_owned())?;
    let scratch = scratch(&store);
    let sentences: Vec<String> = std::fs::read_to_string(sentences)?.lines().map(str::to_owned).collect();
    for name in versions {
        writeln!(out, "\n## {name}\n")?;
        let found = store.require_version(&"gpu-check".parse()?, &name.parse()?);
        let version = match found {
            Ok(version) => version,
            Err(error) => {
                writeln!(out, "Not there: {}", with_causes(&error))?;
                continue;
            }
        };
        let mut row = |what: &str, answer: Answer<String>| row(out, what, answer);
        let own = published(&version);
        let native = made(&version, &scratch, &[]);
        let one_loads = own.is_ok() || native.is_ok();
        row("as published", own)?;
        row("built for the GPU at hand, without a list of generations", native)?;
        row("stripped, then given its weights", made(&version, &scratch, &[PlanTrait::Stripped]))?;
        if !one_loads {
            writeln!(out, "- all else needs a plan that loads here")?;
            continue;
        }
        for graphs in [CudaGraphs::Off, CudaGraphs::Recorded, CudaGraphs::BuiltIn] {
            row(&format!("CUDA graphs {graphs:?}"), timed(&version, &scratch, graphs))?;
        }
        row("kernels compiled and kept, then taken from there", kept(&version, &scratch))?;
        row("through model-loader", loaded(&version, &scratch, &sentences))?;
    }
    Ok(())
}

fn options(version: &Current) -> RuntimeOptions {
    let version = Some(version.path().to_owned());
    RuntimeOptions { caching: Caching::Off, version, ..RuntimeOptions::default() }
}

/// The folder of the version's engine.
fn folder(version: &Current) -> Answer<PathBuf> {
    let found = engines_of(version);
    let plan = found.first().ok_or("this version holds no engine")?;
    Ok(version.path().join(plan.plan.as_path()).with_file_name(""))
}

/// The folder of an engine that runs here: the version's own, else the one built for the GPU at hand.
fn that_runs(version: &Current, scratch: &Path) -> Answer<PathBuf> {
    let own = folder(version)?;
    let fits = trt_compiler::runtime::fit(&EngineRecord::of_folder(&own)?, None, 0).is_ok();
    Ok(if fits { own } else { place(version, scratch, &[]) })
}

fn published(version: &Current) -> Answer<String> {
    judged(&Engine::open(folder(version)?, &options(version))?, version)
}

fn judged(engine: &Engine, version: &Current) -> Answer<String> {
    let interrupt = Interrupt::default();
    let wishes = ThresholdWishes::default();
    let verdict = judge_engine(engine, version.path(), &texts::built_in(), wishes, &interrupt)?;
    let it = &verdict.comparison;
    let outcome = if verdict.passed() {
        "passed".to_owned()
    } else {
        format!("**failed**: {}", verdict.failures.join("; "))
    };
    Ok(format!(
        "gate on the engine {outcome} ({}, max abs {:.1e}, cosine {:.6}, mean {:.6})",
        it.output, it.max_abs, it.cosine_min, it.cosine_mean
    ))
}

fn place(version: &Current, scratch: &Path, traits: &[PlanTrait]) -> PathBuf {
    let kind = if traits.is_empty() { "native" } else { "stripped" };
    scratch.join(format!("{}-{}-{kind}", version.agent(), version.version()))
}

/// Builds the version's graph for the GPU at hand, describes it, and judges it.
fn made(version: &Current, scratch: &Path, traits: &[PlanTrait]) -> Answer<String> {
    let described = folder(version)?.join("engine.json");
    let record = EngineRecord::of_folder(&folder(version)?)?;
    let place = place(version, scratch, traits);
    std::fs::create_dir_all(&place)?;
    let plan = place.join("model.engine");
    let options_of = EngineOptions { traits: traits.to_vec(), ..EngineOptions::default() };
    let request = EngineRequest {
        onnx: version.path().join("model.onnx"),
        plan: plan.clone(),
        layers: place.join("layers.json"),
        libraries: Runtimes::from_env().tensorrt_rtx()?,
        profiles: record.profiles().into_iter().take(1).collect::<Vec<Vec<InputShape>>>(),
        targets: Vec::new(),
        tf32: Tf32::Forbidden,
        options: options_of.clone(),
    };
    let facts = engine::build(&request, &BuildOptions::this_program()?, &Interrupt::default(), |_, _, _| ())?;
    let mut description: Value = serde_json::from_slice(&std::fs::read(described)?)?;
    let bytes = std::fs::read(&plan)?;
    description["plan_sha256"] = Digest::of(&bytes).to_string().into();
    description["plan_bytes"] = bytes.len().into();
    description["targets"] = Value::Array(Vec::new());
    description["options"] = serde_json::to_value(&options_of)?;
    std::fs::write(place.join("engine.json"), description.to_string())?;
    let engine = Engine::open(&place, &options(version))?;
    let size = model_store::human_size(facts.plan_bytes);
    Ok(format!("{size}, built in {:.1} s; {}", facts.build_seconds, judged(&engine, version)?))
}

fn timed(version: &Current, scratch: &Path, cuda_graphs: CudaGraphs) -> Answer<String> {
    let engine =
        Engine::open(that_runs(version, scratch)?, &RuntimeOptions { cuda_graphs, ..options(version) })?;
    let sizes = [(1, 16), (8, 128), (64, 128)];
    let rows = bench_engine(&engine, version.path(), &sizes, None, &Interrupt::default())?;
    let cells = rows.iter().map(|row| {
        let it = &row.engine;
        format!(
            "{}×{}: p50 {:.3} ms, p99 {:.3} ms, {:.0} texts/s",
            row.batch, row.sequence, it.p50_ms, it.p99_ms, it.texts_per_second
        )
    });
    Ok(format!("{}; {}", cells.collect::<Vec<_>>().join("; "), judged(&engine, version)?))
}

fn kept(version: &Current, scratch: &Path) -> Answer<String> {
    let cache = scratch.join(format!("{}-cache", version.version()));
    let folder = that_runs(version, scratch)?;
    let mut said = Vec::new();
    for row in ["cold", "warm"] {
        let caching = Caching::Folder(cache.clone());
        let start = Instant::now();
        let engine = Engine::open(&folder, &RuntimeOptions { caching, ..options(version) })?;
        let opened = start.elapsed().as_secs_f64();
        let rows = bench_engine(&engine, version.path(), &[(8, 128)], None, &Interrupt::default())?;
        let first = rows.first().map_or(0.0, |row| row.first_ms);
        said.push(format!("{row}: {opened:.2} s to load, {first:.1} ms for the first batch of 8×128"));
        drop(engine);
        let files: Vec<u64> =
            std::fs::read_dir(&cache)?.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).collect();
        said.push(format!("{} files of {} bytes kept", files.len(), files.iter().sum::<u64>()));
    }
    Ok(said.join("; "))
}

/// The sentences through the loader, which takes the engine from the version's own place: the one that runs here is put
/// there, in a copy of links.
fn loaded(version: &Current, scratch: &Path, sentences: &[String]) -> Answer<String> {
    let engine = that_runs(version, scratch)?;
    let own = folder(version)?;
    let place = scratch.join(format!("{}-model", version.version()));
    let beside = place.join(own.strip_prefix(version.path())?);
    std::fs::create_dir_all(&beside)?;
    for entry in std::fs::read_dir(version.path())? {
        let path = entry?.path();
        let link = place.join(path.file_name().unwrap_or_default());
        if !link.exists() {
            std::os::unix::fs::symlink(&path, link)?;
        }
    }
    for name in ["model.engine", "engine.json"] {
        std::fs::copy(engine.join(name), beside.join(name))?;
    }
    let how = |backend, device| LoadOptions { backend, device, cpu_fallback: false };
    let on_gpu = SentenceEmbedder::from_dir_with(&place, &how(Backend::TensorRt, Device::Cuda(0)))?;
    let on_cpu = SentenceEmbedder::from_dir_with(version.path(), &how(Backend::Cpu, Device::Cpu))?;
    let timed = |embedder: &SentenceEmbedder| -> Answer<(Vec<Vec<f32>>, f64)> {
        let start = Instant::now();
        let found = embedder.embed(sentences)?;
        Ok((found, start.elapsed().as_secs_f64()))
    };
    let (_, first) = timed(&on_gpu)?;
    let (found, again) = timed(&on_gpu)?;
    let (expected, cpu) = timed(&on_cpu)?;
    let cosine = |a: &[f32], b: &[f32]| {
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let worst = found.iter().zip(&expected).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
    Ok(format!(
        "{} sentences in {first:.3} s, again in {again:.3} s, on the CPU in {cpu:.3} s; smallest cosine to the CPU's vectors {worst:.6}",
        sentences.len()
    ))
}

//! Running an engine: a real plan, built on this host's CPU, and everything that stops it from running, each told; and
//! where there is a GPU, the plan itself beside the reference.

use std::fs;
use std::path::Path;
use std::time::Duration;

use model_loader::{Backend, Device, LoadError, LoadOptions, SentenceEmbedder, TextClassifier};
use model_store::exit;
use serde_json::Value;
use toy_store::Kind;
use trt_compiler::engine::{self, BuildOptions, EngineError, JudgeRequest};
use trt_compiler::runtime::{Caching, CudaGraphs, Engine, EngineRecord, RuntimeError, RuntimeOptions, gpus};

use crate::engines::{flip_middle, has_gpu, published, replace};
use crate::support::{Bench, shown, text};

/// Nothing of a test is kept outside its folder.
fn options() -> RuntimeOptions {
    RuntimeOptions { caching: Caching::Off, ..RuntimeOptions::default() }
}

fn refusal(engine: &Path, options: &RuntimeOptions) -> RuntimeError {
    match Engine::open(engine, options) {
        Err(error) => error,
        Ok(engine) => panic!("{} was opened", engine.folder().display()),
    }
}

fn check(row: &str, error: &RuntimeError, code: u8, parts: &[&str]) {
    let text = model_store::with_causes(error);
    assert_eq!(error.exit_code(), code, "{row}: {text}");
    for part in parts {
        assert!(text.contains(part), "{row}: {part} is not in {text}");
    }
}

#[test]
fn what_the_builder_wrote_is_what_the_runtime_reads() {
    let Some(bench) = Bench::new() else { return };
    let record = EngineRecord::of_folder(&published(&bench)).unwrap();
    assert_eq!((record.flavour.as_str(), record.precision.as_str()), ("tensorrt-rtx", "fp16"));
    assert_eq!(record.facts.version, "1.7.1.116");
    let names: Vec<&str> = record.inputs.iter().map(|input| input.name.as_str()).collect();
    assert!(names.contains(&"input_ids") && names.contains(&"attention_mask"), "{names:?}");
    assert_eq!(record.outputs[0].name, "sentence_embedding");
    assert_eq!(record.outputs[0].shape[0], "batch");
    assert_eq!(record.profiles().len(), 1);
    assert_eq!(record.weights_sha256.keys().collect::<Vec<_>>(), ["model.safetensors"]);
}

#[test]
fn an_engine_that_cannot_be_run_is_not_loaded_and_the_error_says_why() {
    let Some(bench) = Bench::new() else { return };
    let engine = published(&bench);
    let (description, plan) = (engine.join("engine.json"), engine.join("model.engine"));
    let (original, sound) = (fs::read(&description).unwrap(), fs::read(&plan).unwrap());
    let with = |key: &str, value: Value| {
        let mut changed: Value = serde_json::from_slice(&original).unwrap();
        changed[key] = value;
        replace(&description, |_| changed.to_string().into_bytes());
    };
    let refused = || refusal(&engine, &options());

    replace(&plan, flip_middle);
    check("one bit", &refused(), exit::CORRUPT, &["was not loaded", "SHA-256", "model-store repair"]);
    replace(&plan, |bytes| bytes[..bytes.len() / 2].to_vec());
    check("half a plan", &refused(), exit::CORRUPT, &["bytes where there should be"]);
    fs::remove_file(&plan).unwrap();
    check("no plan", &refused(), exit::FAILURE, &["cannot read", "model.engine"]);
    fs::write(&plan, &sound).unwrap();
    with("version", "1.6.0.5".into());
    check("another version", &refused(), exit::ENVIRONMENT, &["1.6.0.5 built", "is 1.7.1.116", "--rebuild"]);
    with("flavour", "tensorrt".into());
    check(
        "another kind",
        &refused(),
        exit::ENVIRONMENT,
        &["for tensorrt, and this program runs tensorrt-rtx"],
    );
    with("inputs", Value::Array(Vec::new()));
    check("no inputs", &refused(), exit::CORRUPT, &["no description", "no inputs"]);
    with("targets", "everything".into());
    check("nonsense", &refused(), exit::CORRUPT, &["no description"]);
    replace(&description, |_| vec![b' '; 5 << 20]);
    check("a huge description", &refused(), exit::CORRUPT, &["larger than"]);
    replace(&description, |_| original.clone());

    let elsewhere = RuntimeOptions { library: Some("/nonexistent/libtensorrt_rtx.so.1".into()), ..options() };
    let error = refusal(&engine, &elsewhere);
    check("no library", &error, exit::ENVIRONMENT, &["/nonexistent/libtensorrt_rtx.so.1", "make runtimes"]);
    let error = refusal(&bench.root(), &options());
    check("no engine", &error, exit::NOT_FOUND, &["no engine.json", "build-engine"]);
    if has_gpu() {
        eprintln!("skipped: the last row is about hosts without a GPU");
        return;
    }
    check("no GPU", &refused(), exit::ENVIRONMENT, &["NVIDIA GPU", "libcuda.so.1", "on the CPU"]);
}

/// What a build asks of its own engine where there is a GPU.
#[test]
fn the_child_that_judges_an_engine_says_why_it_cannot() {
    let Some(bench) = Bench::new() else { return };
    if has_gpu() {
        eprintln!("skipped: this is about hosts without a GPU");
        return;
    }
    let folder = published(&bench);
    let request = JudgeRequest {
        engine: folder.clone(),
        model: bench.root().join("memory/versions/v1"),
        library: trt_compiler::Runtimes::from_env().tensorrt_rtx().unwrap().core,
        texts: trt_compiler::texts::built_in(),
        wishes: trt_compiler::ThresholdWishes::default(),
    };
    let build =
        BuildOptions { program: env!("CARGO_BIN_EXE_build-engine").into(), timeout: Duration::from_mins(1) };
    let judged = || engine::judge(&request, &build, &trt_compiler::Interrupt::default());
    let check = |row: &str, parts: &[&str]| match judged() {
        Err(EngineError::Refused { stage, reason, .. }) => {
            assert_eq!(stage, "load the engine", "{row}");
            for part in parts {
                assert!(reason.contains(part), "{row}: {part} is not in {reason}");
            }
        }
        other => panic!("{row}: {other:?}"),
    };
    check("no GPU", &["NVIDIA GPU", "libcuda.so.1"]);
    replace(&folder.join("model.engine"), flip_middle);
    check("damaged", &["was not loaded", "SHA-256"]);
}

#[test]
fn bench_without_a_gpu_shows_no_numbers() {
    let Some(bench) = Bench::new() else { return };
    if has_gpu() {
        eprintln!("skipped: this is about hosts without a GPU");
        return;
    }
    let engine = published(&bench);
    let row = |arguments: &[&str], code: u8, parts: &[&str]| {
        let output = bench.run(arguments);
        assert_eq!(output.status.code(), Some(code.into()), "{arguments:?}: {}", shown(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}: {}", shown(&output));
        for part in parts {
            assert!(
                text(&output.stderr).contains(part),
                "{arguments:?}: {part} is not in {}",
                shown(&output)
            );
        }
    };
    let honest = ["nothing was measured", "memory/v1", "libcuda.so.1"];
    row(&["bench", "--agent", "memory"], exit::ENVIRONMENT, &honest);
    row(&["bench", "--json", "--batch", "1,8", "--seq", "128"], exit::ENVIRONMENT, &honest);
    row(&["bench", "--agent", "memroy"], exit::NOT_FOUND, &["memroy"]);
    row(&["bench", "--batch", "8"], exit::USAGE, &["--seq"]);
    row(&["bench", "--batch", "0", "--seq", "1"], exit::USAGE, &["--batch"]);
    replace(&engine.join("engine.json"), |_| b"{}".to_vec());
    row(&["bench"], exit::CORRUPT, &["no description of an engine"]);
}

#[test]
fn bench_of_a_version_without_an_engine_says_how_to_get_one() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let output = bench.run(&["--agent", "memory", "--source", folder.to_str().unwrap(), "--no-engine"]);
    assert!(output.status.success(), "{}", shown(&output));
    let output = bench.run(&["bench"]);
    assert_eq!(output.status.code(), Some(exit::NOT_FOUND.into()), "{}", shown(&output));
    assert!(text(&output.stderr).contains("no engine to measure"), "{}", shown(&output));
}

fn asked(backend: Backend, device: Device, cpu_fallback: bool) -> LoadOptions {
    LoadOptions { backend, device, cpu_fallback }
}

#[test]
fn the_loader_says_what_an_engine_lacks_or_computes_without_it() {
    let Some(bench) = Bench::new() else { return };
    if has_gpu() {
        eprintln!("skipped: this is about hosts without a GPU");
        return;
    }
    published(&bench);
    let version = bench.root().join("memory/versions/v1");
    let is_own = |backend| matches!(backend, Backend::Cpu | Backend::CpuFixed16);
    let row = |name: &str, options: LoadOptions, parts: &[&str]| match SentenceEmbedder::from_dir_with(
        &version, &options,
    ) {
        Ok(embedder) => assert!(parts.is_empty() && is_own(embedder.backend()), "{name}"),
        Err(error) => {
            assert!(!parts.is_empty(), "{name}: {error}");
            assert_eq!(error.exit_code(), exit::ENVIRONMENT, "{name}: {error}");
            for part in parts {
                let text = model_store::with_causes(&error);
                assert!(text.contains(part), "{name}: {part} is not in {text}");
            }
        }
    };
    let lacks = ["`tensorrt` cannot be used", "sm80+-fp16", "NVIDIA GPU", "libcuda.so.1"];
    row("asked for", asked(Backend::TensorRt, Device::Cuda(0), false), &lacks);
    row("asked for, no device", asked(Backend::TensorRt, Device::Cpu, false), &lacks);
    row("the CPU may take its place", asked(Backend::TensorRt, Device::Cuda(0), true), &[]);
    row("the CPU may, whatever computes", asked(Backend::Auto, Device::Cuda(0), true), &[]);
    row("on the CPU nobody looks for engines", asked(Backend::Auto, Device::Cpu, false), &[]);
    let strict = SentenceEmbedder::from_dir_with(&version, &asked(Backend::Auto, Device::Cuda(0), false));
    assert!(matches!(strict, Err(LoadError::NoDevice { .. })), "{strict:?}");

    let folder = bench.model(Kind::Memory);
    let error = SentenceEmbedder::from_dir_with(&folder, &asked(Backend::TensorRt, Device::Cpu, false));
    assert!(error.unwrap_err().to_string().contains("holds no engine"));
    let folder = bench.model(Kind::Analyst);
    let error = TextClassifier::from_dir_with(&folder, &asked(Backend::TensorRt, Device::Cpu, false));
    assert!(error.unwrap_err().to_string().contains("`build-engine --agent AGENT` builds one"));
}

/// The plan, on a GPU that it was built for. Where there is none this says so: `make gpu-check` is for such a host.
#[test]
fn on_a_gpu_the_engine_gives_what_the_model_gives() {
    let Some(bench) = Bench::new() else { return };
    match gpus() {
        Ok(found) => eprintln!("{found:?}"),
        Err(missing) => {
            eprintln!("skipped: {missing}");
            return;
        }
    }
    let engine = published(&bench);
    let version = bench.root().join("memory/versions/v1");
    let record = EngineRecord::of_folder(&engine).unwrap();
    if let Err(error) = trt_compiler::runtime::fit(&record, None, 0) {
        eprintln!("skipped: {error}");
        return;
    }
    let texts = ["Ships in the Suez Canal wait.", "Profits rose.", "", "The committee meets on Tuesday."];
    let own = SentenceEmbedder::from_dir_with(&version, &LoadOptions::default()).unwrap();
    let expected = own.embed(&texts).unwrap();
    let on_gpu =
        SentenceEmbedder::from_dir_with(&version, &asked(Backend::Auto, Device::Cuda(0), false)).unwrap();
    assert_eq!(on_gpu.backend(), Backend::TensorRt);
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    for (found, expected) in on_gpu.embed(&texts).unwrap().iter().zip(&expected) {
        let cosine = cosine(found, expected);
        assert!(cosine > 0.999, "{cosine}");
    }
    // Recorded or not, cold or warm, the numbers are the same.
    let cache = tempfile::tempdir().unwrap();
    for cuda_graphs in [CudaGraphs::Off, CudaGraphs::Recorded, CudaGraphs::BuiltIn] {
        for _ in ["cold", "warm"] {
            let caching = Caching::Folder(cache.path().to_owned());
            let options = RuntimeOptions { cuda_graphs, caching, ..RuntimeOptions::default() };
            let engine = Engine::open(&engine, &options).unwrap();
            let wishes = trt_compiler::ThresholdWishes::default();
            for _ in 0..3 {
                let texts = trt_compiler::texts::built_in();
                let verdict = trt_compiler::judge_engine(
                    &engine,
                    &version,
                    &texts,
                    wishes,
                    &trt_compiler::Interrupt::default(),
                );
                let verdict = verdict.unwrap();
                assert!(verdict.passed(), "{cuda_graphs:?}: {:?}", verdict.failures);
            }
        }
    }
    assert!(fs::read_dir(cache.path()).unwrap().count() > 0, "nothing that was compiled was kept");
}

//! The engine builder as a process of its own: starved, fed garbage, asked about plans that are none.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model_store::{Activation, exit};
use onnx_export::Precision;
use toy_store::Kind;
use trt_compiler::engine::{
    self, BuildOptions, Depth, EngineError, EngineOptions, EngineRequest, ExamineRequest, InputShape, Tf32,
};
use trt_compiler::{
    CompileError, EngineWish, Interrupt, Job, ModelSource, Profile, Provenance, Reuse, Runtimes, Target,
    texts,
};

use crate::support::{Bench, shown};

const BUILDER: &str = env!("CARGO_BIN_EXE_build-engine");

fn options(program: &Path) -> BuildOptions {
    BuildOptions { program: program.to_owned(), timeout: Duration::from_mins(1) }
}

fn request(onnx: &Path, folder: &Path) -> EngineRequest {
    let input = |name| InputShape::new(name, onnx_export::DataType::I64, &Profile::DEFAULT);
    EngineRequest {
        onnx: onnx.to_owned(),
        plan: folder.join("model.engine"),
        layers: folder.join("layers.json"),
        libraries: Runtimes::from_env().tensorrt_rtx().unwrap(),
        profiles: vec![["input_ids", "attention_mask", "token_type_ids"].map(input).to_vec()],
        targets: vec!["89".parse::<Target>().unwrap()],
        tf32: Tf32::Forbidden,
        options: EngineOptions::default(),
    }
}

#[test]
fn garbage_graphs_are_refused_where_they_are_read() {
    let Some(_) = Bench::new() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let check = |row: &str, bytes: &[u8]| {
        let onnx = scratch.path().join("model.onnx");
        fs::write(&onnx, bytes).unwrap();
        let request = request(&onnx, scratch.path());
        let result =
            engine::build(&request, &options(Path::new(BUILDER)), &Interrupt::default(), |_, _, _| ());
        match result {
            Err(EngineError::Refused { stage, reason, log }) => {
                assert_eq!(stage, "parse the graph", "{row}: {reason} {log:?}");
                let said = !log.is_empty() || reason.contains("no outputs");
                assert!(said, "{row}: the parser's own words are lost");
            }
            other => panic!("{row}: {other:?}"),
        }
        assert!(!request.plan.exists() && !request.layers.exists(), "{row}: something was left");
    };
    check("nothing", b"");
    check("text", b"this is no graph at all");
    check("zeros", &[0; 4096]);
    check("half a message", b"\x3a\xff\xff\xff\x0f\x0a\x06\x22\x04Cast");
    let missing = request(Path::new("/nonexistent/model.onnx"), scratch.path());
    let result = engine::build(&missing, &options(Path::new(BUILDER)), &Interrupt::default(), |_, _, _| ());
    assert!(matches!(result, Err(EngineError::Refused { .. })), "{result:?}");
}

/// A real builder behind a limit of the shell, so that memory runs out in the middle of its work.
fn starved(scratch: &Path, kib: u32) -> PathBuf {
    let path = scratch.join(format!("starved-{kib}"));
    fs::write(&path, format!("#!/bin/sh\nulimit -v {kib}\nexec {BUILDER} \"$@\"\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_builder_without_memory_publishes_nothing_and_says_so() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let scratch = tempfile::tempdir().unwrap();
    let agent: model_store::AgentName = "memory".parse().unwrap();
    let store = bench.store();
    // From too little to open the library to almost enough for the build.
    for kib in [60_000, 200_000, 300_000, 450_000] {
        let job = Job {
            store: store.clone(),
            agent: agent.clone(),
            version: format!("v{kib}").parse().unwrap(),
            source: ModelSource::Folder {
                path: folder.clone(),
                provenance: Provenance::Folder { path: folder.display().to_string() },
            },
            precision: Precision::Fp16,
            keep_fp32: Vec::new(),
            weights: trt_compiler::WeightForm::Stored,
            overflow: trt_compiler::Overflow::default(),
            kv_cache: trt_compiler::KvCache::default(),
            calibration: None,
            profile: None,
            targets: vec!["89".parse().unwrap()],
            engine: EngineWish::Build,
            reference: None,
            texts: texts::built_in().into_iter().take(4).collect(),
            thresholds: trt_compiler::ThresholdWishes::default(),
            explain: false,
            keep: None,
            activation: Activation::Activate,
            runtimes: Runtimes::from_env(),
            host: trt_compiler::HostUse::Alone,
            build: options(&starved(scratch.path(), kib)),
            options: EngineOptions::default(),
            reuse: Reuse::Forbidden,
        };
        match trt_compiler::run(&job, &(), &Interrupt::default()) {
            Err(CompileError::Engine(error)) => {
                eprintln!("{kib} KiB: {error}");
                // Native code that gets no memory may also run into nothing, or wait for ever, which nobody can tell from
                // another crash, or from a long build.
                let lost =
                    matches!(error, EngineError::Died { signal: Some(11), .. } | EngineError::TimedOut(_));
                let expected = if lost { exit::FAILURE } else { exit::ENVIRONMENT };
                assert_eq!(CompileError::Engine(error).exit_code(), expected, "{kib} KiB");
            }
            other => panic!("{kib} KiB: {:?}", other.map(|outcome| outcome.published)),
        }
        let left = bench.contents().into_iter().filter(|path| path.starts_with("memory/versions/"));
        assert_eq!(left.collect::<Vec<_>>(), Vec::<String>::new(), "{kib} KiB");
    }
}

#[test]
fn plans_that_are_none_are_told_from_plans() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let output =
        bench.run(&["--agent", "memory", "--source", folder.to_str().unwrap(), "--output-version", "v1"]);
    assert!(output.status.success(), "{}", shown(&output));
    let path = bench.root().join("memory/versions/v1/engines/tensorrt-rtx-1.7.1/sm80+-fp16/model.engine");
    let plan = fs::read(&path).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let check = |row: &str, bytes: &[u8], part: &str| {
        let copy = scratch.path().join("model.engine");
        fs::write(&copy, bytes).unwrap();
        for depth in [Depth::Header, Depth::Layers] {
            let libraries = Runtimes::from_env().tensorrt_rtx().unwrap();
            let request = ExamineRequest { plan: copy.clone(), libraries, depth };
            let said = engine::examine(&request, &options(Path::new(BUILDER)), &Interrupt::default());
            let said = match said {
                Ok(examined) => {
                    assert!(examined.inspected.is_none(), "{row}");
                    examined.problems.join("; ")
                }
                Err(error) => error.to_string(),
            };
            assert!(said.contains(part), "{row}: {part} is not in {said:?}");
        }
    };
    check("nothing", b"", "at least 64 bytes");
    check("zeros", &[0; 4096], "no plan of TensorRT-RTX");
    check("text", &b"this is no plan. ".repeat(100), "no plan of TensorRT-RTX");
    check("a header and no more", &plan[..60], "at least 64 bytes");
    if Path::new("/proc/driver/nvidia/version").exists() {
        let mut other = plan.clone();
        // Where the header has the version: 1.6 instead of 1.7.
        other[25] = 6;
        check("another version", &other, "another version of TensorRT-RTX built it");
    } else {
        check("a sound one, without a GPU", &plan, "GPU");
    }
}

/// The real builder in a mount namespace of its own, where the plan goes to a file system of a few pages.
#[test]
fn a_full_disk_is_no_fault_of_tensorrt() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let scratch = tempfile::tempdir().unwrap();
    let out = scratch.path().join("out");
    fs::create_dir(&out).unwrap();
    let small = format!("mount -t tmpfs -o size=64k small {}", out.display());
    let allowed = std::process::Command::new("unshare").args(["-rm", "sh", "-c", &small]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this process may not mount a small file system of its own (unshare -rm)");
        return;
    }
    let program = scratch.path().join("cramped");
    fs::write(
        &program,
        format!("#!/bin/sh\nexec unshare -rm sh -c '{small}; exec {BUILDER} \"$@\"' sh \"$@\"\n"),
    )
    .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let checkpoint = onnx_export::Checkpoint::open(&folder).unwrap();
    let head = onnx_export::Head::HiddenStates;
    let exported =
        onnx_export::export(&checkpoint, &onnx_export::ExportOptions::new(head, Precision::Fp16)).unwrap();
    let onnx = folder.join("model.onnx");
    fs::write(&onnx, exported.onnx).unwrap();
    let request = request(&onnx, &out);
    let error = engine::build(&request, &options(&program), &Interrupt::default(), |_, _, _| ()).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, EngineError::NoRoom { .. }), "{said}");
    for part in ["no room to write the plan", "out/model.engine", "No space left", "model-store gc"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(CompileError::Engine(error).exit_code(), exit::ENVIRONMENT);
}

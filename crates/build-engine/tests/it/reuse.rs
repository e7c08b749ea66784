//! An engine that the store holds already is not built again, and one that is not the same is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model_store::Activation;
use onnx_export::Precision;
use serde_json::Value;
use toy_store::Kind;
use trt_compiler::engine::{BuildOptions, EngineOptions};
use trt_compiler::{
    CompileError, EngineWish, Interrupt, Job, ModelSource, Provenance, Reuse, Runtimes, ThresholdWishes,
    texts,
};

use crate::support::{Bench, shown};

const PLAN: &str = "engines/tensorrt-rtx-1.7.1/sm89-fp16/model.engine";

/// Builds one version and gives its description of the engine and the command's report.
fn build(bench: &Bench, folder: &Path, agent: &str, version: &str, extra: &[&str]) -> (Value, String) {
    let mut arguments = vec!["--agent", agent, "--source", folder.to_str().unwrap()];
    arguments.extend(["--output-version", version]);
    arguments.extend(extra);
    if !extra.contains(&"--target") {
        arguments.extend(["--target", "89"]);
    }
    let output = bench.run(&arguments);
    assert!(output.status.success(), "{version}: {}", shown(&output));
    let mut engines: Vec<PathBuf> = Vec::new();
    for entry in
        fs::read_dir(bench.root().join(agent).join("versions").join(version).join("engines")).unwrap()
    {
        engines.extend(fs::read_dir(entry.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
    }
    let text = fs::read(engines.pop().unwrap().join("engine.json")).unwrap();
    (serde_json::from_slice(&text).unwrap(), shown(&output))
}

fn plan(bench: &Bench, agent: &str, version: &str) -> PathBuf {
    bench.root().join(agent).join("versions").join(version).join(PLAN)
}

#[test]
fn an_equal_engine_is_shared_and_any_other_is_built() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let (first, _) = build(&bench, &folder, "memory", "v1", &[]);
    assert_eq!(first["reused_from"], Value::Null);

    // Another agent, another version: the same engine, on the same blocks, without a second build.
    let (second, report) = build(&bench, &folder, "recall", "v9", &[]);
    assert_eq!(second["reused_from"], "memory/v1");
    assert_eq!(second["key"], first["key"]);
    assert_eq!(second["plan_sha256"], first["plan_sha256"]);
    assert_eq!(second["build_seconds"], first["build_seconds"], "the facts are those of the build");
    assert!(report.contains("reused from memory/v1"), "{report}");
    let (one, other) = (plan(&bench, "memory", "v1"), plan(&bench, "recall", "v9"));
    assert_eq!(fs::read(&one).unwrap(), fs::read(&other).unwrap());
    assert!(other.with_file_name("layers.json").is_file());
    let agent = "recall".parse().unwrap();
    assert!(bench.store().verify(&agent, &"v9".parse().unwrap()).unwrap().is_ok());

    let rows: [(&str, &[&str]); 8] = [
        ("rebuild", &["--rebuild"]),
        ("profile", &["--profile", "1,2,4x1,16,32"]),
        ("two-profiles", &["--profile", "1,8,64x1,128,512", "--profile", "1,1,2x1,16,32"]),
        ("precision", &["--precision", "fp32"]),
        ("target", &["--target", "86"]),
        ("level", &["--opt-level", "1"]),
        ("workspace", &["--workspace", "2G"]),
        ("streaming", &["--weight-streaming"]),
    ];
    for (row, extra) in rows {
        let (description, _) = build(&bench, &folder, "memory", row, extra);
        assert_eq!(description["reused_from"], Value::Null, "{row}");
        assert_eq!(description["key"] == first["key"], row == "rebuild", "{row}");
    }

    // One weight more or less is another engine.
    let weights = folder.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let (description, _) = build(&bench, &folder, "memory", "weights", &[]);
    assert_eq!(description["reused_from"], Value::Null);
}

/// A job of the library, whose builder is `program`.
fn job(bench: &Bench, folder: &Path, version: &str, program: &Path) -> Job {
    Job {
        store: bench.store(),
        agent: "memory".parse().unwrap(),
        version: version.parse().unwrap(),
        source: ModelSource::Folder {
            path: folder.to_owned(),
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
        texts: texts::built_in(),
        thresholds: trt_compiler::ThresholdWishes::default(),
        explain: false,
        keep: None,
        activation: Activation::Activate,
        runtimes: Runtimes::from_env(),
        host: trt_compiler::HostUse::Alone,
        build: BuildOptions { program: program.to_owned(), timeout: Duration::from_mins(1) },
        options: EngineOptions::default(),
        reuse: Reuse::Allowed,
    }
}

/// The second time the builder could not even be started.
#[test]
fn reuse_starts_no_builder() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let agent: model_store::AgentName = "memory".parse().unwrap();
    build(&bench, &folder, "memory", "v1", &[]);
    let job = |version: &str, reuse| Job {
        reuse,
        ..job(&bench, &folder, version, Path::new("/nonexistent/builder"))
    };
    let outcome = trt_compiler::run(&job("v2", Reuse::Allowed), &(), &Interrupt::default()).unwrap();
    assert_eq!(outcome.engine.unwrap().reused_from.as_deref(), Some("memory/v1"));
    let error = trt_compiler::run(&job("v3", Reuse::Forbidden), &(), &Interrupt::default()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/builder"), "{error}");
    assert!(bench.store().get_version(&agent, &"v3".parse().unwrap()).unwrap().is_none());
}

#[test]
fn a_damaged_engine_is_not_reused_and_is_named() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    build(&bench, &folder, "memory", "v1", &[]);
    let path = plan(&bench, "memory", "v1");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    let (description, report) = build(&bench, &folder, "memory", "v2", &[]);
    assert_eq!(description["reused_from"], Value::Null);
    for part in ["equal engine of memory/v1 cannot be used", "damaged"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    let agent = "memory".parse().unwrap();
    assert!(bench.store().verify(&agent, &"v2".parse().unwrap()).unwrap().is_ok());
    // The sound one of the two serves the next.
    let (description, _) = build(&bench, &folder, "memory", "v3", &[]);
    assert_eq!(description["reused_from"], "memory/v2");
}

/// The engine is built while the graph is checked. Whoever called the library lives on, so that the builder does not die with
/// it; this one would never end by itself.
#[test]
fn a_refused_graph_stops_the_builder_that_is_at_it() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.model(Kind::Memory);
    let scratch = tempfile::tempdir().unwrap();
    let (program, number) = (scratch.path().join("builder"), scratch.path().join("number"));
    let opened = r#"{"kind":"opened","version":"1.7.1.116"}"#;
    let script = format!("#!/bin/sh\necho $$ > {}\necho '{opened}'\nexec sleep 600\n", number.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let thresholds = ThresholdWishes { max_abs: Some(1e-12), ..ThresholdWishes::default() };
    let job = Job { thresholds, ..job(&bench, &folder, "v1", &program) };
    let error = trt_compiler::run(&job, &(), &Interrupt::default()).unwrap_err();
    assert!(matches!(error, CompileError::Gate { .. }), "{error}");
    let number = fs::read_to_string(number).unwrap();
    assert!(!Path::new("/proc").join(number.trim()).exists(), "the builder goes on");
}

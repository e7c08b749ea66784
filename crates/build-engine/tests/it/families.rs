//! TensorRT-RTX builds an engine of every family's graph on this machine's CPU, in fp32, fp16 and bf16.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use onnx_export::{Checkpoint, ExportOptions, Exported, Head, Precision, export};
use trt_compiler::engine::{BuildOptions, EngineRequest, InputShape, Tf32, build};
use trt_compiler::{Interrupt, Runtimes, Span, Target};

/// The loader's fixtures: small random models of every family.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model-loader/tests/data").join(name)
}

/// A span for every dimension: small ones, an empty cache among them.
fn shapes(exported: &Exported) -> Vec<InputShape> {
    let span = |min, opt, max| Span { min, opt, max };
    let dynamic = BTreeMap::from([
        ("batch", span(1, 2, 4)),
        ("sequence", span(1, 8, 32)),
        ("past_sequence", span(0, 8, 32)),
        ("total_sequence", span(1, 16, 64)),
    ]);
    let of = |dim: &String| {
        dynamic.get(dim.as_str()).copied().unwrap_or_else(|| {
            let size = dim.parse().unwrap();
            span(size, size, size)
        })
    };
    let inputs = exported.report.inputs.iter();
    let shape = |input: &onnx_export::TensorDescription| InputShape {
        name: input.name.clone(),
        dtype: input.dtype,
        dims: input.shape.iter().map(of).collect(),
    };
    inputs.map(shape).collect()
}

/// Builds one engine, which is thrown away, and returns its size in bytes.
fn built(row: &str, model: &str, head: &Head, precision: Precision, runtimes: &Runtimes) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(model)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors" || extension == "json") {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let options = ExportOptions::new(head.clone(), precision);
    let exported = export(&Checkpoint::open(folder.path()).unwrap(), &options).unwrap();
    let onnx = folder.path().join("model.onnx");
    fs::write(&onnx, &exported.onnx).unwrap();
    let request = EngineRequest {
        onnx,
        plan: folder.path().join("model.engine"),
        libraries: runtimes.tensorrt_rtx().unwrap(),
        inputs: shapes(&exported),
        targets: Target::DEFAULT.to_vec(),
        tf32: Tf32::Forbidden,
    };
    let program = env!("CARGO_BIN_EXE_build-engine").into();
    let options = BuildOptions { program, timeout: Duration::from_mins(5) };
    let facts = build(&request, &options, &Interrupt::default(), |_, _, _| ());
    facts.unwrap_or_else(|error| panic!("{row}: {error}")).plan_bytes
}

fn runtimes() -> Option<Runtimes> {
    let runtimes = Runtimes::from_env();
    match runtimes.tensorrt_rtx() {
        Ok(_) => Some(runtimes),
        Err(missing) => {
            eprintln!("skipped: {missing}");
            None
        }
    }
}

fn check(models: &[&str], heads: &[Head]) {
    let Some(runtimes) = runtimes() else { return };
    for model in models {
        for head in heads {
            for precision in [Precision::Fp32, Precision::Fp16, Precision::Bf16] {
                let row = format!("{model}, {head:?}, {precision}");
                let bytes = built(&row, model, head, precision, &runtimes);
                assert!(bytes > 10_000, "{row}: {bytes} bytes");
                eprintln!("{row}: {bytes} bytes");
            }
        }
    }
}

#[test]
fn every_encoder_becomes_an_engine() {
    let models = [
        "roberta",
        "encoders/albert",
        "encoders/bert",
        "encoders/camembert",
        "encoders/deberta-v2",
        "encoders/distilbert",
        "encoders/electra",
        "encoders/modernbert-cls",
        "encoders/modernbert-mean",
        "encoders/mpnet",
        "encoders/xlm-roberta",
    ];
    check(&models, &[Head::SequenceClassification]);
}

#[test]
fn every_decoder_becomes_an_engine() {
    let models = ["lm-llama", "lm-llama-tied", "lm-mistral", "lm-qwen2", "lm-qwen2-window", "lm-qwen3"];
    check(&models, &[Head::CausalLm { cache: false }, Head::CausalLm { cache: true }]);
}

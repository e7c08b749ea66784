//! TensorRT-RTX builds an engine of every family's graph on this machine's CPU, in fp32, fp16 and bf16.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use onnx_export::{Checkpoint, ExportOptions, Exported, Head, Precision, export};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;
use trt_compiler::engine::{BuildOptions, EngineOptions, EngineRequest, InputShape, Tf32, build};
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

/// A copy of a fixture, which a test may change.
fn copy_of(model: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(model)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// A fixture's encoder with two heads, which are then of a size that TensorRT has fused attention for. `MPNet`'s biases
/// lose those of the heads that are gone.
fn with_two_heads(model: &str) -> TempDir {
    let folder = copy_of(model);
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let key = if model.ends_with("distilbert") { "n_heads" } else { "num_attention_heads" };
    config[key] = 2.into();
    fs::write(path, config.to_string()).unwrap();
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let cut = |name: &str, view: &TensorView<'_>| {
        let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
        if !name.ends_with("relative_attention_bias.weight") {
            return (shape, data);
        }
        let row = data.len() / shape[0];
        (vec![shape[0], 2], data.chunks(row).flat_map(|row| row[..8].to_vec()).collect())
    };
    let cut: Vec<_> = tensors.tensors().into_iter().map(|(name, view)| (cut(&name, &view), name)).collect();
    let view = |shape: &Vec<usize>, data| TensorView::new(Dtype::F32, shape.clone(), data).unwrap();
    let views: Vec<_> = cut.iter().map(|((shape, data), name)| (name.as_str(), view(shape, data))).collect();
    safetensors::serialize_to_file(views, None, &path).unwrap();
    folder
}

/// Builds one engine in a folder, and returns its size in bytes.
fn built(row: &str, folder: &TempDir, head: &Head, precision: Precision, runtimes: &Runtimes) -> u64 {
    let options = ExportOptions::new(head.clone(), precision);
    let exported = export(&Checkpoint::open(folder.path()).unwrap(), &options).unwrap();
    let onnx = folder.path().join("model.onnx");
    fs::write(&onnx, &exported.onnx).unwrap();
    let request = EngineRequest {
        onnx,
        plan: folder.path().join("model.engine"),
        libraries: runtimes.tensorrt_rtx().unwrap(),
        layers: folder.path().join("layers.json"),
        profiles: vec![shapes(&exported)],
        targets: Target::DEFAULT.to_vec(),
        tf32: Tf32::Forbidden,
        options: EngineOptions::default(),
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
                let bytes = built(&row, &copy_of(model), head, precision, &runtimes);
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

/// Biases by distance, windows and disentangled attention as the mask of the `Attention` operator, which 16-bit graphs have
/// where heads are large enough.
#[test]
fn attention_with_every_kind_of_mask_becomes_an_engine() {
    let Some(runtimes) = runtimes() else { return };
    for model in ["bert", "deberta-v2", "modernbert-cls", "mpnet"] {
        for precision in [Precision::Fp16, Precision::Bf16] {
            let (row, folder) =
                (format!("{model}, {precision}"), with_two_heads(&format!("encoders/{model}")));
            let head = Head::HiddenStates;
            let exported = export(
                &Checkpoint::open(folder.path()).unwrap(),
                &ExportOptions::new(head.clone(), precision),
            );
            assert!(exported.unwrap().report.operators.contains_key("Attention"), "{row}");
            let bytes = built(&row, &folder, &head, precision, &runtimes);
            assert!(bytes > 10_000, "{row}: {bytes} bytes");
            eprintln!("{row}, attention as one operator: {bytes} bytes");
        }
    }
}

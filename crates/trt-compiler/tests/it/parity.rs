//! Exported graphs compute what the reference computes.

use std::path::Path;

use model_loader::{Head, Reference, TokenBatch};
use onnx_export::{Checkpoint, ExportOptions, Lowering, Pooling, Precision, SentenceHead, export};
use toy_store::Kind;
use trt_compiler::session::OnnxRuntime;
use trt_compiler::{
    Calibration, Interrupt, Job, KvCache, Method, Step, ThresholdWishes, Thresholds, gate::Gate, texts,
};

use crate::support::{fixture, job, minilm, roberta, runtimes, toy};

#[test]
fn every_model_passes_the_gate_in_every_precision() {
    let Some(runtimes) = runtimes() else { return };
    let (analyst, memory, roberta) = (toy(Kind::Analyst), toy(Kind::Memory), roberta());
    for (name, folder) in [("analyst", &analyst), ("memory", &memory), ("roberta", &roberta)] {
        let store = tempfile::tempdir().unwrap();
        for precision in Precision::FLOATS {
            let job = job(store.path(), folder.path(), precision, &runtimes);
            let outcome = trt_compiler::run(&job, &(), &Interrupt::default());
            let outcome = outcome.unwrap_or_else(|error| panic!("{name} in {precision}: {error}"));
            assert!(
                job.store.verify(&job.agent, &outcome.published.version).unwrap().is_ok(),
                "{name} in {precision}"
            );
        }
    }
}

/// The whole job for a model of each family, language models among them, in floats and in 8 bits.
///
/// Tiny random weights are the worst case for 8 bits and for bf16: what is asked of them is that the job does them, not
/// that they pass.
#[test]
fn every_family_goes_through_the_job() {
    let Some(runtimes) = runtimes() else { return };
    let encoders = [
        "albert",
        "bert",
        "camembert",
        "deberta-v2",
        "deberta-v2-plain",
        "distilbert",
        "electra",
        "modernbert-cls",
        "modernbert-mean",
        "mpnet",
        "xlm-roberta",
    ];
    let decoders = ["lm-llama", "lm-llama-tied", "lm-mistral", "lm-qwen2", "lm-qwen3"];
    let loose = ThresholdWishes {
        max_abs: Some(9.0),
        min_cosine: Some(-1.0),
        mean_cosine: Some(-1.0),
        min_top1: Some(0.0),
    };
    let encoders = encoders.map(|name| (name, fixture(&[&format!("encoders/{name}")])));
    let decoders = decoders.map(|name| (name, fixture(&[name, "lm-tokenizer"])));
    for (name, folder) in encoders.iter().chain(&decoders) {
        let store = tempfile::tempdir().unwrap();
        let precisions = [
            Precision::Fp32,
            Precision::Fp16,
            Precision::Bf16,
            Precision::W8a16,
            Precision::Int8,
            Precision::W4a16,
        ];
        // Language models with a cache, step by step; and once without.
        let mut rows = precisions.map(|precision| (precision, KvCache::With)).to_vec();
        rows.extend(name.starts_with("lm-").then_some((Precision::Fp32, KvCache::Without)));
        for (precision, kv_cache) in rows {
            let calibration = precision.needs_calibration().then(|| Calibration {
                texts: prose().into_iter().take(16).collect(),
                source: "prose".to_owned(),
                method: Method::default(),
            });
            let is_rough =
                matches!(precision, Precision::Int8 | Precision::Bf16 | Precision::W8a16 | Precision::W4a16);
            let thresholds = if is_rough { loose } else { ThresholdWishes::default() };
            let version = format!("v1-{precision}-{kv_cache:?}").to_lowercase().parse().unwrap();
            let job = job(store.path(), folder.path(), precision, &runtimes);
            let job = Job { calibration, thresholds, kv_cache, version, ..job };
            let outcome = trt_compiler::run(&job, &(), &Interrupt::default());
            let outcome = outcome.unwrap_or_else(|error| panic!("{name} in {precision}: {error}"));
            let measured = &outcome.evidence.verdict.comparison;
            eprintln!(
                "{name} in {precision}, cache {kv_cache:?}: {} rows, max abs {:.1e} of {:.1e}, cosine mean {:.6}, min {:.6}",
                measured.rows,
                measured.max_abs,
                measured.reference_max,
                measured.cosine_mean,
                measured.cosine_min
            );
            // Four bits of random weights: the job does it, and no more is asked.
            let least = if precision == Precision::W4a16 { 0.5 } else { 0.9 };
            assert!(measured.cosine_mean > least, "{name} in {precision}: {measured:?}");
        }
    }
}

/// The portable lowering, which no engine is built from, on ONNX Runtime.
#[test]
fn the_portable_lowering_computes_the_same() {
    let Some(runtimes) = runtimes() else { return };
    let runtime = OnnxRuntime::open(&runtimes).unwrap();
    let (analyst, roberta) = (toy(Kind::Analyst), roberta());
    for (name, folder) in [("analyst", &analyst), ("roberta", &roberta)] {
        for precision in [Precision::Fp32, Precision::Fp16] {
            let head = onnx_export::Head::SequenceClassification;
            let options =
                ExportOptions { lowering: Lowering::Portable, ..ExportOptions::new(head, precision) };
            check(
                &format!("{name} in {precision}"),
                folder.path(),
                &options,
                Head::SequenceClassification,
                &runtime,
            );
        }
    }
}

/// Each pooling mode, and all of them at once, on texts of different lengths in one batch.
#[test]
fn every_pooling_mode_computes_the_same() {
    let Some(runtimes) = runtimes() else { return };
    let runtime = OnnxRuntime::open(&runtimes).unwrap();
    let folder = toy(Kind::Memory);
    let modes = [
        ("cls", "cls", Pooling::Cls),
        ("max", "max", Pooling::Max),
        ("mean", "mean", Pooling::Mean),
        ("root", "mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("weighted", "weightedmean", Pooling::WeightedMean),
        ("last", "lasttoken", Pooling::LastToken),
    ];
    for lowering in [Lowering::Portable, Lowering::TensorRt] {
        for (row, name, mode) in modes {
            let config = serde_json::json!({ "pooling_mode": name, "include_prompt": true });
            std::fs::write(folder.path().join("1_Pooling/config.json"), config.to_string()).unwrap();
            let head = SentenceHead { pooling: vec![mode], normalize: true, ..SentenceHead::default() };
            let options = ExportOptions {
                lowering,
                ..ExportOptions::new(onnx_export::Head::SentenceEmbedding(head), Precision::Fp32)
            };
            check(
                &format!("{row}, {lowering:?}"),
                folder.path(),
                &options,
                Head::SentenceEmbedding,
                &runtime,
            );
        }
    }
}

#[test]
fn the_real_sentence_embedder_passes_in_fp16() {
    let (Some(runtimes), Some(folder)) = (runtimes(), minilm()) else { return };
    let store = tempfile::tempdir().unwrap();
    let job = job(store.path(), &folder, Precision::Fp16, &runtimes);
    let outcome = trt_compiler::run(&job, &(), &Interrupt::default()).unwrap();
    let measured = &outcome.evidence.verdict.comparison;
    assert!(measured.cosine_min >= 0.9999, "{measured:?}");
    assert!(outcome.evidence.export.onnx_bytes < 200_000);
    let record = outcome.evidence.overflow.unwrap();
    // The check sees it by the way.
    assert!(outcome.steps.iter().all(|(step, _)| *step != Step::Calibrate), "{:?}", outcome.steps);
    assert!(record.watched > 70 && record.modules.is_empty(), "{record:?}");
    assert_eq!(record.computed_in, Precision::Fp16);
    assert!((100.0..512.0).contains(&record.largest), "{record:?}");
}

/// Eight bits, with ranges from other texts than those of the gate.
#[test]
fn the_real_sentence_embedder_passes_in_8_bits_when_calibrated() {
    let (Some(runtimes), Some(folder)) = (runtimes(), minilm()) else { return };
    let rows = [
        (Precision::Int8, Method::Error),
        (Precision::Fp8, Method::Error),
        (Precision::Fp8, Method::Max),
        (Precision::Fp8, Method::Percentile),
    ];
    for (precision, method) in rows {
        let store = tempfile::tempdir().unwrap();
        let calibration = Calibration { texts: prose(), source: "prose".to_owned(), method };
        let job = Job { calibration: Some(calibration), ..job(store.path(), &folder, precision, &runtimes) };
        let outcome = trt_compiler::run(&job, &(), &Interrupt::default());
        let outcome = outcome.unwrap_or_else(|error| panic!("{precision} by {method}: {error}"));
        let measured = &outcome.evidence.verdict.comparison;
        eprintln!(
            "{precision} by {method}: cosine mean {:.5}, min {:.5}, max abs {:.1e} of {:.1e}",
            measured.cosine_mean, measured.cosine_min, measured.max_abs, measured.reference_max
        );
        let record = outcome.evidence.calibration.unwrap();
        // Six linear layers in each of six blocks.
        assert_eq!(record.ranges.len(), 36, "{precision} by {method}");
    }
}

/// Weights in few bits, in a second file; the model's own stays what it was.
#[test]
fn the_real_sentence_embedder_passes_with_weights_in_few_bits() {
    let (Some(runtimes), Some(folder)) = (runtimes(), minilm()) else { return };
    // Six linear layers of each of six blocks have 10.6 million weights.
    for (precision, file, most_bytes) in [
        (Precision::W8a16, "model.w8.safetensors", 10_800_000),
        (Precision::W4a16, "model.w4.safetensors", 6_000_000),
    ] {
        let store = tempfile::tempdir().unwrap();
        let job = job(store.path(), &folder, precision, &runtimes);
        let outcome = trt_compiler::run(&job, &(), &Interrupt::default());
        let outcome = outcome.unwrap_or_else(|error| panic!("{precision}: {error}"));
        let measured = &outcome.evidence.verdict.comparison;
        let record = outcome.evidence.packed.as_ref().unwrap();
        eprintln!(
            "{precision}: cosine mean {:.5}, min {:.5}, max abs {:.1e} of {:.1e}; {}; steps {:?}",
            measured.cosine_mean,
            measured.cosine_min,
            measured.max_abs,
            measured.reference_max,
            record.summary(),
            outcome.steps
        );
        assert_eq!((record.layers, record.file.as_str()), (36, file), "{precision}");
        let length = std::fs::metadata(outcome.published.path.join(file)).unwrap().len();
        assert!(length == record.bytes && length < most_bytes, "{precision}: {length} of {}", record.bytes);
        assert!(job.store.verify(&job.agent, &job.version).unwrap().is_ok(), "{precision}");
    }
}

#[test]
fn eight_bits_without_calibration_are_refused() {
    let (Some(runtimes), folder) = (runtimes(), toy(Kind::Memory)) else { return };
    for precision in [Precision::Int8, Precision::Fp8] {
        let store = tempfile::tempdir().unwrap();
        let job = job(store.path(), folder.path(), precision, &runtimes);
        let error = trt_compiler::run(&job, &(), &Interrupt::default()).unwrap_err();
        assert_eq!(error.exit_code(), model_store::exit::USAGE, "{precision}: {error}");
        assert!(error.to_string().contains("--calib-data"), "{error}");
        assert!(job.store.agents().unwrap().is_empty(), "{precision}");
    }
}

/// Sentences of a real book, none of which the gate has.
fn prose() -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model-loader/tests/data/prose/sentences.txt");
    trt_compiler::texts::read(&path).unwrap().into_iter().take(64).collect()
}

fn check(row: &str, folder: &Path, options: &ExportOptions, head: Head, runtime: &OnnxRuntime) {
    let exported = export(&Checkpoint::open(folder).unwrap(), options).unwrap();
    let mut session = runtime.load(&exported.onnx, folder).unwrap();
    let reference = Reference::from_dir(folder, head).unwrap();
    let tokens = reference.tokenizer().encode_batch(&texts::built_in()).unwrap();
    let output = options.head.output();
    let mut gate = Gate::new(output, head == Head::SequenceClassification);
    for texts in tokens.chunks(16) {
        let batch = TokenBatch::pad(texts, reference.tokenizer().pad_id());
        gate.add(&batch, &[], &reference.run(&batch).unwrap(), &session.run(&batch, output).unwrap());
    }
    let verdict = gate.judge(Thresholds::of(options.precision));
    assert!(verdict.passed(), "{row}: {:?}", verdict.failures);
}

//! What must not be published is not.

use std::fs;
use std::path::Path;

use onnx_export::Precision;
use safetensors::SafeTensors;
use toy_store::Kind;
use trt_compiler::{
    Calibration, CompileError, Interrupt, Job, KvCache, Method, Overflow, Profile, ThresholdWishes, texts,
};

use crate::support::{fixture, job, runtimes, toy};

/// Multiplies one weight matrix, stored in fp32, in place.
fn scale(folder: &Path, tensor: &str, factor: f32) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let data = SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap().data().as_ptr_range();
    let start = bytes.as_ptr_range().start;
    let range = data.start.addr() - start.addr()..data.end.addr() - start.addr();
    for value in bytes[range].chunks_exact_mut(4) {
        let scaled = f32::from_le_bytes(value.try_into().unwrap()) * factor;
        value.copy_from_slice(&scaled.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

/// Makes the vector of token type 1 overflow in fp16.
fn spoil_second_segment(folder: &Path) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let types = tensors.tensor("bert.embeddings.token_type_embeddings.weight").unwrap();
    let start = types.data().as_ptr().addr() - bytes.as_ptr().addr() + types.data().len() / 2;
    bytes[start..start + 4].copy_from_slice(&1e6_f32.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

fn refused(result: Result<trt_compiler::Outcome, CompileError>, store: &Path, row: &str) -> String {
    let Err(error) = result else { panic!("{row}: published") };
    assert_eq!(error.exit_code(), 6, "{row}: {error}");
    let left: Vec<_> = fs::read_dir(store.join("tested/versions"))
        .map(|entries| entries.map(|entry| entry.unwrap().file_name()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "{row}: {left:?}");
    assert!(!store.join("tested/current").exists(), "{row}");
    error.to_string()
}

#[test]
fn weights_that_overflow_in_fp16_are_refused_in_fp16_and_pass_in_fp32() {
    let Some(runtimes) = runtimes() else { return };
    let (folder, store) = (toy(Kind::Analyst), tempfile::tempdir().unwrap());
    scale(folder.path(), "bert.encoder.layer.1.intermediate.dense.weight", 1e6);
    let job = |precision| Job {
        overflow: Overflow::LetBe,
        ..job(store.path(), folder.path(), precision, &runtimes)
    };
    let run = |precision| trt_compiler::run(&job(precision), &(), &Interrupt::default());
    let message = refused(run(Precision::Fp16), store.path(), "fp16");
    for part in ["tested/v1-fp16", "logits", "NaN", "bf16"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
    assert!(message.contains("--explain"), "{message}");
    run(Precision::Fp32).unwrap();
    let explained = Job { explain: true, ..job(Precision::Fp16) };
    let error = trt_compiler::run(&explained, &(), &Interrupt::default()).unwrap_err();
    eprintln!("{error}");
    let CompileError::Gate { explanation: Some(explanation), .. } = error else { panic!("{error}") };
    let explanation = explanation.unwrap();
    let first = explanation.first.as_ref().unwrap();
    // The weight itself is beyond fp16; that is where it begins, and 1 of 2 layers is whole before it.
    assert!(first.node.contains("encoder.layer.1.intermediate.dense"), "{explanation:?}");
    assert!(first.not_finite > 0 && explanation.agree > 30, "{explanation:?}");
    let keep = Job {
        keep_fp32: vec![
            "encoder.layer.1.intermediate*".parse().unwrap(),
            "encoder.layer.1.output*".parse().unwrap(),
        ],
        version: "v1-kept".parse().unwrap(),
        ..explained
    };
    trt_compiler::run(&keep, &(), &Interrupt::default()).unwrap();
    // Left to itself, it finds them.
    let found = Job {
        overflow: Overflow::KeepInFp32,
        keep_fp32: Vec::new(),
        version: "v1-found".parse().unwrap(),
        ..keep
    };
    let outcome = trt_compiler::run(&found, &(), &Interrupt::default()).unwrap();
    let modules = outcome.evidence.overflow.unwrap().modules;
    assert!(modules.iter().any(|it| it.module == "encoder.layer.1.intermediate.dense"), "{modules:?}");
    assert!(modules.iter().all(|it| it.module.starts_with("encoder.layer.1.")), "{modules:?}");
}

/// Values of attention times 2¹⁸, and the product after them divided by it: the same model, whose activations fp16 cannot
/// hold. No weight is beyond it.
#[test]
fn activations_that_overflow_in_fp16_are_kept_in_fp32_by_themselves() {
    let Some(runtimes) = runtimes() else { return };
    let (folder, store) = (toy(Kind::Memory), tempfile::tempdir().unwrap());
    let attention = "encoder.layer.1.attention";
    let factor = 2.0_f32.powi(18);
    for (tensor, factor) in
        [("self.value.weight", factor), ("self.value.bias", factor), ("output.dense.weight", factor.recip())]
    {
        scale(folder.path(), &format!("{attention}.{tensor}"), factor);
    }
    let job = job(store.path(), folder.path(), Precision::Fp16, &runtimes);
    let left = Job { overflow: Overflow::LetBe, ..job.clone() };
    let message =
        refused(trt_compiler::run(&left, &(), &Interrupt::default()), store.path(), "left to itself");
    assert!(message.contains("NaN"), "{message}");
    let calibration =
        Calibration { texts: texts::built_in(), source: "built in".to_owned(), method: Method::default() };
    let int8 = Job {
        precision: Precision::Int8,
        calibration: Some(calibration),
        version: "v1-int8".parse().unwrap(),
        ..job.clone()
    };
    let left = Job { overflow: Overflow::LetBe, ..int8.clone() };
    let message = refused(trt_compiler::run(&left, &(), &Interrupt::default()), store.path(), "int8");
    assert!(message.contains("cosine"), "{message}");
    let outcome = trt_compiler::run(&job, &(), &Interrupt::default()).unwrap();
    let record = outcome.evidence.overflow.unwrap();
    let found: Vec<&str> = record.modules.iter().map(|it| it.module.as_str()).collect();
    let expected = ["output.dense", "self", "self.value"].map(|part| format!("{attention}.{part}"));
    assert_eq!(found, expected, "{record:?}");
    assert!(record.largest > 65_504.0 && record.modules.iter().all(|it| it.largest > 65_504.0), "{record:?}");
    let kept = &outcome.evidence.export.kept_fp32;
    let named = kept.iter().find(|kept| kept.module == expected[2]).unwrap();
    assert!(named.why.contains("too large for fp16"), "{named:?}");
    // Products in 8 bits have ranges of their own; what is between them is fp16.
    let outcome = trt_compiler::run(&int8, &(), &Interrupt::default()).unwrap();
    // The step that turns such a value into 8 bits takes it too.
    let mut kept = outcome.evidence.overflow.unwrap().modules;
    kept.retain(|it| it.module != format!("{attention}.output.dense.input"));
    assert_eq!(kept, record.modules);
    let bf16 = Job { precision: Precision::Bf16, version: "v1-bf16".parse().unwrap(), ..job };
    let outcome = trt_compiler::run(&bf16, &(), &Interrupt::default()).unwrap();
    assert!(outcome.evidence.overflow.is_none(), "bf16 has the range of fp32");
}

#[test]
fn profiles_and_caches_have_to_fit() {
    let Some(runtimes) = runtimes() else { return };
    let (lm, encoder) = (fixture(&["lm-llama", "lm-tokenizer"]), toy(Kind::Memory));
    let check = |folder: &Path, profile: &str, kv_cache, expected: &str| {
        let store = tempfile::tempdir().unwrap();
        let profile: Profile = profile.parse().unwrap();
        let job =
            Job { profile: Some(profile), kv_cache, ..job(store.path(), folder, Precision::Fp32, &runtimes) };
        let error = trt_compiler::dry_run(&job).unwrap_err();
        assert_eq!(error.exit_code(), model_store::exit::USAGE, "{profile}: {error}");
        assert!(error.to_string().contains(expected), "{profile}: {error}");
    };
    // Positions for 512 tokens.
    check(lm.path(), "1x1,8,512", KvCache::With, "leaves nothing for the cache");
    check(lm.path(), "1x1,8,256x0,16,257", KvCache::With, "513 tokens");
    check(lm.path(), "1x1,8,256x0,16,256", KvCache::Without, "--no-kv-cache");
    check(encoder.path(), "1x1,8,16x0,16,16", KvCache::With, "this engine has none");
}

#[test]
fn a_model_that_is_not_the_reference_is_refused() {
    let Some(runtimes) = runtimes() else { return };
    let (folder, original, store) = (toy(Kind::Analyst), toy(Kind::Analyst), tempfile::tempdir().unwrap());
    scale(folder.path(), "bert.encoder.layer.0.output.dense.weight", -1.0);
    let mut job = job(store.path(), folder.path(), Precision::Fp32, &runtimes);
    job.reference = Some(original.path().to_owned());
    job.explain = true;
    let message = refused(trt_compiler::run(&job, &(), &Interrupt::default()), store.path(), "another model");
    for part in ["logits  max abs", "allowed", "cosine", "not one of precision"] {
        assert!(message.contains(part), "{part} is not in {message}");
    }
}

/// Texts are single, but a model that tells segments apart is checked on pairs too.
#[test]
fn the_second_segment_is_checked() {
    let Some(runtimes) = runtimes() else { return };
    let (folder, store) = (toy(Kind::Analyst), tempfile::tempdir().unwrap());
    spoil_second_segment(folder.path());
    let job =
        Job { overflow: Overflow::LetBe, ..job(store.path(), folder.path(), Precision::Fp16, &runtimes) };
    refused(trt_compiler::run(&job, &(), &Interrupt::default()), store.path(), "second segment");
}

#[test]
fn thresholds_that_nothing_can_meet_refuse_everything() {
    let Some(runtimes) = runtimes() else { return };
    let (folder, store) = (toy(Kind::Memory), tempfile::tempdir().unwrap());
    let mut job = job(store.path(), folder.path(), Precision::Fp16, &runtimes);
    job.thresholds = ThresholdWishes { max_abs: Some(1e-9), ..ThresholdWishes::default() };
    let message = refused(trt_compiler::run(&job, &(), &Interrupt::default()), store.path(), "strict");
    assert!(message.contains("sentence_embedding  max abs"), "{message}");
}

#[test]
fn a_raised_interrupt_publishes_nothing() {
    let Some(runtimes) = runtimes() else { return };
    let (folder, store) = (toy(Kind::Analyst), tempfile::tempdir().unwrap());
    let interrupt = Interrupt::default();
    interrupt.raise();
    let job = job(store.path(), folder.path(), Precision::Fp32, &runtimes);
    let result = trt_compiler::run(&job, &(), &interrupt);
    assert!(matches!(result, Err(CompileError::Interrupted(_))), "{:?}", result.err());
    assert!(job.store.versions(&job.agent).unwrap_or_default().is_empty());
}

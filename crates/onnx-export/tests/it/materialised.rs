//! Weights written in the graph's own precision: the numbers are those that its casts gave.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use onnx_export::{Checkpoint, DataType, ExportOptions, Head, Precision, SentenceHead, export, materialise};
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;
use toy_store::Kind;

use crate::support::{Rectangle, Side, copy_of, runtime, toy};

const FILE: &str = "graph.safetensors";

fn head(folder: &Path, wanted: &Head) -> Head {
    let checkpoint = Checkpoint::open(folder).unwrap();
    match wanted {
        Head::SentenceEmbedding(_) => {
            Head::SentenceEmbedding(SentenceHead::read(&checkpoint).unwrap().expect("a sentence model"))
        }
        other => other.clone(),
    }
}

fn models() -> Vec<(&'static str, TempDir, Head)> {
    let copy = |name: &'static str| (name, copy_of(&[name]));
    let mut models = vec![
        ("memory", toy(Kind::Memory), Head::SentenceEmbedding(SentenceHead::default())),
        ("analyst", toy(Kind::Analyst), Head::SequenceClassification),
    ];
    for name in ["bert", "bert-fp16", "sharded"] {
        let (name, folder) = copy(name);
        models.push((name, folder, Head::HiddenStates));
    }
    for name in ["lm-llama-tied", "lm-qwen3"] {
        let (name, folder) = copy(name);
        models.push((name, folder, Head::CausalLm { cache: false }));
    }
    models
}

#[test]
fn the_numbers_are_those_of_the_casts() {
    let Some(runtime) = runtime() else { return };
    let sentence = |length: u8| {
        let ids = (0..length).map(|i| 5 + i64::from(i % 20)).collect();
        (ids, vec![0; usize::from(length)])
    };
    let sentences = [3, 7, 1].map(sentence);
    for (row, folder, wanted) in models() {
        let folder = folder.path();
        let checkpoint = Checkpoint::open(folder).unwrap();
        let options = ExportOptions::new(head(folder, &wanted), Precision::Fp16);
        let cast = export(&checkpoint, &options).unwrap();
        let (own, weights) = materialise(&checkpoint, cast.clone(), FILE).unwrap();
        let Some(weights) = weights else {
            assert_eq!(row, "bert-fp16", "only what is stored in fp16 has nothing to convert");
            assert_eq!(own.onnx, cast.onnx);
            continue;
        };
        let mut out = Vec::new();
        weights.write(&checkpoint, &mut out, &mut |_| Ok(())).unwrap();
        assert_eq!(out.len() as u64, weights.bytes(), "{row}");
        fs::write(folder.join(FILE), out).unwrap();
        assert!(weights.count() > 0 && own.report.weight_casts < cast.report.weight_casts, "{row}");
        assert_eq!(own.report.weight_casts + weights.count(), cast.report.weight_casts, "{row}");
        // What was a bfloat16 is as long as it was.
        assert!(own.report.weight_bytes <= cast.report.weight_bytes, "{row}");

        let rectangle = Rectangle::new(&sentences, 0, Side::Right);
        let mut outputs = [&cast, &own].map(|exported| {
            let mut session = runtime.load(&exported.onnx, folder).unwrap_or_else(|e| panic!("{row}: {e}"));
            let feed = rectangle.feed(&session);
            session.run_named(feed).unwrap()
        });
        for ((name, cast), (_, own)) in std::mem::take(&mut outputs[0]).iter().zip(&outputs[1]) {
            let values = cast.to_f32().unwrap().values;
            assert!(
                values.iter().all(|x| x.is_finite()) && values.iter().any(|x| *x != 0.0),
                "{row}, {name}"
            );
            assert_eq!(values, own.to_f32().unwrap().values, "{row}, {name}: other numbers");
        }
    }
}

/// In bfloat16 no CPU runs the graph, so the file is held against the weights one by one.
#[test]
fn each_weight_is_the_stored_one_rounded_once() {
    for (row, folder, wanted) in models() {
        let folder = folder.path();
        let checkpoint = Checkpoint::open(folder).unwrap();
        for precision in [Precision::Fp16, Precision::Bf16] {
            let exported =
                export(&checkpoint, &ExportOptions::new(head(folder, &wanted), precision)).unwrap();
            let (_, Some(weights)) = materialise(&checkpoint, exported, FILE).unwrap() else { continue };
            let mut out = Vec::new();
            let mut last = 0;
            weights
                .write(&checkpoint, &mut out, &mut |written| {
                    assert!(written > last);
                    last = written;
                    Ok(())
                })
                .unwrap();
            let tensors = SafeTensors::deserialize(&out).unwrap_or_else(|error| panic!("{row}: {error}"));
            assert_eq!(tensors.len(), weights.count(), "{row}, {precision}");
            for (name, view) in tensors.tensors() {
                let stored = checkpoint.tensor(&name).unwrap();
                assert_eq!(view.shape(), stored.shape, "{row}, {name}");
                let file = fs::read(folder.join(&stored.file)).unwrap();
                let start = usize::try_from(stored.offset_bytes).unwrap();
                let bytes = &file[start..start + usize::try_from(stored.length_bytes).unwrap()];
                let wide: Vec<f32> = match stored.dtype {
                    DataType::F32 => bytes.as_chunks().0.iter().map(|it| f32::from_le_bytes(*it)).collect(),
                    DataType::Bf16 => {
                        bytes.as_chunks().0.iter().map(|it| bf16::from_le_bytes(*it).to_f32()).collect()
                    }
                    DataType::F16 => {
                        bytes.as_chunks().0.iter().map(|it| f16::from_le_bytes(*it).to_f32()).collect()
                    }
                    other => panic!("{row}, {name}: {other:?}"),
                };
                let expected: Vec<u8> = match view.dtype() {
                    Dtype::F16 => wide.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                    Dtype::BF16 => wide.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                    other => panic!("{row}, {name}: {other:?}"),
                };
                assert!(view.data() == expected, "{row}, {precision}, {name}");
            }
        }
    }
}

#[test]
fn fp32_has_nothing_to_convert_and_a_stop_ends_it() {
    let folder = toy(Kind::Memory);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let exported = export(&checkpoint, &ExportOptions::new(Head::HiddenStates, Precision::Fp32)).unwrap();
    let before = exported.onnx.clone();
    let (same, none) = materialise(&checkpoint, exported, FILE).unwrap();
    assert!(none.is_none() && same.onnx == before);

    let exported = export(&checkpoint, &ExportOptions::new(Head::HiddenStates, Precision::Fp16)).unwrap();
    let (_, Some(weights)) = materialise(&checkpoint, exported, FILE).unwrap() else {
        panic!("nothing to do")
    };
    let stop = std::io::ErrorKind::Interrupted;
    let error = weights.write(&checkpoint, &mut Vec::new(), &mut |_| Err(stop.into())).unwrap_err();
    assert!(error.to_string().contains("convert the weights"), "{error}");
}

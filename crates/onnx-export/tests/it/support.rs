//! Model folders to test with, ONNX Runtime, and ways to compare.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use model_loader::onnx::{OnnxRuntime, OnnxSession, OnnxTensor, Places};
use onnx_export::{Bf16, Checkpoint, ExportOptions, Head, Lowering, Precision, export};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;
use toy_store::{Kind, ToyVersion};

/// A copy of one of the toy store's models, which the test may break.
pub(crate) fn toy(kind: Kind) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    toy_store::folder(kind, toy_store::DEFAULT_SEED, ToyVersion::V1).write_to(folder.path()).unwrap();
    folder
}

/// The toy RoBERTa classifier.
pub(crate) fn roberta() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    toy_store::roberta_classifier().write_to(folder.path()).unwrap();
    folder
}

/// Changes one value of `config.json`.
pub(crate) fn set_config(folder: &Path, key: &str, value: serde_json::Value) {
    let path = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// A folder of the loader's fixtures: a model, and what transformers gives for it.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model-loader/tests/data").join(name)
}

/// A folder that holds copies of the files of others, and of those below them.
pub(crate) fn copy_of(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in names {
        copy_into(&fixture(name), folder.path());
    }
    folder
}

pub(crate) fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_into(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// A fixture's encoder with two heads, which are then of a size that TensorRT has fused attention for.
///
/// The numbers are others, but as good as any: `MPNet`'s biases lose those of the heads that are gone.
pub(crate) fn with_two_heads(name: &str) -> TempDir {
    let folder = copy_of(&[name]);
    let distil = name.ends_with("distilbert");
    set_config(folder.path(), if distil { "n_heads" } else { "num_attention_heads" }, 2.into());
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let cut = |name: &str, view: TensorView<'_>| {
        let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
        if !name.ends_with("relative_attention_bias.weight") {
            return (shape, data);
        }
        let row = data.len() / shape[0];
        (vec![shape[0], 2], data.chunks(row).flat_map(|row| row[..8].to_vec()).collect())
    };
    let cut: Vec<_> = tensors.tensors().into_iter().map(|(name, view)| (cut(&name, view), name)).collect();
    let views: Vec<(&str, TensorView<'_>)> = cut
        .iter()
        .map(|((shape, data), name)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, &path).unwrap();
    folder
}

/// The tensors of a file of outputs.
pub(crate) struct Outputs(Vec<u8>);

impl Outputs {
    pub(crate) fn open(path: &Path) -> Self {
        Self(fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    /// Its values in fp32, and its shape.
    pub(crate) fn floats(&self, name: &str) -> Vec<f32> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    pub(crate) fn integers(&self, name: &str) -> Vec<i64> {
        let tensors = self.tensors();
        let view = tensors.tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::I64, "{name}");
        view.data().as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
    }
}

/// ONNX Runtime, where the checkout has it; `None` (and why, on the standard error) where it has not.
pub(crate) fn runtime() -> Option<OnnxRuntime> {
    // Opened by one test and not by several at once: each would make an environment.
    static OPENED: OnceLock<Option<OnnxRuntime>> = OnceLock::new();
    let opened = OPENED.get_or_init(|| {
        let places = Places::from_env();
        match places.onnxruntime() {
            Ok(_) => Some(OnnxRuntime::open(&places).unwrap()),
            Err(missing) => {
                eprintln!("skipped: {missing}");
                None
            }
        }
    });
    opened.clone()
}

/// Every precision that computes something else, in every lowering. bf16 is emulated: the CPU has no kernels for it.
pub(crate) fn variants(head: &Head) -> Vec<ExportOptions> {
    let precisions = [Precision::Fp32, Precision::Fp16, Precision::Bf16];
    let lowerings = [Lowering::Portable, Lowering::TensorRt];
    let both = precisions.into_iter().flat_map(|precision| lowerings.map(|lowering| (precision, lowering)));
    both.map(|(precision, lowering)| ExportOptions {
        lowering,
        bf16: Bf16::Emulated,
        ..ExportOptions::new(head.clone(), precision)
    })
    .collect()
}

/// The graph of a folder, loaded.
pub(crate) fn session(runtime: &OnnxRuntime, folder: &Path, options: &ExportOptions) -> OnnxSession {
    let row = format!("{}, {options:?}", folder.display());
    let exported =
        export(&Checkpoint::open(folder).unwrap(), options).unwrap_or_else(|error| panic!("{row}: {error}"));
    runtime.load(&exported.onnx, folder).unwrap_or_else(|error| panic!("{row}: {error}"))
}

/// Ids and types of a sentence's tokens.
pub(crate) type Sentence = (Vec<i64>, Vec<i64>);

/// Sentences as a rectangle, padded on the right or on the left.
pub(crate) struct Rectangle {
    pub(crate) rows: usize,
    pub(crate) sequence: usize,
    pub(crate) ids: Vec<i64>,
    pub(crate) mask: Vec<i64>,
    pub(crate) types: Vec<i64>,
    /// Where each sentence begins in its row.
    pub(crate) starts: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

impl Rectangle {
    pub(crate) fn new(sentences: &[Sentence], pad: i64, side: Side) -> Self {
        let sequence = sentences.iter().map(|(ids, _)| ids.len()).max().unwrap();
        let mut all = Self {
            rows: sentences.len(),
            sequence,
            ids: Vec::new(),
            mask: Vec::new(),
            types: Vec::new(),
            starts: Vec::new(),
        };
        for (ids, types) in sentences {
            let missing = sequence - ids.len();
            let append = |values: &mut Vec<i64>, row: &[i64], filler: i64| match side {
                Side::Left => values.extend(std::iter::repeat_n(filler, missing).chain(row.iter().copied())),
                Side::Right => values.extend(row.iter().copied().chain(std::iter::repeat_n(filler, missing))),
            };
            append(&mut all.ids, ids, pad);
            append(&mut all.mask, &vec![1; ids.len()], 0);
            append(&mut all.types, types, 0);
            all.starts.push(if side == Side::Left { missing } else { 0 });
        }
        all
    }

    /// The inputs that a graph without a cache asks for.
    pub(crate) fn feed(&self, session: &OnnxSession) -> Vec<(String, OnnxTensor)> {
        let feed = |name: &str| {
            let values = match name {
                "input_ids" => &self.ids,
                "attention_mask" => &self.mask,
                "token_type_ids" => &self.types,
                other => panic!("an input {other}"),
            };
            let tensor = OnnxTensor::integers(&[self.rows, self.sequence], values.clone()).unwrap();
            (name.to_owned(), tensor)
        };
        session.input_names().map(feed).collect()
    }
}

/// The largest difference. Fails on what is not finite.
#[track_caller]
pub(crate) fn max_abs(row: &str, found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "{row}");
    found.iter().zip(expected).fold(0.0, |max, (a, b)| {
        assert!(a.is_finite() && b.is_finite(), "{row}: {a} for {b}");
        max.max((a - b).abs())
    })
}

#[track_caller]
fn cosine(row: &str, found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "{row}");
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
    dot(found, expected) / (dot(found, found) * dot(expected, expected)).sqrt()
}

/// Holds one output against torch by the tolerance: fp32 to a thousandth everywhere, 16-bit floats to a cosine of
/// 0.999, of all rows together and, in fp16, of the worst one. bf16 has three bits fewer: see [`WORST_BF16`].
pub(crate) struct Judge {
    row: String,
    precision: Precision,
    /// Values of a row.
    width: usize,
    found: Vec<f32>,
    expected: Vec<f32>,
}

/// The worst cosine of a row in bf16 that passes. 0.9805 was measured, of the logits of a small random Llama.
const WORST_BF16: f64 = 0.97;

impl Judge {
    pub(crate) fn new(row: impl Into<String>, precision: Precision, width: usize) -> Self {
        Self { row: row.into(), precision, width, found: Vec::new(), expected: Vec::new() }
    }

    #[track_caller]
    pub(crate) fn add(&mut self, what: &str, found: &[f32], expected: &[f32]) {
        let row = format!("{}, {what}", self.row);
        let difference = max_abs(&row, found, expected);
        assert!(self.precision != Precision::Fp32 || difference <= 1e-3, "{row}: max abs {difference:e}");
        assert!(
            found.len().is_multiple_of(self.width),
            "{row}: {} values in rows of {}",
            found.len(),
            self.width
        );
        self.found.extend_from_slice(found);
        self.expected.extend_from_slice(expected);
    }

    /// The smallest cosine of a row.
    fn worst(&self) -> f64 {
        let rows = self.found.chunks(self.width).zip(self.expected.chunks(self.width));
        rows.map(|(found, expected)| cosine(&self.row, found, expected)).fold(1.0, f64::min)
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(!self.found.is_empty(), "{}: nothing was compared", self.row);
            let (all, worst) = (cosine(&self.row, &self.found, &self.expected), self.worst());
            eprintln!("{}: cosine {all:.6}, worst row {worst:.6}", self.row);
            let least = if self.precision == Precision::Bf16 { WORST_BF16 } else { 0.999 };
            assert!(all >= 0.999 && worst >= least, "{}: cosine {all}, worst row {worst}", self.row);
        }
    }
}

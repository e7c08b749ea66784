//! What the tests share: the fixtures of `tests/parity`, folders made from them, and ways to compare.

use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use model_loader::{Backend, Device, LoadError, LoadOptions};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// A folder of fixtures.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The inputs of a fixture.
pub(crate) fn texts(name: &str) -> Vec<String> {
    serde_json::from_slice(&fs::read(data(name).join("texts.json")).unwrap()).unwrap()
}

/// An output of a fixture, by row.
pub(crate) fn output(name: &str, tensor: &str) -> Vec<Vec<f32>> {
    let bytes = fs::read(data(name).join("outputs.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(tensor).unwrap();
    let values: Vec<f32> = view.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    values.chunks(view.shape()[1]).map(<[f32]>::to_vec).collect()
}

/// A folder with the files of a fixture, its own copies.
pub(crate) fn copy_of(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data(name)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    folder
}

/// A folder with links to the files of a fixture.
pub(crate) fn links_to(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data(name)).unwrap() {
        let from = entry.unwrap().path();
        symlink(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    folder
}

/// Changes the numbers of a file of float32 tensors: `change` is given each tensor's name and values.
pub(crate) fn edit_tensors(path: &Path, change: impl Fn(&str, &mut [f32])) {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, view)| {
            let mut values: Vec<f32> =
                view.data().as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
            change(name, &mut values);
            (name.to_owned(), view.shape().to_vec(), values.into_iter().flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let views = changed
        .iter()
        .map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Changes keys of a JSON object in a file; `null` takes a key away.
pub(crate) fn edit_json(path: &Path, changes: &Value) {
    let mut file: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let object = file.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        if value.is_null() {
            object.remove(key);
        } else {
            object.insert(key.clone(), value.clone());
        }
    }
    fs::write(path, file.to_string()).unwrap();
}

/// An error and its causes, as a person gets to read them.
pub(crate) fn message(error: &LoadError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Asserts that an error has this exit code and says all of this.
#[track_caller]
pub(crate) fn check_error(row: &str, error: &LoadError, code: u8, parts: &[&str]) {
    let message = message(error);
    assert_eq!(error.exit_code(), code, "{row}: {message}");
    for part in parts {
        assert!(message.contains(part), "{row}: no `{part}` in: {message}");
    }
}

/// Ways to run `count` texts: at once, in reverse, and one by one. Each is a list of batches of indices.
pub(crate) fn batchings(count: usize) -> [(&'static str, Vec<Vec<usize>>); 3] {
    [
        ("together", vec![(0..count).collect()]),
        ("reversed", vec![(0..count).rev().collect()]),
        ("one by one", (0..count).map(|index| vec![index]).collect()),
    ]
}

/// Runs the texts in each of the batchings and hands on every text's result, in the order of the texts.
pub(crate) fn each_batching<T: Clone + Default>(
    texts: &[String],
    run: impl Fn(&[&str]) -> Vec<T>,
    check: impl Fn(&str, &[T]),
) {
    for (name, batches) in batchings(texts.len()) {
        let mut results = vec![T::default(); texts.len()];
        for batch in batches {
            let batch_texts: Vec<&str> = batch.iter().map(|index| texts[*index].as_str()).collect();
            let found = run(&batch_texts);
            assert_eq!(found.len(), batch.len(), "{name}: a result for each text");
            for (index, result) in batch.into_iter().zip(found) {
                results[index] = result;
            }
        }
        check(name, &results);
    }
}

/// Loads on the own kernels, and hands on how far from the original's numbers each may be: in float32 as far as sums in
/// another order are; as whoever asks for nothing gets it, as far as `exact` results may be; and in block fixed point, where
/// this processor has it, as far as that takes these random models, some of whose numbers are above 10.
pub(crate) fn on_own_kernels(exact: f32, check: impl Fn(&LoadOptions, f32)) {
    check(&with(Backend::Cpu), 1e-4);
    check(&with(Backend::Auto), exact);
    if cpu_kernels::Arithmetic::Fixed16.is_available() {
        check(&with(Backend::CpuFixed16), 3e-3);
    } else {
        eprintln!("skipped for {}: this processor has no AVX2", Backend::CpuFixed16);
    }
}

pub(crate) const fn with(backend: Backend) -> LoadOptions {
    LoadOptions { backend, device: Device::Cpu, cpu_fallback: false }
}

/// Whether it is one of the own kernels, whichever is the faster one here.
pub(crate) fn is_own(backend: Backend) -> bool {
    matches!(backend, Backend::Cpu | Backend::CpuFixed16)
}

/// The largest difference of two tables of one shape.
#[track_caller]
pub(crate) fn max_abs(left: &[Vec<f32>], right: &[Vec<f32>]) -> f32 {
    assert_eq!(left.len(), right.len(), "rows");
    let mut max = 0.0_f32;
    for (left, right) in left.iter().zip(right) {
        assert_eq!(left.len(), right.len(), "columns");
        for (a, b) in left.iter().zip(right) {
            assert!(a.is_finite() && b.is_finite());
            max = max.max((a - b).abs());
        }
    }
    max
}

/// The smallest cosine of two tables' rows.
#[track_caller]
pub(crate) fn min_cosine(left: &[Vec<f32>], right: &[Vec<f32>]) -> f64 {
    assert_eq!(left.len(), right.len(), "rows");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = |a: &Vec<f32>, b: &Vec<f32>| {
        assert_eq!(a.len(), b.len(), "columns");
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    // `f64::min` would pass over a NaN.
    left.iter().zip(right).map(|(a, b)| cosine(a, b)).fold(1.0, |min, x| if x >= min { min } else { x })
}

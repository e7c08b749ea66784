//! Checkpoints in memory and on disk.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tensor_diff::TensorTable;

/// Name, type, shape and bytes of a tensor.
pub(crate) type Row<'a> = (&'a str, Dtype, &'a [usize], Vec<u8>);

pub(crate) fn file(tensors: &[Row<'_>]) -> Vec<u8> {
    file_with(tensors, None)
}

pub(crate) fn file_with(tensors: &[Row<'_>], metadata: Option<HashMap<String, String>>) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize(views, metadata).unwrap()
}

pub(crate) fn table(tensors: &[Row<'_>]) -> TensorTable {
    TensorTable::read("table", file(tensors)).unwrap()
}

pub(crate) fn write(path: &Path, tensors: &[Row<'_>]) -> TensorTable {
    std::fs::write(path, file(tensors)).unwrap();
    TensorTable::open(path).unwrap()
}

pub(crate) fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A file with this header, its length put before it, and these bytes behind.
pub(crate) fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

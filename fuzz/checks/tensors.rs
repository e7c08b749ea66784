//! What must hold for any bytes that are taken for a safetensors file. Shared by the fuzz target and `make test`.

use tensor_diff::{TensorTable, diff};

/// A broken file is an error; a sound one is what the format's own reader sees, and differs from none but others.
pub(crate) fn tensors(data: &[u8]) {
    let table = match TensorTable::read("fuzz", data.to_vec()) {
        Ok(table) => table,
        Err(error) => {
            assert!(error.to_string().starts_with("fuzz is not a sound"), "{error:?}");
            return;
        }
    };
    let theirs = safetensors::SafeTensors::deserialize(data).expect("the reference reader takes it");
    assert_eq!(theirs.len(), table.tensors().count());
    for (name, tensor) in table.tensors() {
        let view = theirs.tensor(name).expect("the reference reader has it");
        let begin = usize::try_from(tensor.offset_bytes).expect("offsets lie in the file");
        let bytes = &data[begin..begin + usize::try_from(tensor.bytes).expect("and so do lengths")];
        assert_eq!(
            (view.data(), view.shape(), view.dtype()),
            (bytes, &*tensor.shape, tensor.dtype),
            "{name:?}"
        );
    }
    let same = diff(&table, &table).expect("bytes in memory can be read");
    assert!(same.is_empty() && !same.metadata_differs, "{same:?}");
    assert_eq!(same.unchanged_bytes, table.bytes());

    // One bit of the last byte changes one tensor, where there is a byte of a tensor.
    let mut changed = data.to_vec();
    if table.bytes() > 0
        && let Some(last) = changed.last_mut()
    {
        *last ^= 1;
        let other = TensorTable::read("fuzz", changed).expect("the header is the same");
        let found = diff(&table, &other).expect("bytes in memory can be read");
        assert!(found.changed.len() == 1 && found.changed[0].bytes_differ, "{found:?}");
    }
    TensorTable::unite([table.clone()]).expect("one table is a checkpoint");
}

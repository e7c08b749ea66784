//! What must hold for any bytes that are taken for a model's files. Shared by the fuzz targets and `make test`.

use std::fs;
use std::path::Path;

use onnx_export::proto::ModelProto;
use onnx_export::{Checkpoint, ExportOptions, Head, Precision, export, materialise};
use prost::Message;

/// A file of weights is made no longer than this, all of it holes.
const MOST_BYTES: u64 = 1 << 32;
/// What a graph may give.
const HEADS: [Head; 5] = [
    Head::HiddenStates,
    Head::SequenceClassification,
    Head::TokenClassification,
    Head::CausalLm { cache: false },
    Head::CausalLm { cache: true },
];

/// A folder in memory where that can be had.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// Runs a check with this thread's folder.
pub(crate) fn with_folder(check: impl FnOnce(&Path)) {
    thread_local!(static FOLDER: tempfile::TempDir = folder());
    FOLDER.with(|folder| check(folder.path()));
}

/// Two parts: how long the first is stands before it, in two bytes.
fn parts(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))
}

/// A `config.json` and the header of a `model.safetensors`, whose file is as long as the header says. Whatever they say, a
/// graph that is written from them is a graph, and points into the file.
pub(crate) fn checkpoint(folder: &Path, data: &[u8]) {
    let Some((config, header)) = parts(data) else { return };
    let weights = folder.join("model.safetensors");
    let length = header.len() as u64;
    fs::write(folder.join("config.json"), config).expect("a config.json can be written");
    fs::write(&weights, [&length.to_le_bytes(), header].concat()).expect("a header can be written");
    let metadata = serde_json::from_slice::<safetensors::tensor::Metadata>(header);
    if let Ok(bytes) = metadata.map(|metadata| metadata.data_len() as u64)
        && bytes < MOST_BYTES
    {
        let file = fs::OpenOptions::new().write(true).open(&weights).expect("it is there");
        file.set_len(8 + length + bytes).expect("a file of holes");
    }
    let Ok(checkpoint) = Checkpoint::open(folder) else { return };
    let file_bytes = fs::metadata(&weights).expect("it is there").len();
    for head in HEADS {
        for precision in [Precision::Fp32, Precision::Fp16, Precision::Bf16] {
            let options = ExportOptions::new(head.clone(), precision);
            let Ok(exported) = export(&checkpoint, &options) else { continue };
            sound(&exported.onnx, file_bytes);
            let (own, _) = materialise(&checkpoint, exported, "own.safetensors").expect("a graph of our own");
            assert!(ModelProto::decode(own.onnx.as_slice()).is_ok());
        }
    }
}

/// A file that is taken for `model.safetensors`, with whatever beginning it has.
pub(crate) fn weights(folder: &Path, data: &[u8]) {
    fs::write(folder.join("config.json"), r#"{"model_type": "bert"}"#).expect("a config.json can be written");
    fs::write(folder.join("model.safetensors"), data).expect("a file can be written");
    let ours = Checkpoint::open(folder);
    let theirs = safetensors::SafeTensors::deserialize(data);
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => {
            for name in ours.tensor_names() {
                let (tensor, view) = (ours.tensor(name).expect("it is named"), theirs.tensor(name).expect("the reference reader has it"));
                assert_eq!(tensor.shape, view.shape(), "{name}");
                let begin = usize::try_from(tensor.offset_bytes).expect("offsets lie in the file");
                let length = usize::try_from(tensor.length_bytes).expect("and so do lengths");
                assert_eq!(&data[begin..begin + length], view.data(), "{name}");
            }
        }
        (Ok(_), Err(error)) => panic!("the reference reader refuses it: {error}"),
        (Err(_), _) => {}
    }
}

fn sound(onnx: &[u8], file_bytes: u64) {
    let model = ModelProto::decode(onnx).expect("what was written can be read");
    let graph = model.graph.expect("a graph");
    for tensor in &graph.initializer {
        let of = |key: &str| {
            let entry = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key))?;
            entry.value.as_deref()?.parse::<u64>().ok()
        };
        if let (Some(offset), Some(length)) = (of("offset"), of("length")) {
            assert!(offset + length <= file_bytes, "{tensor:?} lies outside of {file_bytes} bytes");
        }
    }
}

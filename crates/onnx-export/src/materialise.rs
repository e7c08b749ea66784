//! Weights in the precision of the graph, in a file of their own: for readers that do not fold a `Cast`, and for hosts
//! that would rather hold half the bytes.
//!
//! The graph stays the same but for its casts: each of them that turns a stored weight into a 16-bit float goes away, and
//! what it gave is an initializer in the new file. The numbers are those that the cast would have given: both round to the
//! nearest, ties to even.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;
use half::{bf16, f16};
use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;
use crate::proto::{ModelProto, NodeProto, StringStringEntryProto, TensorProto};
use crate::{DataType, ExportError, Exported, Tensor};

/// Elements that are converted at a time.
const CHUNK: usize = 1 << 16;
/// Headers of safetensors files are padded to this, so that tensors begin aligned.
const ALIGNMENT: usize = 8;

/// Weights to be written in another type, and the header of the file that they go to.
#[derive(Clone, Debug)]
pub struct ConvertedWeights {
    header: Vec<u8>,
    conversions: Vec<Conversion>,
}

/// One of them.
#[derive(Clone, Debug)]
struct Conversion {
    from: Tensor,
    to: DataType,
}

/// Has a graph point at weights in its own precision, which are to lie in `file` beside it.
///
/// What the returned weights [write](ConvertedWeights::write) is that file. `None` where no weight is cast to a 16-bit
/// float: then nothing changes.
pub fn materialise(
    checkpoint: &Checkpoint,
    exported: Exported,
    file: &str,
) -> Result<(Exported, Option<ConvertedWeights>), ExportError> {
    let mut model = read(checkpoint, &exported.onnx)?;
    let Some(weights) = take_casts_away(checkpoint, &mut model, file)? else { return Ok((exported, None)) };
    let graph = model.graph.as_ref().map_or(&[][..], |graph| &graph.node);
    let mut report = exported.report;
    report.weight_casts -= weights.count();
    report.nodes = graph.len();
    report.operators = BTreeMap::new();
    for node in graph {
        *report.operators.entry(node.op_type().to_owned()).or_default() += 1;
    }
    let initializers = model.graph.as_ref().map_or(&[][..], |graph| &graph.initializer);
    // Weights that something else reads as they are stored are still pointed at.
    let left: u64 = initializers.iter().filter_map(|tensor| stored_bytes(checkpoint, tensor)).sum();
    report.weight_bytes = left + weights.conversions.iter().map(Conversion::bytes).sum::<u64>();
    report.initializers = initializers.len();
    let onnx = model.encode_to_vec();
    report.onnx_bytes = onnx.len();
    report.onnx_sha256 = hex::encode(Sha256::digest(&onnx));
    Ok((Exported { onnx, report, ..exported }, Some(weights)))
}

/// [`materialise`] for a graph of this checkpoint that is no export of its own, such as one with more outputs. Two graphs can share
/// a file if it is the [same](ConvertedWeights::same_file).
pub fn materialise_graph(
    checkpoint: &Checkpoint,
    onnx: &[u8],
    file: &str,
) -> Result<Option<(Vec<u8>, ConvertedWeights)>, ExportError> {
    let mut model = read(checkpoint, onnx)?;
    let weights = take_casts_away(checkpoint, &mut model, file)?;
    Ok(weights.map(|weights| (model.encode_to_vec(), weights)))
}

fn read(checkpoint: &Checkpoint, onnx: &[u8]) -> Result<ModelProto, ExportError> {
    ModelProto::decode(onnx).map_err(|error| ExportError::Io {
        doing: "read the graph of",
        path: checkpoint.folder().to_owned(),
        source: io::Error::other(error),
    })
}

/// Has the graph point at converted weights where it has casts; `None` if it has none.
fn take_casts_away(
    checkpoint: &Checkpoint,
    model: &mut ModelProto,
    file: &str,
) -> Result<Option<ConvertedWeights>, ExportError> {
    let Some(graph) = model.graph.as_mut() else { return Ok(None) };
    let stored: HashSet<&str> = graph
        .initializer
        .iter()
        .filter(|tensor| tensor.data_location == Some(1))
        .filter_map(|tensor| tensor.name.as_deref())
        .collect();
    // Name of the value, of the weight, and the type that it is wanted in.
    let mut casts: Vec<(String, String, DataType)> = Vec::new();
    for node in &graph.node {
        if let Some((weight, value, to)) = cast_of_weight(node, &stored)
            && checkpoint.has(weight)
        {
            casts.push((value.to_owned(), weight.to_owned(), to));
        }
    }
    if casts.is_empty() {
        return Ok(None);
    }
    let weights = ConvertedWeights::new(checkpoint, &casts)?;
    let values: HashSet<&str> = casts.iter().map(|(value, ..)| value.as_str()).collect();
    graph.node.retain(|node| !node.output.iter().any(|output| values.contains(output.as_str())));
    let mut offset = weights.header.len() as u64;
    for ((value, ..), conversion) in casts.iter().zip(&weights.conversions) {
        graph.initializer.push(conversion.initializer(value, file, offset));
        offset += conversion.bytes();
    }
    let used: HashSet<&str> = graph.node.iter().flat_map(|node| &node.input).map(String::as_str).collect();
    graph.initializer.retain(|tensor| tensor.name.as_deref().is_some_and(|name| used.contains(name)));
    Ok(Some(weights))
}

/// The weight, the value and the type of a node that casts a stored weight to a 16-bit float.
fn cast_of_weight<'a>(node: &'a NodeProto, stored: &HashSet<&str>) -> Option<(&'a str, &'a str, DataType)> {
    let ([weight], [value]) = (node.input.as_slice(), node.output.as_slice()) else { return None };
    if node.op_type() != "Cast" || !stored.contains(weight.as_str()) {
        return None;
    }
    let to = node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some("to"))?.i?;
    let to = DataType::from_onnx(i32::try_from(to).ok()?)?;
    matches!(to, DataType::F16 | DataType::Bf16).then_some((weight, value, to))
}

/// Bytes of a weight that lies where the checkpoint has it.
fn stored_bytes(checkpoint: &Checkpoint, tensor: &TensorProto) -> Option<u64> {
    checkpoint.tensor(tensor.name.as_deref()?).ok().map(|tensor| tensor.length_bytes)
}

impl ConvertedWeights {
    fn new(checkpoint: &Checkpoint, casts: &[(String, String, DataType)]) -> Result<Self, ExportError> {
        let (mut conversions, mut header, mut end) = (Vec::new(), serde_json::Map::new(), 0);
        for (_, weight, to) in casts {
            let conversion = Conversion { from: checkpoint.tensor(weight)?.clone(), to: *to };
            let start = end;
            end += conversion.bytes();
            let dtype = if *to == DataType::F16 { "F16" } else { "BF16" };
            header.insert(
                weight.clone(),
                json!({ "dtype": dtype, "shape": conversion.from.shape, "data_offsets": [start, end] }),
            );
            conversions.push(conversion);
        }
        let mut text = serde_json::Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
        let header = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
        Ok(Self { header, conversions })
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.conversions.iter().map(Conversion::bytes).sum::<u64>()
    }

    /// Whether both write the same file.
    #[must_use]
    pub fn same_file(&self, other: &Self) -> bool {
        self.header == other.header
    }

    /// Number of weights.
    #[must_use]
    pub fn count(&self) -> usize {
        self.conversions.len()
    }

    /// Writes the file, tensor by tensor, in the memory of some thousand elements. `each` is told the bytes written so far,
    /// and ends it by an error of its own.
    pub fn write(
        &self,
        checkpoint: &Checkpoint,
        out: &mut dyn Write,
        each: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> Result<(), ExportError> {
        let mut written = self.header.len() as u64;
        let beside = checkpoint.folder();
        out.write_all(&self.header).map_err(|source| ExportError::Io {
            doing: "write the converted weights of",
            path: beside.to_owned(),
            source,
        })?;
        for conversion in &self.conversions {
            let path = beside.join(&conversion.from.file);
            let io = |source| ExportError::Io { doing: "convert the weights in", path: path.clone(), source };
            let mut file = File::open(&path).map_err(io)?;
            file.seek(SeekFrom::Start(conversion.from.offset_bytes)).map_err(io)?;
            conversion
                .stream(&mut file, out, &mut |bytes| {
                    written += bytes;
                    each(written)
                })
                .map_err(io)?;
        }
        Ok(())
    }
}

impl Conversion {
    /// Bytes of the converted tensor. A checked shape: its stored bytes have a length in the file's header.
    fn bytes(&self) -> u64 {
        self.from.shape.iter().map(|size| *size as u64).product::<u64>() * 2
    }

    fn initializer(&self, name: &str, file: &str, offset: u64) -> TensorProto {
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        TensorProto {
            dims: self.from.shape.iter().map(|&size| crate::graph::dim(size)).collect(),
            data_type: Some(self.to.onnx()),
            name: Some(name.to_owned()),
            external_data: vec![
                entry("location", file.to_owned()),
                entry("offset", offset.to_string()),
                entry("length", self.bytes().to_string()),
            ],
            data_location: Some(1),
            ..TensorProto::default()
        }
    }

    fn stream(
        &self,
        from: &mut dyn Read,
        out: &mut dyn Write,
        each: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let size = match self.from.dtype {
            DataType::F64 => 8,
            DataType::F32 => 4,
            DataType::F16 | DataType::Bf16 => 2,
            other => return Err(io::Error::other(format!("{other:?} is no float"))),
        };
        let mut left = usize::try_from(self.bytes() / 2).unwrap_or(usize::MAX);
        let (mut bytes, mut converted) = (vec![0; CHUNK * size], vec![0; CHUNK * 2]);
        while left > 0 {
            let count = left.min(CHUNK);
            let (bytes, converted) = (&mut bytes[..count * size], &mut converted[..count * 2]);
            from.read_exact(bytes)?;
            self.convert(bytes, converted);
            out.write_all(converted)?;
            each(converted.len() as u64)?;
            left -= count;
        }
        Ok(())
    }

    /// A run of elements, each rounded once.
    fn convert(&self, stored: &[u8], converted: &mut [u8]) {
        match self.to {
            DataType::F16 => self.narrow::<f16>(stored, converted),
            _ => self.narrow::<bf16>(stored, converted),
        }
    }

    fn narrow<T: Narrow>(&self, stored: &[u8], converted: &mut [u8]) {
        let wide: Vec<f32> = match self.from.dtype {
            // Through fp32 it would be rounded twice.
            DataType::F64 => {
                let doubles =
                    stored.as_chunks().0.iter().map(|bytes| T::from_f64(f64::from_le_bytes(*bytes)));
                return put(doubles, converted);
            }
            DataType::F16 => {
                let halves: Vec<f16> =
                    stored.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
                halves.to_f32_vec()
            }
            DataType::Bf16 => {
                stored.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect()
            }
            _ => stored.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        };
        put(T::from_f32s(&wide).into_iter(), converted);
    }
}

fn put<T: Narrow>(numbers: impl Iterator<Item = T>, converted: &mut [u8]) {
    for (bytes, number) in converted.as_chunks_mut().0.iter_mut().zip(numbers) {
        *bytes = number.to_le_bytes();
    }
}

/// A float of 16 bits.
trait Narrow: Copy {
    fn from_f64(x: f64) -> Self;
    /// A slice at a time, for which processors have instructions.
    fn from_f32s(wide: &[f32]) -> Vec<Self>;
    fn to_le_bytes(self) -> [u8; 2];
}

impl Narrow for f16 {
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }

    fn from_f32s(wide: &[f32]) -> Vec<Self> {
        Vec::from_f32_slice(wide)
    }

    fn to_le_bytes(self) -> [u8; 2] {
        self.to_le_bytes()
    }
}

impl Narrow for bf16 {
    fn from_f64(x: f64) -> Self {
        Self::from_f64(x)
    }

    fn from_f32s(wide: &[f32]) -> Vec<Self> {
        Vec::from_f32_slice(wide)
    }

    fn to_le_bytes(self) -> [u8; 2] {
        self.to_le_bytes()
    }
}

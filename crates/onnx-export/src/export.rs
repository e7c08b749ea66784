//! From a checkpoint to the bytes of `model.onnx`.

use std::collections::{BTreeMap, BTreeSet};

use glob::Pattern;
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::Checkpoint;
use crate::families::Family;
use crate::graph::{Dim, Finished, Graph};
use crate::proto::{ModelProto, OperatorSetIdProto, StringStringEntryProto, ValueInfoProto};
use crate::range::Made;
use crate::{
    Bf16, CastCount, DataType, ExportError, Head, KeptModule, Packed, Precision, Ranges, Tap, families, heads,
};

/// How operations are written, where there is more than one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lowering {
    /// Operators of opset 17, which every runtime of the last years has.
    Portable,
    /// What TensorRT fuses best: single `Gelu`, `RMSNormalization`, `RotaryEmbedding` and (in 16-bit floats, where heads
    /// are large enough) `Attention` nodes, opset 23.
    TensorRt,
}

impl Lowering {
    /// Version of the standard operator set that the graph needs.
    #[must_use]
    pub fn opset(self) -> i64 {
        match self {
            Self::Portable => 17,
            Self::TensorRt => 23,
        }
    }

    /// The first IR version that has this operator set (`docs/Versioning.md` of ONNX).
    fn ir_version(self) -> i64 {
        match self {
            Self::Portable => 8,
            Self::TensorRt => 11,
        }
    }
}

/// What to export.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// What the graph gives.
    pub head: Head,
    /// What its matrix products compute in.
    pub precision: Precision,
    /// How its operations are written.
    pub lowering: Lowering,
    /// Modules that compute in fp32 whatever the precision, by name with `*`: `encoder.layer.1.attention.*`.
    /// A leading part may be left out: `layer.1.*`.
    pub keep_fp32: Vec<Pattern>,
    /// Modules that compute in fp32 because fp16 could not hold what they make or take, by their whole names, and why, for
    /// the report. [`range_probe`](crate::range_probe) finds them.
    pub too_large: BTreeMap<String, String>,
    /// What the 8-bit products of [`Precision::Int8`] and [`Precision::Fp8`] tell apart; one for every linear layer that
    /// computes in 8 bits.
    pub ranges: Ranges,
    /// Whether the graph also gives what goes into its linear layers, for [`ranges`](Self::ranges) to be found: see
    /// [`Exported::taps`].
    pub taps: bool,
    /// How bfloat16 values are kept; matters only for [`Precision::Bf16`] and for weights stored so.
    pub bf16: Bf16,
}

impl ExportOptions {
    /// The options for `head` in `precision`, written for TensorRT, with nothing kept in fp32.
    #[must_use]
    pub fn new(head: Head, precision: Precision) -> Self {
        Self {
            head,
            precision,
            lowering: Lowering::TensorRt,
            keep_fp32: Vec::new(),
            too_large: BTreeMap::new(),
            ranges: Ranges::new(),
            taps: false,
            bf16: Bf16::Native,
        }
    }

    /// The pattern of `keep_fp32` that names `module`, or the module from one of its dots on; by index.
    pub(crate) fn keeps_fp32(&self, module: &str) -> Option<usize> {
        let endings = || std::iter::once(0).chain(module.match_indices('.').map(|(dot, _)| dot + 1));
        self.keep_fp32.iter().position(|pattern| {
            endings().any(|start| module.get(start..).is_some_and(|ending| pattern.matches(ending)))
        })
    }
}

/// An exported graph.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The bytes of `model.onnx`. It must lie in the folder of the safetensors files that it points into.
    pub onnx: Vec<u8>,
    /// What is in it.
    pub report: ExportReport,
    /// The outputs that show what goes into linear layers; none unless asked for.
    pub taps: Vec<Tap>,
    /// The file of weights in few bits that has to lie beside the graph, for the precisions that have one.
    pub packed: Option<Packed>,
}

/// What an exported graph consists of.
#[derive(Clone, Debug, Serialize)]
pub struct ExportReport {
    /// `model_type` of the checkpoint.
    pub model_type: String,
    /// What the graph gives.
    pub head: Head,
    /// What its matrix products compute in.
    pub precision: Precision,
    /// How its operations are written; not known of a graph that another program wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lowering: Option<Lowering>,
    /// Version of the standard operator set.
    pub opset: i64,
    /// Inputs, in order.
    pub inputs: Vec<TensorDescription>,
    /// Outputs, in order.
    pub outputs: Vec<TensorDescription>,
    /// Number of nodes.
    pub nodes: usize,
    /// Number of nodes of each operator.
    pub operators: BTreeMap<String, usize>,
    /// Number of initializers, constants included.
    pub initializers: usize,
    /// Number of weights that a `Cast` turns into another type.
    pub weight_casts: usize,
    /// How many values go from which type to which; those are casts between the types of the graph, so bfloat16 that is
    /// emulated counts as such.
    pub casts: Vec<CastCount>,
    /// What computes in fp32 although the precision is lower, and why.
    pub kept_fp32: Vec<KeptModule>,
    /// Bytes of weights that the graph points at.
    pub weight_bytes: u64,
    /// Longest sequence, in tokens, that the position embeddings allow.
    pub max_sequence: usize,
    /// Size of `model.onnx` in bytes.
    pub onnx_bytes: usize,
    /// SHA-256 of `model.onnx`, lower-case hexadecimal.
    pub onnx_sha256: String,
}

/// Name, element type and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorDescription {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DataType,
    /// Dimensions: a number, or the name of a dynamic size.
    pub shape: Vec<String>,
}

impl From<&ValueInfoProto> for TensorDescription {
    fn from(value: &ValueInfoProto) -> Self {
        let tensor = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        let dims = tensor.and_then(|tensor| tensor.shape.as_ref()).map_or(&[][..], |shape| &shape.dim);
        let word = |dim: &crate::proto::DimensionProto| {
            dim.dim_param.clone().unwrap_or_else(|| dim.dim_value.unwrap_or_default().to_string())
        };
        Self {
            name: value.name.clone().unwrap_or_default(),
            dtype: tensor.and_then(|tensor| DataType::from_onnx(tensor.elem_type?)).unwrap_or(DataType::F32),
            shape: dims.iter().map(word).collect(),
        }
    }
}

/// Refuses a checkpoint whose family cannot be exported, before anything else is looked at.
pub fn require_supported(checkpoint: &Checkpoint) -> Result<(), ExportError> {
    families::open(checkpoint).map(|_| ())
}

/// Writes the whole model: a family's layers, and the head that was asked for.
fn write(family: &dyn Family, graph: &mut Graph<'_>, head: &Head) -> Result<(), ExportError> {
    if let Head::CausalLm { cache } = head {
        return family.causal_lm(graph, *cache);
    }
    let hidden = family.encode(graph)?;
    let size = family.hidden_size();
    match head {
        Head::SentenceEmbedding(head) => heads::sentence_embedding(graph, &hidden, size, head)?,
        Head::SequenceClassification => {
            let (logits, labels) = family.classify(graph, &hidden)?;
            graph.output(head.output(), &logits, &[Dim::Batch, Dim::Fixed(labels)]);
        }
        Head::TokenClassification => {
            let (logits, labels) = family.classify_tokens(graph, &hidden)?;
            heads::token_logits(graph, &logits, labels)?;
        }
        Head::HiddenStates | Head::CausalLm { .. } => heads::hidden_states(graph, &hidden, size)?,
    }
    Ok(())
}

/// A graph as a message, and what is known of it beside its bytes.
pub(crate) struct Written {
    pub(crate) model: ModelProto,
    pub(crate) made: Vec<Made>,
    pub(crate) narrowed: BTreeMap<String, BTreeSet<String>>,
    taps: Vec<Tap>,
    packed: Option<Packed>,
    report: ExportReport,
}

/// Writes the graph of `checkpoint`. Reads no weights: the cost does not grow with the model.
pub fn export(checkpoint: &Checkpoint, options: &ExportOptions) -> Result<Exported, ExportError> {
    let Written { model, taps, packed, mut report, .. } = written(checkpoint, options)?;
    let onnx = model.encode_to_vec();
    report.onnx_bytes = onnx.len();
    report.onnx_sha256 = hex::encode(Sha256::digest(&onnx));
    Ok(Exported { onnx, report, taps, packed })
}

/// [`export`] before the graph is turned into bytes.
pub(crate) fn written(checkpoint: &Checkpoint, options: &ExportOptions) -> Result<Written, ExportError> {
    let family = families::open(checkpoint)?;
    let mut graph = Graph::new(checkpoint, options);
    write(&*family, &mut graph, &options.head)?;
    if let Some(pattern) = graph.idle_pattern() {
        return Err(ExportError::NoSuchModule { pattern: pattern.to_owned() });
    }
    let Finished { mut proto, taps, weight_bytes, weight_casts, ledger, made, narrowed, packed } =
        graph.finish();
    let packed = Packed::lay_out(options.precision, packed, &mut proto.initializer);
    let (kept_fp32, casts) = ledger.finish();
    let mut operators = BTreeMap::new();
    for node in &proto.node {
        *operators.entry(node.op_type().to_owned()).or_default() += 1;
    }
    let report = ExportReport {
        model_type: checkpoint.model_type().to_owned(),
        head: options.head.clone(),
        precision: options.precision,
        lowering: Some(options.lowering),
        opset: options.lowering.opset(),
        inputs: proto.input.iter().map(Into::into).collect(),
        outputs: proto.output.iter().map(Into::into).collect(),
        nodes: proto.node.len(),
        operators,
        initializers: proto.initializer.len(),
        weight_casts,
        casts,
        kept_fp32,
        weight_bytes,
        max_sequence: family.max_sequence(),
        onnx_bytes: 0,
        onnx_sha256: String::new(),
    };
    let property = |key: &str, value: &str| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    };
    let model = ModelProto {
        ir_version: Some(options.lowering.ir_version()),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(options.lowering.opset()),
        }],
        producer_name: Some(env!("CARGO_PKG_NAME").to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        graph: Some(proto),
        metadata_props: vec![
            property("model_type", checkpoint.model_type()),
            property("precision", options.precision.as_str()),
        ],
    };
    Ok(Written { model, made, narrowed, taps, packed, report })
}

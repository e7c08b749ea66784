//! A graph that came as ONNX: read, described, and held to what a tokenizer can feed and the gate can judge.
//!
//! It is taken as it is. What could be wrong with its numbers is told by a reference, where there is one; without, only
//! what is wrong with an output by itself can show.

mod alone;
mod data;
mod error;
mod interface;
mod schema;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use model_loader::ModelConfig;
use model_store::Digest;
use onnx_export::{
    Checkpoint, ExportError, ExportOptions, ExportReport, Exported, Head, Precision, SentenceHead,
};
use prost::Message;
use serde::Serialize;
use serde_json::Value;

pub(crate) use alone::Alone;
pub use error::GraphError;
use schema::Model;

use crate::error::CompileError;
use crate::job::{Job, ModelSource, WeightForm, fp32_bytes};
use crate::payload;

/// No protocol-buffer file is larger; what is, has its tensors in other files.
const MAX_GRAPH_BYTES: u64 = 2 << 30;
/// No engine takes longer sequences: TensorRT counts in 32 bits with a sign.
const MAX_SEQUENCE: usize = i32::MAX as usize;
/// No `config.json` is larger.
const MAX_CONFIG_BYTES: u64 = 64 << 20;
/// Operators that compute in 8 bits, or turn numbers into such.
const QUANTIZED: [&str; 7] = [
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearMatMul",
    "QLinearConv",
    "MatMulInteger",
    "ConvInteger",
];

/// Where a graph came from and what it is made of, as `evidence.json` has it.
#[derive(Clone, Debug, Serialize)]
pub struct GraphRecord {
    /// Its file: within the model's folder, or by its whole path.
    pub file: String,
    /// What wrote it, in its own words.
    pub producer: String,
    /// Version of the file format.
    pub ir_version: i64,
    /// Versions of its operator sets; ONNX's own has no name.
    pub opsets: BTreeMap<String, i64>,
    /// The files that its tensors lie in, beside it, and their sizes in bytes.
    pub data_bytes: BTreeMap<String, u64>,
}

/// What a graph is compared with.
#[derive(Clone, Debug)]
pub(crate) enum Against {
    /// The model in this folder.
    Model(PathBuf),
    /// Nothing; this is why.
    Nothing(String),
}

impl Against {
    /// For evidence and reports.
    pub(crate) fn words(&self, head: &Head) -> String {
        match self {
            Self::Nothing(why) => {
                format!("nothing, so only NaN, infinite and constant outputs would have been seen: {why}")
            }
            Self::Model(folder) => {
                let by = if matches!(head, Head::CausalLm { .. }) { "candle" } else { "own kernels" };
                format!("{}, {by}, fp32", folder.display())
            }
        }
    }
}

/// A graph that is taken as it is.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) path: PathBuf,
    pub(crate) record: GraphRecord,
    /// The output that is judged.
    pub(crate) output: String,
    pub(crate) against: Against,
    /// What the reference takes in fp32, as far as that is known; 0 without one.
    pub(crate) reference_bytes: u64,
}

/// What there is to know of a job's graph before anything runs.
pub(crate) struct Described {
    pub(crate) given: Given,
    pub(crate) exported: Exported,
    pub(crate) options: ExportOptions,
    pub(crate) files: Vec<String>,
}

/// What a folder says of its model, as far as it says anything.
struct Folder {
    config: Value,
    /// Its safetensors, where they are of a family that can be a reference.
    checkpoint: Result<Checkpoint, String>,
}

/// The precision that the graph in a file computes in: what to ask for where it is taken as it is.
pub fn graph_precision(path: &Path) -> Result<Precision, GraphError> {
    Ok(precision(&read(path)?.0))
}

/// Reads the graph and the folder of a job, and refuses what cannot be taken.
pub(crate) fn describe(job: &Job, onnx: &Path, files: &ModelSource) -> Result<Described, CompileError> {
    let (model, bytes, sha256) = read(onnx)?;
    let own = precision(&model);
    if job.precision != own && (job.precision, own) != (Precision::Tf32, Precision::Fp32) {
        return Err(GraphError::Precision { path: onnx.to_owned(), own, asked: job.precision }.into());
    }
    let options = [
        (!job.keep_fp32.is_empty(), "--keep-fp32"),
        (job.calibration.is_some(), "--calib-data"),
        (job.weights == WeightForm::Materialised, "--materialise"),
    ];
    if let Some((_, option)) = options.into_iter().find(|(is_asked, _)| *is_asked) {
        return Err(GraphError::Option { path: onnx.to_owned(), option }.into());
    }
    let folder = Folder::open(files.folder())?;
    let interface = interface::read(&model, onnx, &folder.config)?;
    let roots = roots(onnx, files.folder())?;
    let data_bytes = data::files(&model, onnx, &roots)?;
    let head = match interface.head {
        Head::SentenceEmbedding(_) => Head::SentenceEmbedding(match &folder.checkpoint {
            Ok(checkpoint) => SentenceHead::read(checkpoint)?.unwrap_or_default(),
            Err(_) => SentenceHead::default(),
        }),
        head => head,
    };
    let against = against(job, onnx, &folder, files.folder(), &head, &interface.output)?;
    let listed = listed(files, &folder, &against, &data_bytes)?;
    let file = onnx.strip_prefix(files.folder()).unwrap_or(onnx).display().to_string();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let record = GraphRecord {
        file,
        producer: format!("{} {}", text(&model.producer_name), text(&model.producer_version))
            .trim()
            .to_owned(),
        ir_version: model.ir_version.unwrap_or_default(),
        opsets: model
            .opset_import
            .iter()
            .map(|set| (text(&set.domain).replace("ai.onnx", ""), set.version.unwrap_or_default()))
            .collect(),
        data_bytes,
    };
    let report = report(&model, &record, &head, job.precision, &folder, files.folder());
    let report = ExportReport {
        inputs: interface.inputs,
        outputs: interface.outputs,
        onnx_bytes: bytes,
        onnx_sha256: sha256,
        ..report
    };
    Ok(Described {
        given: Given {
            path: onnx.to_owned(),
            record,
            output: interface.output,
            reference_bytes: reference_bytes(&against),
            against,
        },
        options: ExportOptions::new(head, job.precision),
        exported: Exported { onnx: Vec::new(), report, taps: Vec::new(), packed: None },
        files: listed,
    })
}

/// The graph in a file without its tensors' bytes, its size, and its SHA-256.
fn read(path: &Path) -> Result<(Model, usize, String), GraphError> {
    let io = |source| GraphError::Io { path: path.to_owned(), source };
    let not_onnx = |reason: String| GraphError::NotOnnx { path: path.to_owned(), reason };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(not_onnx("it is no regular file".to_owned()));
    }
    if metadata.len() > MAX_GRAPH_BYTES {
        return Err(not_onnx(format!(
            "it has {} bytes, and no such file has more than 2 GiB",
            metadata.len()
        )));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_GRAPH_BYTES).read_to_end(&mut bytes)).map_err(io)?;
    let model = Model::decode(bytes.as_slice()).map_err(|error| not_onnx(error.to_string()))?;
    if model.graph.as_ref().is_none_or(|graph| graph.node.is_empty()) {
        return Err(not_onnx("there is no graph in it".to_owned()));
    }
    Ok((model, bytes.len(), Digest::of(&bytes).to_string()))
}

impl Folder {
    fn open(path: &Path) -> Result<Self, CompileError> {
        let config = match File::open(path.join("config.json")) {
            Ok(file) => serde_json::from_reader(file.take(MAX_CONFIG_BYTES)).unwrap_or_default(),
            Err(_) => Value::Null,
        };
        let checkpoint = Checkpoint::open(path)
            .and_then(|checkpoint| onnx_export::require_supported(&checkpoint).map(|()| checkpoint));
        let checkpoint = match checkpoint {
            Ok(checkpoint) => Ok(checkpoint),
            // That there is no reference is no error. That the weights beside the graph are damaged is one.
            Err(
                error @ (ExportError::NoConfig { .. }
                | ExportError::NoWeights { .. }
                | ExportError::UnsupportedFamily { .. }
                | ExportError::Unsupported { .. }
                | ExportError::Dtype { .. }),
            ) => Err(error.to_string()),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { config, checkpoint })
    }

    fn model_type(&self) -> &str {
        self.config.get("model_type").and_then(Value::as_str).unwrap_or("onnx")
    }
}

/// What the graph's output is held against: the folder asked for, else the weights beside it.
fn against(
    job: &Job,
    onnx: &Path,
    folder: &Folder,
    path: &Path,
    head: &Head,
    output: &str,
) -> Result<Against, CompileError> {
    let labels_tokens = matches!(head, Head::TokenClassification);
    if let Some(reference) = &job.reference {
        if labels_tokens {
            return Err(GraphError::NoReference { path: onnx.to_owned(), output: output.to_owned() }.into());
        }
        return Ok(Against::Model(reference.clone()));
    }
    Ok(match &folder.checkpoint {
        Ok(_) if labels_tokens => Against::Nothing("no reference here labels tokens".to_owned()),
        Ok(_) => Against::Model(path.to_owned()),
        Err(why) => Against::Nothing(why.clone()),
    })
}

fn reference_bytes(against: &Against) -> u64 {
    match against {
        Against::Model(folder) => Checkpoint::open(folder).map_or(0, |it| fp32_bytes(&it)),
        Against::Nothing(_) => 0,
    }
}

/// The files of the model that go with the graph. Weights only where they are the reference or what the graph points into:
/// others nobody has looked at.
fn listed(
    files: &ModelSource,
    folder: &Folder,
    against: &Against,
    data_bytes: &BTreeMap<String, u64>,
) -> Result<Vec<String>, CompileError> {
    let path = files.folder();
    let is_checked = matches!(against, Against::Model(model) if model == path);
    let listed = crate::job::listed(files)?;
    let is_weight = |name: &str| name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    let of_model =
        |name: &str| folder.checkpoint.as_ref().is_ok_and(|it| it.weight_files().any(|file| file == name));
    let is_wanted = |name: &String| {
        !is_weight(name)
            || data_bytes.contains_key(name)
            || is_checked
                && (name.contains('/') || name.ends_with(".safetensors.index.json") || of_model(name))
    };
    Ok(listed.into_iter().filter(is_wanted).collect())
}

/// Where the files of a graph may be: below its folder, below the model's, or among the blobs of the Hub's cache.
fn roots(onnx: &Path, folder: &Path) -> Result<Vec<PathBuf>, GraphError> {
    let mut roots = Vec::new();
    for folder in [data::folder_of(onnx), folder] {
        let io = |source| GraphError::Io { path: folder.to_owned(), source };
        roots.extend(payload::allowed(folder).map_err(io)?);
    }
    Ok(roots)
}

/// What a graph computes in: as our own exports say, else 8 bits where it has such products, else the type of most of
/// its weights.
fn precision(model: &Model) -> Precision {
    if model.producer_name.as_deref() == Some("onnx-export") {
        let said = model.metadata_props.iter().find(|it| it.key.as_deref() == Some("precision"));
        if let Some(precision) = said.and_then(|it| it.value.as_deref()?.parse().ok()) {
            return precision;
        }
    }
    let tensors = model.tensors();
    if model.nodes().iter().any(|node| node.op_type.as_deref().is_some_and(|it| QUANTIZED.contains(&it))) {
        let is_float8 = tensors.iter().any(|tensor| matches!(tensor.data_type, Some(17..=20)));
        return if is_float8 { Precision::Fp8 } else { Precision::Int8 };
    }
    let bytes_of = |dtype: i32| {
        let of_type = tensors.iter().filter(|tensor| tensor.data_type == Some(dtype));
        of_type.filter_map(|tensor| tensor.bytes()).fold(0_u64, u64::saturating_add)
    };
    let (half, brain, single) = (bytes_of(10), bytes_of(16), bytes_of(1));
    if half > single && half >= brain {
        Precision::Fp16
    } else if brain > single {
        Precision::Bf16
    } else {
        Precision::Fp32
    }
}

/// What can be said of the graph in the words of an export. Of casts and of what is kept in fp32 nothing is known.
fn report(
    model: &Model,
    record: &GraphRecord,
    head: &Head,
    precision: Precision,
    folder: &Folder,
    path: &Path,
) -> ExportReport {
    let nodes = model.nodes();
    let mut operators = BTreeMap::new();
    for node in &nodes {
        *operators.entry(node.operator()).or_default() += 1;
    }
    let tensors = model.tensors();
    ExportReport {
        model_type: folder.model_type().to_owned(),
        head: head.clone(),
        precision,
        lowering: None,
        opset: record.opsets.get("").copied().unwrap_or_default(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        nodes: nodes.len(),
        operators,
        initializers: model.graph.as_ref().map_or(0, |graph| graph.initializer.len()),
        weight_casts: 0,
        casts: Vec::new(),
        kept_fp32: Vec::new(),
        weight_bytes: tensors.iter().filter_map(|it| it.bytes()).fold(0, u64::saturating_add),
        max_sequence: max_sequence(folder, path),
        onnx_bytes: 0,
        onnx_sha256: String::new(),
    }
}

/// The longest sequence that the model has positions for, as far as its folder says.
fn max_sequence(folder: &Folder, path: &Path) -> usize {
    if let Ok(config) = ModelConfig::from_dir(path) {
        return config.max_tokens();
    }
    let said = ["max_position_embeddings", "n_positions", "max_sequence_length"]
        .into_iter()
        .find_map(|key| folder.config.get(key)?.as_u64());
    said.and_then(|said| usize::try_from(said).ok())
        .filter(|said| (1..MAX_SEQUENCE).contains(said))
        .unwrap_or(MAX_SEQUENCE)
}

#[cfg(test)]
mod tests {
    use onnx_export::Precision;
    use onnx_export::proto::StringStringEntryProto;

    use super::precision;
    use super::schema::{Graph, Model, Node, Tensor};

    #[test]
    fn what_a_graph_computes_in_is_told_by_its_weights_and_products() {
        let tensor =
            |data_type, size| Tensor { dims: vec![size], data_type: Some(data_type), ..Tensor::default() };
        let check = |row: &str, weights: &[(i32, i64)], operators: &[&str], expected: Precision| {
            let node = |operator: &&str| Node { op_type: Some((*operator).to_owned()), ..Node::default() };
            let graph = Graph {
                initializer: weights.iter().map(|(dtype, size)| tensor(*dtype, *size)).collect(),
                node: operators.iter().map(node).collect(),
                ..Graph::default()
            };
            let model = Model { graph: Some(graph), ..Model::default() };
            assert_eq!(precision(&model), expected, "{row}");
        };
        check("no weights", &[], &["Add"], Precision::Fp32);
        check("floats", &[(1, 100), (7, 9000)], &["MatMul"], Precision::Fp32);
        check("halves with norms in fp32", &[(10, 100), (1, 10)], &["MatMul"], Precision::Fp16);
        check("floats with some halves", &[(10, 100), (1, 60)], &["MatMul"], Precision::Fp32);
        check("bfloat16", &[(16, 100), (1, 10)], &["MatMul"], Precision::Bf16);
        check("8 bits", &[(3, 100), (1, 10)], &["QuantizeLinear", "MatMul"], Precision::Int8);
        check("dynamic 8 bits", &[(3, 100)], &["MatMulInteger"], Precision::Int8);
        check("floats of 8 bits", &[(17, 100)], &["DequantizeLinear"], Precision::Fp8);

        let ours = |word: &str| Model {
            producer_name: Some("onnx-export".to_owned()),
            metadata_props: vec![StringStringEntryProto {
                key: Some("precision".to_owned()),
                value: Some(word.to_owned()),
            }],
            ..Model::default()
        };
        assert_eq!(precision(&ours("fp16")), Precision::Fp16, "our own say it, whatever they point at");
        assert_eq!(precision(&ours("fp12")), Precision::Fp32, "and are not believed blindly");
    }
}

//! What a published version says about how it was made: `evidence.json`, `engine.json` and the manifest's metadata.

use onnx_export::{ExportReport, Precision, Ranges};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::calibrate::Method;
use crate::engine::{EngineFacts, EngineOptions, InputShape};
use crate::gate::Verdict;
use crate::given::GraphRecord;
use crate::overflow::OverflowRecord;
use crate::pack::PackedRecord;
use crate::profile::Profile;
use crate::target::Target;

/// Where a model came from, for whoever audits the version later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Provenance {
    /// A folder on this host.
    Folder {
        /// Its path.
        path: String,
    },
    /// A published version of the same store.
    Store {
        /// The agent.
        agent: String,
        /// The version.
        version: String,
        /// Its checksum.
        checksum: String,
    },
    /// A snapshot of a Hub repository.
    Hub {
        /// The repository: `organisation/name`.
        model_id: String,
        /// The revision that was asked for.
        revision: String,
        /// The commit it stood for.
        commit: String,
    },
}

/// `engine.json`: what a host must be, to run the plan beside it.
#[derive(Clone, Debug, Serialize)]
pub struct EngineDescription {
    /// Format of this file.
    pub format: u32,
    /// `tensorrt-rtx`.
    pub flavour: String,
    /// What built it, and how that went.
    #[serde(flatten)]
    pub facts: EngineFacts,
    /// SHA-256 of the plan.
    pub plan_sha256: String,
    /// The GPU generations it runs on, by compute capability.
    pub targets: Vec<Target>,
    /// What its matrix products compute in.
    pub precision: Precision,
    /// Batch × sequence (× tokens in the cache), of the first profile; further ones are among the options.
    pub profile: Profile,
    /// How it was built, where that was not left to TensorRT.
    pub options: EngineOptions,
    /// SHA-256 over everything it was built from: engines of one key are interchangeable.
    pub key: String,
    /// The version whose engine was taken over instead of a build: `agent/version`. The facts are that build's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reused_from: Option<String>,
    /// Inputs with the span of each dimension.
    pub inputs: Vec<InputShape>,
    /// Outputs: name, element type, shape.
    pub outputs: Vec<onnx_export::TensorDescription>,
    /// SHA-256 of the graph it was built from.
    pub onnx_sha256: String,
    /// SHA-256 of each weight file it was built from.
    pub weights_sha256: Map<String, Value>,
    /// What was checked on the building host: the graph was, the plan is only where there is a GPU.
    pub checked: String,
}

/// How the ranges of 8-bit products were found.
#[derive(Clone, Debug, Serialize)]
pub struct CalibrationRecord {
    /// Where the texts were from.
    pub source: String,
    /// Number of texts.
    pub texts: usize,
    /// SHA-256 of the texts, joined by line feeds.
    pub texts_sha256: String,
    /// How a range follows from what was seen.
    pub method: Method,
    /// The range of what goes into each layer.
    pub ranges: Ranges,
}

/// `evidence.json`: the gate's measurements and everything they depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Evidence {
    /// Format of this file.
    pub format: u32,
    /// Where the model came from.
    pub source: Provenance,
    /// The graph, where it came as ONNX; absent where it was exported here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph: Option<GraphRecord>,
    /// What was compared with what.
    pub reference: String,
    /// Number of texts.
    pub texts: usize,
    /// SHA-256 of the texts, joined by line feeds.
    pub texts_sha256: String,
    /// How bfloat16 was computed in the check; absent for other precisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bf16: Option<onnx_export::Bf16>,
    /// Modules that compute in fp32 whatever the precision.
    pub keep_fp32: Vec<String>,
    /// Whether weights were to lie in the graph's precision, in a file of their own.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub materialised: bool,
    /// How the ranges of 8-bit products were found; absent for other precisions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationRecord>,
    /// What fp16 was found too narrow for; absent where nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overflow: Option<OverflowRecord>,
    /// The weights in few bits; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packed: Option<PackedRecord>,
    /// The exported graph.
    pub export: ExportReport,
    /// The verdict on the graph.
    pub verdict: Verdict,
    /// The verdict on the engine itself; absent where the building host has no GPU that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_verdict: Option<Verdict>,
    /// Tools and their versions.
    pub tools: Map<String, Value>,
    /// Name of the building host.
    pub host: String,
}

/// The manifest's metadata: what an operator wants to see without opening another file.
#[must_use]
pub(crate) fn metadata(evidence: &Evidence, engine: Option<&EngineDescription>) -> Map<String, Value> {
    let measured = &evidence.verdict.comparison;
    let engine = engine.map(|engine| {
        json!({
            "flavour": engine.flavour, "version": engine.facts.version, "targets": engine.targets,
            "profile": engine.profile.to_string(),
        })
    });
    let entries = [
        ("source", json!(evidence.source)),
        ("task", json!(task(&evidence.export))),
        ("model_type", json!(evidence.export.model_type)),
        ("precision", json!(evidence.export.precision)),
        ("engine", json!(engine)),
        ("keep_fp32", json!(evidence.keep_fp32)),
        ("kv_cache", json!(matches!(evidence.export.head, onnx_export::Head::CausalLm { cache: true }))),
        (
            "calibration",
            json!(
                evidence
                    .calibration
                    .as_ref()
                    .map(|it| json!({ "texts_sha256": it.texts_sha256, "method": it.method }))
            ),
        ),
        (
            "gate",
            json!({
                "output": measured.output, "rows": measured.rows, "max_abs": measured.max_abs,
                "cosine_min": measured.cosine_min, "top1": measured.top1,
            }),
        ),
        ("tools", json!(evidence.tools)),
        ("build_host", json!(evidence.host)),
    ];
    // Only where there is something to say: versions are compared by what their metadata has.
    let graph = evidence.graph.as_ref().map(|graph| ("graph", json!({ "given": graph.file })));
    let materialised = evidence.materialised.then(|| ("materialised", json!(true)));
    entries.into_iter().chain(graph).chain(materialised).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What the model does, as the Hub calls it.
#[must_use]
pub(crate) fn task(export: &ExportReport) -> &'static str {
    match export.head {
        onnx_export::Head::HiddenStates => "feature-extraction",
        onnx_export::Head::SentenceEmbedding(_) => "sentence-similarity",
        onnx_export::Head::SequenceClassification => "text-classification",
        onnx_export::Head::TokenClassification => "token-classification",
        onnx_export::Head::CausalLm { .. } => "text-generation",
    }
}

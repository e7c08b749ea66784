//! What is asked for, and what it would come to.

use std::path::{Path, PathBuf};

use model_store::{Activation, AgentName, Current, ModelStore, VersionName};
use onnx_export::{
    Checkpoint, ExportOptions, ExportReport, Exported, Head, LinearRange, Pattern, Precision, Ranges,
    SentenceHead,
};
use serde::Serialize;

use crate::calibrate::Method;
use crate::engine::{BuildOptions, EngineOptions, check_options, gate_memory_bytes, needed_memory_bytes};
use crate::error::CompileError;
use crate::evidence::Provenance;
use crate::gate::{ThresholdWishes, Thresholds};
use crate::given::{self, Described, Given, GraphRecord};
use crate::overflow::{Limits, Overflow};
use crate::payload;
use crate::profile::Profile;
use crate::reuse::Reuse;
use crate::run::CHECK_TOKENS;
use crate::runtimes::Runtimes;
use crate::target::Target;

/// Ada was the first generation with 8-bit floats (TensorRT's support matrix).
const FIRST_SM_WITH_FP8: u16 = 89;

/// Where the model's files are.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A folder outside the store: its files are copied.
    Folder {
        /// The folder.
        path: PathBuf,
        /// What to write down about it.
        provenance: Provenance,
    },
    /// A published version of the same store: its files are shared.
    Published(Current),
    /// A graph that came as ONNX, which is taken as it is.
    Graph {
        /// Its file; its data lies beside it.
        onnx: PathBuf,
        /// Where configuration and tokenizer are, and maybe weights to compare with. Never another graph.
        files: Box<ModelSource>,
    },
}

impl ModelSource {
    /// The folder with `config.json`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        match self {
            Self::Folder { path, .. } => path,
            Self::Published(version) => version.path(),
            Self::Graph { files, .. } => files.folder(),
        }
    }

    /// What to write down about it.
    #[must_use]
    pub fn provenance(&self) -> Provenance {
        match self {
            Self::Folder { provenance, .. } => provenance.clone(),
            Self::Published(version) => Provenance::Store {
                agent: version.agent().to_string(),
                version: version.version().to_string(),
                checksum: version.checksum().to_string(),
            },
            Self::Graph { files, .. } => files.provenance(),
        }
    }
}

/// Whether a run builds an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineWish {
    /// It does.
    Build,
    /// The version holds the model and the checked graph, and no plan.
    Skip,
}

/// Whether other runs go on beside this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostUse {
    /// None does: the engine is built while the graph is checked, if there is memory for both.
    #[default]
    Alone,
    /// Others share processors and memory, so one thing is done after the other.
    Shared,
}

/// In which type the weights lie that the graph points at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightForm {
    /// As they are stored; the graph casts them.
    #[default]
    Stored,
    /// In the graph's own precision, in a file of their own beside the model's.
    Materialised,
}

/// Whether the engine of a language model keeps keys and values between calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvCache {
    /// They go out of one call and into the next. With an empty cache such an engine also takes whole texts.
    #[default]
    With,
    /// Each call computes a whole text.
    Without,
}

/// What the ranges of 8-bit products are found with, and what fp16 is too narrow for.
#[derive(Clone, Debug)]
pub struct Calibration {
    /// Texts like those that the model will read.
    pub texts: Vec<String>,
    /// Where they are from, for whoever audits the version.
    pub source: String,
    /// How a range follows from what was seen.
    pub method: Method,
}

/// Everything a run depends on.
#[derive(Clone, Debug)]
pub struct Job {
    /// The store that the version goes to.
    pub store: ModelStore,
    /// Whose model it is.
    pub agent: AgentName,
    /// What the version will be called.
    pub version: VersionName,
    /// Where the model's files are.
    pub source: ModelSource,
    /// What the matrix products compute in.
    pub precision: Precision,
    /// Modules that compute in fp32 whatever the precision.
    pub keep_fp32: Vec<Pattern>,
    /// In which type the weights lie that the graph points at.
    pub weights: WeightForm,
    /// What happens to modules that fp16 is too narrow for; matters only where products compute in fp16.
    pub overflow: Overflow,
    /// Whether a language model's engine has a cache; matters only for these.
    pub kv_cache: KvCache,
    /// What int8 and fp8 need. fp16 looks for overflow on these texts instead of those of the check; no other precision
    /// has a use for them.
    pub calibration: Option<Calibration>,
    /// The shapes of the engine; the default, capped to the model's longest sequence, unless given.
    pub profile: Option<Profile>,
    /// The GPU generations of the engine.
    pub targets: Vec<Target>,
    /// Whether to build an engine.
    pub engine: EngineWish,
    /// A folder to compare with instead of the model itself.
    pub reference: Option<PathBuf>,
    /// The texts of the check.
    pub texts: Vec<String>,
    /// Other thresholds than the table's.
    pub thresholds: ThresholdWishes,
    /// Whether a refusal says at which node the graph parts from the same graph in fp32.
    pub explain: bool,
    /// Whether the version becomes current.
    pub activation: Activation,
    /// After publishing, retire what retention does not keep, with so many of the newest versions kept.
    pub keep: Option<usize>,
    /// Where the native libraries are.
    pub runtimes: Runtimes,
    /// Who else uses this host.
    pub host: HostUse,
    /// How to run the engine builder.
    pub build: BuildOptions,
    /// How the engine is built beyond what its graph says.
    pub options: EngineOptions,
    /// Whether an equal engine of the store may take the place of a build.
    pub reuse: Reuse,
}

/// What a run would do; made without writing anything.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Whose model it is.
    pub agent: AgentName,
    /// What the version would be called.
    pub version: VersionName,
    /// Where the model's files are.
    pub source: Provenance,
    /// The graph.
    pub export: ExportReport,
    /// The files of the model.
    pub files: Vec<String>,
    /// The shapes of the engine.
    pub profile: Profile,
    /// Further ones.
    pub more_profiles: Vec<Profile>,
    /// What fp16 is trusted with: what is over it is looked for before the graph is written, and kept in fp32. Absent where
    /// nobody looks.
    pub overflow: Option<Limits>,
    /// The longest text of any of its profiles.
    #[serde(skip)]
    pub(crate) longest: usize,
    /// The GPU generations of the engine.
    pub targets: Vec<Target>,
    /// How far an output may be from the reference.
    pub thresholds: Thresholds,
    /// The graph, where it came as ONNX.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph: Option<GraphRecord>,
    /// What such a graph would be compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    #[serde(skip)]
    pub(crate) given: Option<Given>,
    /// What the reference takes in fp32.
    #[serde(skip)]
    pub(crate) reference_bytes: u64,
    #[serde(skip)]
    pub(crate) exported: Exported,
    #[serde(skip)]
    pub(crate) options: ExportOptions,
}

impl Plan {
    /// The memory that a run takes, about: that of the gate, and of an engine's builder after it, whichever is more. One
    /// has given its memory back when the other begins, unless there is enough for both.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.check_bytes().max(self.builder_bytes())
    }

    /// The memory that the builder of an engine takes, about.
    pub(crate) fn builder_bytes(&self) -> u64 {
        let in_its_precision = match (&self.given, self.export.precision) {
            (Some(_), _) => self.export.weight_bytes,
            (None, Precision::Fp32 | Precision::Tf32) => self.reference_bytes,
            // In 8 bits they are numbers of 16 that the graph rounds, and packed ones are not more.
            (None, _) => self.reference_bytes / 2,
        };
        needed_memory_bytes(in_its_precision)
    }

    /// The memory that the gate takes, about.
    pub(crate) fn check_bytes(&self) -> u64 {
        let weights = self.export.weight_bytes;
        let columns = self.export.outputs.first().and_then(|output| output.shape.get(2)?.parse::<u64>().ok());
        let tokens = (self.longest as u64).max(CHECK_TOKENS as u64);
        let output_bytes = columns.unwrap_or_default().saturating_mul(4 * tokens);
        gate_memory_bytes(self.reference_bytes, weights, output_bytes)
    }

    /// Whether a file of the version holds weights that its graph points into.
    pub(crate) fn is_weight(&self, name: &str) -> bool {
        match &self.given {
            Some(given) => given.record.data_bytes.contains_key(name),
            None => name.ends_with(".safetensors"),
        }
    }
}

/// Reads the model and says what [`run`](crate::run) would do with it. Writes nothing.
pub(crate) fn plan(job: &Job) -> Result<Plan, CompileError> {
    if let ModelSource::Graph { onnx, files } = &job.source {
        let Described { given, exported, options, files } = given::describe(job, onnx, files)?;
        return planned(job, exported, options, files, Whose::Given(Box::new(given)));
    }
    let folder = job.source.folder();
    let checkpoint = Checkpoint::open(folder)?;
    onnx_export::require_supported(&checkpoint)?;
    let head = head_of(&checkpoint, job.kv_cache)?;
    let mut options = ExportOptions::new(head, job.precision);
    options.keep_fp32.clone_from(&job.keep_fp32);
    if job.precision.needs_calibration() {
        if job.calibration.as_ref().is_none_or(|calibration| calibration.texts.is_empty()) {
            return Err(CompileError::NoCalibration { precision: job.precision });
        }
        options.ranges = stand_in_ranges(&checkpoint, &options)?;
    }
    let mut exported = onnx_export::export(&checkpoint, &options)?;
    if job.precision.needs_calibration() || job.weights == WeightForm::Materialised {
        // The graph with the real ranges is not known before the model has run, that with weights of its own not before
        // they are written.
        exported.report.onnx_sha256.clear();
    }
    let files = files_of(&job.source, &checkpoint)?;
    let reference_bytes = fp32_bytes(&checkpoint);
    planned(job, exported, options, files, Whose::Own { reference_bytes })
}

/// Bytes of a checkpoint's weights in fp32.
pub(crate) fn fp32_bytes(checkpoint: &Checkpoint) -> u64 {
    let tensors = checkpoint.tensor_names().filter_map(|name| checkpoint.tensor(name).ok());
    let elements = tensors.map(|tensor| tensor.shape.iter().map(|size| *size as u64).product::<u64>());
    elements.fold(0_u64, u64::saturating_add).saturating_mul(4)
}

/// Whose the graph is.
enum Whose {
    Own { reference_bytes: u64 },
    Given(Box<Given>),
}

/// What the graph at hand comes to, in the shapes and for the GPUs that are asked for.
fn planned(
    job: &Job,
    exported: Exported,
    options: ExportOptions,
    files: Vec<String>,
    whose: Whose,
) -> Result<Plan, CompileError> {
    let (given, reference_bytes) = match whose {
        Whose::Own { reference_bytes } => (None, reference_bytes),
        Whose::Given(given) => {
            let bytes = given.reference_bytes;
            (Some(*given), bytes)
        }
    };
    let longest = exported.report.max_sequence;
    let (profile, more_profiles) = profiles(job, &options.head, longest)?;
    let profiles = std::iter::once(&profile).chain(&more_profiles);
    check_options(&job.options, engine_runtime::gpus().is_ok())?;
    let looks = given.is_none() && job.precision.may_overflow() && job.overflow == Overflow::KeepInFp32;
    let overflow = looks.then_some(Limits::DEFAULT);
    if job.engine == EngineWish::Build && job.targets.iter().any(|target| target.sm() == 75) {
        let scores = matches!(options.head, Head::SequenceClassification);
        if job.precision != Precision::Fp16 || scores {
            return Err(CompileError::Turing);
        }
    }
    if job.engine == EngineWish::Build
        && job.precision == Precision::Fp8
        && let Some(target) = job.targets.iter().find(|target| target.sm() < FIRST_SM_WITH_FP8)
    {
        return Err(CompileError::NoFp8 { target: *target });
    }
    Ok(Plan {
        agent: job.agent.clone(),
        version: job.version.clone(),
        source: job.source.provenance(),
        files,
        profile,
        longest: profiles.map(|it| it.total().max).max().unwrap_or_default() as usize,
        more_profiles,
        overflow,
        targets: job.targets.clone(),
        thresholds: job.thresholds.over(thresholds(job.precision, &options.head)),
        export: exported.report.clone(),
        graph: given.as_ref().map(|given| given.record.clone()),
        reference: given.as_ref().map(|given| given.against.words(&exported.report.head)),
        given,
        reference_bytes,
        exported,
        options,
    })
}

/// The shapes that are asked for, or the default ones, as far as the model's positions go.
fn profiles(job: &Job, head: &Head, longest: usize) -> Result<(Profile, Vec<Profile>), CompileError> {
    let (default, cache) = match head {
        Head::CausalLm { cache: true } => (Profile::CACHED, true),
        Head::CausalLm { cache: false } => (Profile::DECODER, false),
        _ => (Profile::DEFAULT, false),
    };
    let mut profiles: Vec<Profile> = job.profile.iter().chain(&job.options.more_profiles).copied().collect();
    if profiles.is_empty() {
        profiles.push(default.capped(longest));
    }
    for profile in &mut profiles {
        if let Some(asked) = Some(profile.total().max).filter(|asked| *asked as usize > longest) {
            return Err(CompileError::Profile { asked, longest });
        }
        match (cache, profile.past) {
            (true, _) => *profile = profile.cached(longest),
            (false, None) => {}
            (false, Some(_)) => return Err(CompileError::NoCache { profile: *profile }),
        }
        if cache && profile.past.is_none_or(|past| past.max == 0) {
            return Err(CompileError::NoRoom { profile: *profile, longest });
        }
    }
    let more = profiles.split_off(1);
    Ok((profiles.pop().unwrap_or(default), more))
}

pub(crate) fn thresholds(precision: Precision, head: &Head) -> Thresholds {
    let table = Thresholds::of(precision);
    match head {
        Head::SentenceEmbedding(_) | Head::SequenceClassification => table,
        Head::HiddenStates | Head::TokenClassification | Head::CausalLm { .. } => table.by_token(),
    }
}

/// Ranges in the shape of those that calibration will find, so that everything else about the graph can be told.
fn stand_in_ranges(checkpoint: &Checkpoint, options: &ExportOptions) -> Result<Ranges, CompileError> {
    let tapped = ExportOptions {
        head: options.head.without_cache(),
        precision: Precision::Fp32,
        keep_fp32: Vec::new(),
        taps: true,
        ..options.clone()
    };
    let taps = onnx_export::export(checkpoint, &tapped)?.taps;
    let layers = taps.into_iter().flat_map(|tap| tap.layers);
    layers
        .map(|layer| {
            let outputs = checkpoint.tensor(&format!("{layer}.weight"))?.shape.first().copied();
            let weight = vec![1.0; outputs.unwrap_or_default()];
            Ok((layer, LinearRange { input: 1.0, weight, smoothing: Vec::new() }))
        })
        .collect()
}

/// What the graph of this folder gives.
pub(crate) fn head_of(checkpoint: &Checkpoint, kv_cache: KvCache) -> Result<Head, CompileError> {
    if checkpoint.is_decoder() {
        return Ok(Head::CausalLm { cache: kv_cache == KvCache::With });
    }
    if let Some(head) = SentenceHead::read(checkpoint)? {
        return Ok(Head::SentenceEmbedding(head));
    }
    let head = model_loader::Head::detect(checkpoint.folder()).map_err(CompileError::Reference)?;
    Ok(match head {
        model_loader::Head::SequenceClassification => Head::SequenceClassification,
        model_loader::Head::HiddenStates | model_loader::Head::SentenceEmbedding => Head::HiddenStates,
    })
}

/// The model's files: as the manifest lists them where there is one, else as the folder holds them.
pub(crate) fn listed(source: &ModelSource) -> Result<Vec<String>, CompileError> {
    match source {
        ModelSource::Published(version) if !version.manifest().files.is_empty() => {
            let names = version.manifest().files.iter().map(|file| file.path.as_str());
            Ok(names.filter(|name| payload::belongs(name)).map(str::to_owned).collect())
        }
        _ => {
            let folder = source.folder();
            let failed =
                |source| CompileError::Io { doing: "take the model from", path: folder.to_owned(), source };
            payload::list(folder).map_err(failed)
        }
    }
}

/// The model's files; of the weights beside `config.json`, those that the checkpoint is made of.
fn files_of(source: &ModelSource, checkpoint: &Checkpoint) -> Result<Vec<String>, CompileError> {
    let listed = listed(source)?;
    let is_stray = |name: &String| {
        !name.contains('/')
            && name.ends_with(".safetensors")
            && !checkpoint.weight_files().any(|file| file == name)
    };
    Ok(listed.into_iter().filter(|name| !is_stray(name)).collect())
}

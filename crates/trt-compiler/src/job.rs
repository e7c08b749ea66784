//! What is asked for, and what it would come to.

use std::path::{Path, PathBuf};

use model_loader::{PoolingMode, SentenceModules};
use model_store::{Activation, AgentName, Current, ModelStore, VersionName};
use onnx_export::{
    Checkpoint, ExportOptions, ExportReport, Exported, Head, Pattern, Pooling, Precision, SentenceHead,
};
use serde::Serialize;

use crate::engine::BuildOptions;
use crate::error::CompileError;
use crate::evidence::Provenance;
use crate::gate::Thresholds;
use crate::payload;
use crate::profile::Profile;
use crate::runtimes::Runtimes;
use crate::target::Target;

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
}

impl ModelSource {
    /// The folder with `config.json`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        match self {
            Self::Folder { path, .. } => path,
            Self::Published(version) => version.path(),
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
    pub thresholds: Option<Thresholds>,
    /// Whether the version becomes current.
    pub activation: Activation,
    /// Where the native libraries are.
    pub runtimes: Runtimes,
    /// How to run the engine builder.
    pub build: BuildOptions,
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
    /// The GPU generations of the engine.
    pub targets: Vec<Target>,
    /// How far an output may be from the reference.
    pub thresholds: Thresholds,
    #[serde(skip)]
    pub(crate) exported: Exported,
    #[serde(skip)]
    pub(crate) options: ExportOptions,
}

/// Reads the model and says what [`run`](crate::run) would do with it. Writes nothing.
pub(crate) fn plan(job: &Job) -> Result<Plan, CompileError> {
    let folder = job.source.folder();
    let checkpoint = Checkpoint::open(folder)?;
    onnx_export::require_supported(&checkpoint)?;
    let head = head_of(folder)?;
    let mut options = ExportOptions::new(head, job.precision);
    options.keep_fp32.clone_from(&job.keep_fp32);
    let exported = onnx_export::export(&checkpoint, &options)?;
    let longest = exported.report.max_sequence;
    let profile = job.profile.unwrap_or_else(|| Profile::DEFAULT.capped(longest));
    let asked = profile.sequence.max;
    if asked as usize > longest {
        return Err(CompileError::Profile { asked, longest });
    }
    if job.engine == EngineWish::Build && job.targets.iter().any(|target| target.sm() == 75) {
        let scores = matches!(options.head, Head::SequenceClassification);
        if job.precision != Precision::Fp16 || scores {
            return Err(CompileError::Turing);
        }
    }
    Ok(Plan {
        agent: job.agent.clone(),
        version: job.version.clone(),
        source: job.source.provenance(),
        files: files_of(&job.source, &checkpoint)?,
        profile,
        targets: job.targets.clone(),
        thresholds: job.thresholds.unwrap_or_else(|| Thresholds::of(job.precision)),
        export: exported.report.clone(),
        exported,
        options,
    })
}

/// What the graph of this folder gives.
fn head_of(folder: &Path) -> Result<Head, CompileError> {
    Ok(match model_loader::Head::detect(folder).map_err(CompileError::Reference)? {
        model_loader::Head::HiddenStates => Head::HiddenStates,
        model_loader::Head::SequenceClassification => Head::SequenceClassification,
        model_loader::Head::SentenceEmbedding => {
            let modules = SentenceModules::read(folder).map_err(CompileError::Reference)?;
            let pooling = modules.pooling.modes.iter().map(|mode| match mode {
                PoolingMode::Cls => Pooling::Cls,
                PoolingMode::Max => Pooling::Max,
                PoolingMode::Mean => Pooling::Mean,
                PoolingMode::MeanSqrtLen => Pooling::MeanSqrtLen,
                PoolingMode::WeightedMean => Pooling::WeightedMean,
                PoolingMode::LastToken => Pooling::LastToken,
            });
            Head::SentenceEmbedding(SentenceHead { pooling: pooling.collect(), normalize: modules.normalize })
        }
    })
}

/// The model's files: as the manifest lists them where there is one, else as the folder holds them. Of the weights beside
/// `config.json`, those that the checkpoint is made of.
fn files_of(source: &ModelSource, checkpoint: &Checkpoint) -> Result<Vec<String>, CompileError> {
    let listed = match source {
        ModelSource::Published(version) if !version.manifest().files.is_empty() => {
            let names = version.manifest().files.iter().map(|file| file.path.as_str());
            names.filter(|name| payload::belongs(name)).map(str::to_owned).collect()
        }
        _ => {
            let folder = source.folder();
            let failed =
                |source| CompileError::Io { doing: "take the model from", path: folder.to_owned(), source };
            payload::list(folder).map_err(failed)?
        }
    };
    let is_stray = |name: &String| {
        !name.contains('/')
            && name.ends_with(".safetensors")
            && !checkpoint.weight_files().any(|file| file == name)
    };
    Ok(listed.into_iter().filter(|name| !is_stray(name)).collect())
}

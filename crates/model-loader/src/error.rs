//! What can go wrong between an agent's name and its first vector.

use std::path::{Path, PathBuf};

use model_store::{AgentName, StoreError, VersionName, exit};

/// Why a model could not be found, loaded or run.
///
/// Each message says which file, tensor or agent it is about and what to do next; the cause, where there is one, is
/// in [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The store was asked, only the store may be asked, and it has no such model.
    #[error(
        "agent `{agent}`: the model store {} does not serve it and STRICT_MODEL_STORE forbids any other place: {missing}. \
         Publish a version (`model-store publish {agent} VERSION --from DIR`) or unset STRICT_MODEL_STORE",
        store.display()
    )]
    Strict {
        /// Whose model was wanted.
        agent: String,
        /// The root of the store.
        store: PathBuf,
        /// What is not there.
        missing: String,
        /// The store's own error, when it failed rather than having nothing.
        #[source]
        source: Option<Box<LoadError>>,
    },
    /// No place has the model.
    #[error("{wanted}: no model found; looked in {}. {next}", places(searched))]
    NotFound {
        /// What was wanted: an agent, a folder or a model id.
        wanted: String,
        /// Each place that was looked at, and what was missing there.
        searched: Vec<String>,
        /// What to do about it.
        next: &'static str,
    },
    /// The Hub does not give the model.
    #[cfg(feature = "hub")]
    #[error("cannot fetch {model_id} from the Hub")]
    Fetch {
        /// The model.
        model_id: String,
        /// Why not, and what to do about it.
        source: Box<hub_fetch::FetchError>,
    },
    /// A dry run ends where a model would be loaded.
    #[error("nothing was loaded, because MODEL_STORE_DRY_RUN is set; it would be {resolved}")]
    DryRun {
        /// What would have been loaded.
        resolved: Box<crate::ResolvedModel>,
    },
    /// A version is not what was published, so it is not used.
    #[error(
        "{agent}/{version} is not what was published: {what}; `model-store repair {agent} {version}` may mend it, or make \
         another version current"
    )]
    NotAsPublished {
        /// The agent.
        agent: AgentName,
        /// The version.
        version: VersionName,
        /// The files, and what is wrong with them.
        what: String,
    },
    /// A model is not signed as the store's policy, or `MODEL_STORE_SIGNATURES`, asks for.
    #[error("{what}: a signature by a key that the store trusts is asked for")]
    NotSigned {
        /// What is not signed.
        what: String,
        /// What it is instead, and what to do.
        source: Option<Box<model_store::StoreError>>,
    },
    /// A link in a model's folder leads out of it.
    #[error(
        "{} leads to {}, out of {}: a model is read from within its version only; publish it again", path.display(),
        target.display(), boundary.display()
    )]
    LeadsOut {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// What it leads out of.
        boundary: PathBuf,
    },
    /// A model that loads does not compute what it must.
    #[error("{model}: the self-test failed: {reason}")]
    SelfTest {
        /// The model.
        model: String,
        /// What it gave, or what changed.
        reason: String,
    },
    /// A version works, but breaks what the users of the one before build on.
    #[error("{model} cannot take the place of {served}: {what}; restart the agent to use it")]
    ContractChanged {
        /// The version that was refused.
        model: String,
        /// The one that is in use.
        served: String,
        /// What would change.
        what: String,
    },
    /// The system gave no thread for looking after `current`.
    #[error("no thread to look after the model of agent `{agent}` could be started")]
    Thread {
        /// The agent.
        agent: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The model store failed.
    #[error("the model store could not serve the model")]
    Store(#[from] StoreError),
    /// A name that is not a valid one: an agent, a version, a model id or a revision.
    #[error("`{name}` is not a valid {kind}: {reason}")]
    Name {
        /// The text as given.
        name: String,
        /// What it should have been.
        kind: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file that a model needs is not in its folder.
    #[error("{} is missing: {next}", path.display())]
    Missing {
        /// The file looked for.
        path: PathBuf,
        /// What it is for, or how to make it.
        next: String,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A named pipe, a device or a directory is where a file of the model should be.
    #[error("{} is not a regular file: put the model's file there", path.display())]
    NotRegular {
        /// What was found.
        path: PathBuf,
    },
    /// A configuration or a tokenizer is larger than any real one.
    #[error("{} has {bytes} bytes where at most {max_bytes} are read: fetch it again", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// A JSON file does not parse, or not as what it should be.
    #[error("{} is not valid: fetch or write it again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A configuration holds a value that makes no sense.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key, its value and what is wrong with it.
        reason: String,
    },
    /// A configuration asks for something that this crate does not do.
    #[error("{}: {what} `{found}` is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key.
        what: &'static str,
        /// Its value.
        found: String,
        /// The values that work.
        supported: &'static str,
    },
    /// The weights are there only as a pickle, which is a program and is never loaded.
    #[error(
        "{} is a pickle and is never loaded (a pickle can run any code); convert it once with \
         `python -c \"from transformers import AutoModel; AutoModel.from_pretrained('.').save_pretrained('.', \
         safe_serialization=True)\"` in that folder, which writes model.safetensors (take \
         AutoModelForSequenceClassification for a classifier, or its head is lost)",
        path.display()
    )]
    Pickle {
        /// The file that was found instead of safetensors.
        path: PathBuf,
    },
    /// A safetensors file is truncated or otherwise damaged.
    #[error("{} is damaged or truncated: {reason}; fetch it again", path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// What the file has and what its header says.
        reason: String,
    },
    /// A tensor is missing, has another shape or dtype than the configuration says, or holds NaN or infinity.
    #[error("{}: tensor `{tensor}` {reason}", path.display())]
    Tensor {
        /// The safetensors file (or the index, when no shard has it).
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tokenizer file does not load, or does not cover a text.
    #[error("the tokenizer {} failed", path.display())]
    Tokenizer {
        /// The `tokenizer.json`.
        path: PathBuf,
        /// Why.
        #[source]
        source: tokenizers::Error,
    },
    /// A chat template does not compile.
    #[error("the chat template in {} does not compile: correct it or fetch the model again", path.display())]
    Template {
        /// The file it is in.
        path: PathBuf,
        /// The line and what is wrong with it.
        #[source]
        source: Box<minijinja::Error>,
    },
    /// A chat template refused the messages, failed on them, or did not end.
    #[error("the chat template in {} could not write these messages as a prompt", path.display())]
    Chat {
        /// The file it is in.
        path: PathBuf,
        /// The line and why; the template's own words where it raised an exception.
        #[source]
        source: Box<minijinja::Error>,
    },
    /// An option of a generation that makes no sense.
    #[error("the option `{option}` of a generation is {value}: {reason}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        value: String,
        /// What it can be.
        reason: &'static str,
    },
    /// A batch of tokens does not fit the model.
    #[error("the tokens do not fit the model: {0}")]
    Tokens(String),
    /// A call asked for something that the model cannot give.
    #[error("{0}")]
    Asked(String),
    /// The backend asked for is not there, or does not fit the model.
    #[error("the backend `{backend}` cannot be used: {reason}")]
    Backend {
        /// The backend.
        backend: crate::Backend,
        /// Why, and what to do about it.
        reason: String,
    },
    /// The model gave NaN or infinity for an input.
    #[error("the model gave NaN or infinity for row {row} of its input: its weights overflow in float32")]
    NotFinite {
        /// The row, counted from 0 in the caller's order.
        row: usize,
    },
    /// The device asked for is not there.
    #[error("the device {device} cannot be used; ask for `cpu`, or allow it to take the place of a GPU")]
    NoDevice {
        /// The device.
        device: crate::Device,
        /// Why.
        #[source]
        source: candle_core::Error,
    },
    /// A product failed inside candle.
    #[error("computing {what} failed")]
    Compute {
        /// The step.
        what: &'static str,
        /// Why.
        #[source]
        source: candle_core::Error,
    },
}

impl LoadError {
    /// The process exit code for this error: the same constants in every binary of the workspace.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) => error.exit_code(),
            #[cfg(feature = "hub")]
            Self::Fetch { source, .. } => source.exit_code(),
            Self::NotFound { .. } | Self::Missing { .. } => exit::NOT_FOUND,
            Self::Name { .. } | Self::Option { .. } | Self::Asked(_) => exit::USAGE,
            Self::NotRegular { .. }
            | Self::TooLarge { .. }
            | Self::Json { .. }
            | Self::Tokenizer { .. }
            | Self::Template { .. }
            | Self::Config { .. }
            | Self::NotAsPublished { .. }
            | Self::LeadsOut { .. }
            | Self::SelfTest { .. }
            | Self::Weights { .. }
            | Self::Tensor { .. } => exit::CORRUPT,
            Self::NoDevice { .. } | Self::Backend { .. } | Self::Thread { .. } => exit::ENVIRONMENT,
            Self::DryRun { .. }
            | Self::NotSigned { .. }
            | Self::ContractChanged { .. }
            | Self::Strict { .. }
            | Self::Pickle { .. }
            | Self::Unsupported { .. } => exit::REFUSED,
            Self::Read { .. }
            | Self::Chat { .. }
            | Self::Tokens(_)
            | Self::NotFinite { .. }
            | Self::Compute { .. } => exit::FAILURE,
        }
    }

    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn config(path: &Path, reason: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn compute(what: &'static str) -> impl FnOnce(candle_core::Error) -> Self {
        move |source| Self::Compute { what, source }
    }
}

impl From<model_store::NameError> for LoadError {
    fn from(error: model_store::NameError) -> Self {
        Self::Name { name: error.value().to_owned(), kind: error.kind(), reason: error.reason() }
    }
}

fn places(searched: &[String]) -> String {
    if searched.is_empty() { "no place at all".to_owned() } else { searched.join("; ") }
}

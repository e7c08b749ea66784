//! Causal language models: a prompt in, its continuation out.

mod adapter_config;
mod attention;
mod chat;
mod config;
mod decoder;
mod generate;
mod gguf;
mod gguf_model;
mod gguf_tokenizer;
mod json;
mod lora;
mod options;
mod rope;
mod sample;
mod tensors;
mod text;

use std::path::{Path, PathBuf};

use candle_core::DType;

pub use chat::{ChatMessage, ChatOptions};
pub use config::LmConfig;
pub use generate::{Completion, FinishReason, Generation, Piece, Prompt};
pub use options::GenerateOptions;
pub use rope::{Pairs, Rope};

use crate::backend::{Backend, LoadOptions};
use crate::files::read_json;
use crate::lm::chat::ChatTemplate;
use crate::lm::decoder::Decoder;
use crate::lm::gguf::Gguf;
use crate::lm::gguf_model::GgufTensors;
use crate::lm::lora::Adapter;
use crate::lm::tensors::Safetensors;
pub use crate::lm::text::LmTokenizer;
use crate::resolve::{ResolveOptions, ResolvedModel};
use crate::weights::Weights;
use crate::{LoadError, Model as _};

/// The files whose presence makes a folder one of safetensors, GGUF files or not.
const SAFETENSORS: [&str; 2] = ["model.safetensors", "model.safetensors.index.json"];

/// A language model with its tokenizer and its chat template.
///
/// It computes with candle. Any number of generations may run over one model, from any threads: each has its own cache
/// of keys and values.
///
/// ```no_run
/// use model_loader::{CausalLm, ChatMessage, ChatOptions, LmOptions};
///
/// let lm = CausalLm::for_agent("synthesizer")?;
/// let prompt = lm.chat(&[ChatMessage::new("user", "Write about sport.")], &ChatOptions::default())?;
/// for piece in lm.generate_stream(prompt, &lm.options())? {
///     print!("{}", piece?.text);
/// }
/// # Ok::<(), model_loader::LoadError>(())
/// ```
#[derive(Debug)]
pub struct CausalLm {
    decoder: Decoder,
    tokenizer: LmTokenizer,
    template: Option<ChatTemplate>,
    options: GenerateOptions,
    eos_ids: Vec<u32>,
    dir: PathBuf,
    resolved: Option<ResolvedModel>,
}

/// In what numbers a language model is held and computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// On the CPU float32 for safetensors; on a GPU bfloat16 for them. A GGUF file's blocks stay as they are.
    #[default]
    Auto,
    /// float32, also for a GGUF file: its blocks are unpacked when it is loaded.
    Float32,
    /// float16: half the memory of float32, and for most models as good.
    Float16,
    /// bfloat16, on a GPU only: candle has no such product for the CPU.
    Bfloat16,
}

/// How to load a language model that has been found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LmOptions {
    /// Where it is computed, and by what: candle does it for all devices.
    pub load: LoadOptions,
    /// In what numbers.
    pub precision: Precision,
    /// The folder of a LoRA adapter to merge, as peft writes it. Where an agent's model is looked for, so is this: it takes
    /// the place of the agent map's, and strictly it must lie in the store.
    pub adapter: Option<PathBuf>,
}

impl CausalLm {
    /// Loads a folder that transformers saved from a `…ForCausalLM`, or one with a single GGUF file.
    ///
    /// # Errors
    /// A [`LoadError`] that names the file, and the tensor where it is about one.
    pub fn from_dir(dir: impl AsRef<Path>, options: &LmOptions) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let backend = options.load.backend;
        if !matches!(backend, Backend::Auto | Backend::Candle) {
            return Err(LoadError::Name {
                name: backend.name().to_owned(),
                kind: "backend of a language model",
                reason: "write `auto` or `candle`",
            });
        }
        let device = options.load.candle_device()?;
        let has_safetensors = SAFETENSORS.iter().any(|name| dir.join(name).exists());
        match gguf_model::find(dir)? {
            Some(path) if !has_safetensors => Self::from_gguf(dir, &path, options, device),
            _ => Self::from_safetensors(dir, options, device),
        }
    }

    fn from_safetensors(
        dir: &Path,
        options: &LmOptions,
        device: candle_core::Device,
    ) -> Result<Self, LoadError> {
        let mut config = LmConfig::from_dir(dir)?;
        let dtype = options.precision.dtype(&device, &config.path)?;
        let adapter = match &options.adapter {
            Some(adapter) => Some(Adapter::open(adapter, &mut config)?),
            None => None,
        };
        let weights = Weights::open(dir)?;
        let source =
            Safetensors { weights: &weights, adapter: adapter.as_ref(), dtype, device: device.clone() };
        let decoder = Decoder::load(config, &source, dtype, device)?;
        let tokenizer = LmTokenizer::from_dir(dir)?;
        Self::new(dir, decoder, tokenizer, ChatTemplate::from_dir(dir)?)
    }

    fn from_gguf(
        dir: &Path,
        path: &Path,
        options: &LmOptions,
        device: candle_core::Device,
    ) -> Result<Self, LoadError> {
        if options.adapter.is_some() {
            return Err(LoadError::Unsupported {
                path: path.to_owned(),
                what: "an adapter for",
                found: "a GGUF file".to_owned(),
                supported: "an adapter for safetensors",
            });
        }
        let gguf = Gguf::open(path)?;
        let config = gguf_model::config(&gguf)?;
        let unpack = options.precision != Precision::Auto;
        let dtype = if unpack { options.precision.dtype(&device, path)? } else { DType::F32 };
        let source = GgufTensors { gguf: &gguf, dtype, unpack, device: device.clone() };
        let decoder = Decoder::load(config, &source, dtype, device)?;
        let tokenizer = match LmTokenizer::find(dir)? {
            Some(tokenizer) => tokenizer,
            None => gguf_tokenizer::tokenizer(&gguf)?,
        };
        let template = match ChatTemplate::from_dir(dir)? {
            Some(template) => Some(template),
            None => gguf_tokenizer::template(&gguf)?,
        };
        Self::new(dir, decoder, tokenizer, template)
    }

    fn new(
        dir: &Path,
        decoder: Decoder,
        tokenizer: LmTokenizer,
        template: Option<ChatTemplate>,
    ) -> Result<Self, LoadError> {
        let (options, eos_ids) = options::from_dir(dir)?;
        let eos_ids = match eos_ids {
            Some(ids) => ids,
            None if !decoder.config().eos_ids.is_empty() => decoder.config().eos_ids.clone(),
            None => eos_token(dir, &tokenizer)?.into_iter().collect(),
        };
        tracing::debug!(
            path = %dir.display(), model_type = decoder.config().model_type, precision = ?decoder.dtype(),
            "language model loaded"
        );
        Ok(Self { decoder, tokenizer, template, options, eos_ids, dir: dir.to_owned(), resolved: None })
    }

    /// Loads an agent's model from wherever [`resolve`](crate::resolve()) finds it: the model store first.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn for_agent(agent: &str) -> Result<Self, LoadError> {
        Self::load(agent, &ResolveOptions::from_env(), &LmOptions::default())
    }

    /// [`for_agent`](Self::for_agent) with a version, another store, a device or an adapter asked for.
    ///
    /// # Errors
    /// What resolving and [`from_dir`](Self::from_dir) fail with.
    pub fn load(agent: &str, resolve: &ResolveOptions, options: &LmOptions) -> Result<Self, LoadError> {
        let resolve = crate::model::search_for::<Self>(resolve, options);
        let (model, resolved) =
            crate::resolve::load_resolved(agent, &resolve, |found| Self::load_from(found, options))?;
        Ok(Self { resolved: Some(resolved), ..model })
    }

    /// The options that the folder's `generation_config.json` asks for.
    #[must_use]
    pub fn options(&self) -> GenerateOptions {
        self.options.clone()
    }

    /// The prompt of a conversation, by the folder's chat template.
    ///
    /// # Errors
    /// [`LoadError::Missing`] when the folder has no template, [`LoadError::Chat`] when it does not take the messages.
    pub fn chat(&self, messages: &[ChatMessage], options: &ChatOptions) -> Result<Prompt, LoadError> {
        let template = self.template.as_ref().ok_or_else(|| LoadError::Missing {
            path: self.dir.join("chat_template.jinja"),
            next: "this model has no chat template, there or in tokenizer_config.json: write the prompt yourself"
                .to_owned(),
        })?;
        template.render(messages, options).map(Prompt::Rendered)
    }

    /// Whether the folder has a chat template.
    #[must_use]
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The tokens of a prompt.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] when the tokenizer does not cover the text.
    pub fn tokens(&self, prompt: impl Into<Prompt>) -> Result<Vec<u32>, LoadError> {
        match prompt.into() {
            Prompt::Text(text) => self.tokenizer.encode(&text, true),
            Prompt::Rendered(text) => self.tokenizer.encode(&text, false),
            Prompt::Tokens(ids) => Ok(ids),
        }
    }

    /// The text of tokens, without the special ones.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] when the decoder fails.
    pub fn text(&self, tokens: &[u32]) -> Result<String, LoadError> {
        self.tokenizer.decode(tokens)
    }

    /// The logits of the token after the prompt: one for each of the vocabulary.
    ///
    /// # Errors
    /// As [`generate_stream`](Self::generate_stream).
    pub fn logits(&self, prompt: impl Into<Prompt>) -> Result<Vec<f32>, LoadError> {
        self.decoder.logits(&self.tokens(prompt)?, &mut self.decoder.cache())
    }

    /// The logits after each of these tokens, `[tokens, vocabulary]`: what a graph of the model is held against.
    ///
    /// # Errors
    /// As [`generate_stream`](Self::generate_stream).
    pub fn all_logits(&self, tokens: &[u32]) -> Result<Vec<f32>, LoadError> {
        self.decoder.all_logits(tokens)
    }

    /// Continues a prompt piece by piece.
    ///
    /// # Errors
    /// [`LoadError::Option`] for an option out of range, [`LoadError::Tokens`] for a prompt that is empty or longer than
    /// the model has positions for. A piece fails when the model gives NaN or the device fails.
    pub fn generate_stream(
        &self,
        prompt: impl Into<Prompt>,
        options: &GenerateOptions,
    ) -> Result<Generation<'_>, LoadError> {
        Generation::new(self, self.tokens(prompt)?, options)
    }

    /// Continues a prompt to the end.
    ///
    /// # Errors
    /// As [`generate_stream`](Self::generate_stream).
    pub fn generate(
        &self,
        prompt: impl Into<Prompt>,
        options: &GenerateOptions,
    ) -> Result<Completion, LoadError> {
        self.generate_stream(prompt, options)?.complete()
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &LmConfig {
        self.decoder.config()
    }

    /// The tokens that end an answer.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// Where the model came from, when it was loaded for an agent.
    #[must_use]
    pub fn resolved(&self) -> Option<&ResolvedModel> {
        self.resolved.as_ref()
    }

    fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    fn tokenizer(&self) -> &LmTokenizer {
        &self.tokenizer
    }
}

impl std::str::FromStr for Precision {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        match text {
            "auto" => Ok(Self::Auto),
            "float32" => Ok(Self::Float32),
            "float16" => Ok(Self::Float16),
            "bfloat16" => Ok(Self::Bfloat16),
            _ => Err(LoadError::Name {
                name: text.to_owned(),
                kind: "precision",
                reason: "write `auto`, `float32`, `float16` or `bfloat16`",
            }),
        }
    }
}

impl Precision {
    fn dtype(self, device: &candle_core::Device, path: &Path) -> Result<DType, LoadError> {
        match self {
            Self::Auto if device.is_cpu() => Ok(DType::F32),
            Self::Bfloat16 if device.is_cpu() => Err(LoadError::Unsupported {
                path: path.to_owned(),
                what: "on the CPU, the precision",
                found: "bfloat16".to_owned(),
                supported: "float32, float16",
            }),
            Self::Auto | Self::Bfloat16 => Ok(DType::BF16),
            Self::Float32 => Ok(DType::F32),
            Self::Float16 => Ok(DType::F16),
        }
    }
}

/// Whether a folder's model is a GGUF file.
pub(crate) fn is_gguf_folder(dir: &Path) -> bool {
    // Two of them are an error of the model's, and not of the folder's being none.
    matches!(gguf_model::find(dir), Ok(Some(_)) | Err(LoadError::Config { .. }))
}

/// The id of the `eos_token` that `tokenizer_config.json` names.
fn eos_token(dir: &Path, tokenizer: &LmTokenizer) -> Result<Option<u32>, LoadError> {
    let config: Option<serde_json::Value> = read_json(&dir.join("tokenizer_config.json"))?;
    let token = config.as_ref().and_then(|config| config.get("eos_token"));
    let text = token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
    Ok(text.and_then(|text| tokenizer.id(text)))
}

fn no_tokenizer(dir: &Path) -> LoadError {
    LoadError::Missing {
        path: dir.join("tokenizer.json"),
        next: "write it with `python -c \"from transformers import AutoTokenizer; \
               AutoTokenizer.from_pretrained('.').save_pretrained('.')\"` in that folder"
            .to_owned(),
    }
}

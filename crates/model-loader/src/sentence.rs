//! Sentence embeddings as sentence-transformers computes them.

mod fixed16;
mod long;
mod modules;
mod quantize;
mod settings;
mod similarity;
mod static_embedding;
mod steps;
mod stream;

use std::path::Path;

use rayon::prelude::*;

pub use long::{Chunk, Chunking, LongEmbedding};
pub use quantize::{Quantization, Quantized, Ranges, quantize};
pub use settings::EmbedOptions;
pub use similarity::Similarity;
pub use stream::EmbedIter;

use crate::pooling::normalize;
use crate::resolve::{ResolveOptions, ResolvedModel};
use crate::weights::{Weights, all_finite};
use crate::{Backend, Encoder, LoadError, LoadOptions, ModelConfig, Pooling, TokenBatch, Tokenizer, Tokens};
use modules::{Input, Modules};
use settings::{Settings, Task};
use static_embedding::StaticEmbedding;
use steps::Step;

/// Texts to vectors.
///
/// ```no_run
/// let embedder = model_loader::SentenceEmbedder::from_dir("models/all-MiniLM-L6-v2")?;
/// let vectors = embedder.embed(&["A sentence.", "Another one."])?;
/// assert_eq!(vectors[0].len(), embedder.dimension());
/// # Ok::<(), model_loader::LoadError>(())
/// ```
#[derive(Debug)]
pub struct SentenceEmbedder {
    network: Network,
    config: Option<ModelConfig>,
    tokenizer: Tokenizer,
    pooling: Pooling,
    steps: Vec<Step>,
    settings: Settings,
    /// Length of a vector after all steps.
    width: usize,
    resolved: Option<ResolvedModel>,
}

/// What a text's tokens go through first.
#[derive(Debug)]
enum Network {
    Encoder(Box<Encoder>),
    Static(StaticEmbedding),
    #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
    Graph(crate::graph::Graph),
}

impl SentenceEmbedder {
    /// Loads a sentence-transformers folder, or a plain encoder's, which gets mean pooling.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        Self::from_dir_with(dir, &LoadOptions::default())
    }

    /// [`from_dir`](Self::from_dir) with a backend or a device asked for.
    pub fn from_dir_with(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let modules = Modules::read(dir)?;
        let settings = Settings::read(dir)?;
        let (network, config, tokenizer) = match &modules.input {
            Input::Static { folder } => {
                options.require_cpu()?;
                if matches!(options.backend, Backend::OnnxRuntime | Backend::TensorRt) {
                    let reason = format!("{} is a table of vectors, which needs none", folder.display());
                    return Err(LoadError::Backend { backend: options.backend, reason });
                }
                let table = StaticEmbedding::load(folder)?;
                (Network::Static(table), None, Tokenizer::without_special_tokens(folder)?)
            }
            Input::Transformer { folder, .. } => {
                let config = ModelConfig::from_dir(folder)?;
                let pooling = modules.pooling(&config)?;
                let (network, tokenizer) = Network::load(dir, folder, &config, options, &pooling)?;
                (network, Some(config), tokenizer)
            }
        };
        let (pooling, mut width) = match (&network, &config) {
            (Network::Static(table), _) => (Pooling::default(), table.width()),
            (_, Some(config)) => {
                let pooling = modules.pooling(config)?;
                let width = pooling.dimension(config.hidden);
                (pooling, width)
            }
            (_, None) => (Pooling::default(), 0),
        };
        let mut steps = Vec::new();
        for (kind, folder) in &modules.steps {
            let step = Step::load(*kind, folder, width)?;
            width = step.width(width);
            steps.push(step);
        }
        let mut model = Self { network, config, tokenizer, pooling, steps, settings, width, resolved: None };
        if options.backend != Backend::Cpu && !model.quicken() {
            return Self::from_dir_with(dir, &LoadOptions { backend: Backend::Cpu, ..options.clone() });
        }
        #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
        let model = model.checked()?;
        tracing::debug!(path = %dir.display(), backend = %model.backend(), "sentence embedder loaded");
        Ok(model)
    }

    /// A graph has to give vectors of the right length.
    #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
    fn checked(self) -> Result<Self, LoadError> {
        if matches!(self.network, Network::Graph(_)) {
            self.embed_with_prompt(&["A sentence."], "")?;
        }
        Ok(self)
    }

    /// Loads an agent's model from wherever [`resolve`](crate::resolve()) finds it: the model store first.
    pub fn for_agent(agent: &str) -> Result<Self, LoadError> {
        Self::load(agent, &ResolveOptions::from_env())
    }

    /// [`for_agent`](Self::for_agent) with a version, another store or other places asked for.
    pub fn load(agent: &str, options: &ResolveOptions) -> Result<Self, LoadError> {
        Self::load_with(agent, options, &LoadOptions::default())
    }

    /// [`load`](Self::load) with a backend or a device asked for.
    pub fn load_with(agent: &str, options: &ResolveOptions, how: &LoadOptions) -> Result<Self, LoadError> {
        let (model, resolved) = crate::resolve::load(agent, options, |dir| Self::from_dir_with(dir, how))?;
        Ok(Self { resolved: Some(resolved), ..model })
    }

    /// The vectors of the texts, in their order, each of [`dimension`](Self::dimension) components; with the model's
    /// default prompt, if it has one.
    pub fn embed<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>, LoadError> {
        self.embed_with(texts, &EmbedOptions::default())
    }

    /// The vectors of the texts, with a prompt, fewer components or unit length asked for.
    pub fn embed_with<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EmbedOptions,
    ) -> Result<Vec<Vec<f32>>, LoadError> {
        self.embed_for(Task::Any, texts, options)
    }

    /// The vectors of the texts with a prompt put before each of them.
    pub fn embed_with_prompt<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        prompt: &str,
    ) -> Result<Vec<Vec<f32>>, LoadError> {
        self.embed_with(texts, &EmbedOptions { prompt: Some(prompt.to_owned()), ..EmbedOptions::default() })
    }

    /// The vectors of what is searched for: with the model's prompt `query`, or none, unless one is asked for.
    pub fn embed_queries<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EmbedOptions,
    ) -> Result<Vec<Vec<f32>>, LoadError> {
        self.embed_for(Task::Query, texts, options)
    }

    /// The vectors of what is searched in: with the model's prompt `document`, or none, unless one is asked for.
    ///
    /// A model that has a prompt `passage` or `corpus` instead gets none either, as with sentence-transformers 5.7;
    /// ask for it by name.
    pub fn embed_documents<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EmbedOptions,
    ) -> Result<Vec<Vec<f32>>, LoadError> {
        self.embed_for(Task::Document, texts, options)
    }

    /// The vectors of a stream of texts, in order and in bounded memory: texts are taken a window at a time, some
    /// thousand of them. After an error there is nothing more.
    ///
    /// ```no_run
    /// # use std::io::BufRead as _;
    /// use model_loader::{EmbedOptions, SentenceEmbedder};
    ///
    /// let embedder = SentenceEmbedder::from_dir("models/all-MiniLM-L6-v2")?;
    /// let lines = std::io::stdin().lock().lines().map_while(Result::ok);
    /// for vector in embedder.embed_iter(lines, &EmbedOptions::default()) {
    ///     let vector = vector?;
    /// }
    /// # Ok::<(), model_loader::LoadError>(())
    /// ```
    pub fn embed_iter<S, I>(&self, texts: I, options: &EmbedOptions) -> EmbedIter<'_, I::IntoIter>
    where
        S: AsRef<str> + Sync,
        I: IntoIterator<Item = S>,
    {
        EmbedIter::new(self, options.clone(), texts.into_iter())
    }

    fn embed_for<S: AsRef<str> + Sync>(
        &self,
        task: Task,
        texts: &[S],
        options: &EmbedOptions,
    ) -> Result<Vec<Vec<f32>>, LoadError> {
        let prompt = self.settings.resolve(options, task)?;
        let (tokens, prompt_tokens) = if prompt.is_empty() {
            (self.tokenizer.encode_batch(texts)?, 0)
        } else {
            let prompted: Vec<String> =
                texts.iter().map(|text| format!("{prompt}{}", text.as_ref())).collect();
            (self.tokenizer.encode_batch(&prompted)?, self.prompt_tokens(prompt)?)
        };
        let kept =
            options.truncate_dim.or(self.settings.truncate_dim).map_or(self.width, std::num::NonZero::get);
        self.map(&tokens, prompt_tokens, |row, mut vector| {
            vector.truncate(kept);
            if options.normalize {
                normalize(&mut vector);
            }
            if all_finite(&vector) { Ok(vector) } else { Err(LoadError::NotFinite { row }) }
        })
    }

    /// Each text's vector after the model's modules, through `f`, which gets the text's index too.
    fn map(
        &self,
        tokens: &[Tokens],
        prompt_tokens: usize,
        f: impl Fn(usize, Vec<f32>) -> Result<Vec<f32>, LoadError> + Sync,
    ) -> Result<Vec<Vec<f32>>, LoadError> {
        let pooled = |index: usize, vectors: &[f32], width: usize| {
            f(index, self.finish(self.pooling.pool(vectors, width, prompt_tokens)))
        };
        match &self.network {
            Network::Encoder(encoder) => {
                let width = encoder.config().hidden;
                encoder.map_texts(tokens, |index, vectors| pooled(index, vectors, width))
            }
            Network::Static(table) => {
                let embed = |(index, text): (usize, &Tokens)| f(index, self.finish(table.embed(&text.ids)?));
                tokens.par_iter().enumerate().map(embed).collect()
            }
            #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
            Network::Graph(graph) if graph.gives_tokens() => {
                let hidden = self.config.as_ref().map_or(0, |config| config.hidden);
                graph.map_texts(tokens, |index, vectors, width| {
                    check_width(graph, width, hidden)?;
                    pooled(index, vectors, width)
                })
            }
            #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
            Network::Graph(graph) if prompt_tokens > 0 && !self.pooling.include_prompt => Err(graph.misfit(
                "pools by itself, and this model's prompts are not to be pooled; take the backend `cpu`",
            )),
            // Such a graph has the modules in it.
            #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
            Network::Graph(graph) => graph.map_texts(tokens, |index, vector, width| {
                check_width(graph, width, self.width)?;
                f(index, vector.to_vec())
            }),
        }
    }

    /// The vectors of a batch of tokens, one a row, after the model's modules.
    pub fn embed_tokens(&self, batch: &TokenBatch) -> Result<Vec<Vec<f32>>, LoadError> {
        let finite = |row, vector: Vec<f32>| {
            if all_finite(&vector) { Ok(vector) } else { Err(LoadError::NotFinite { row }) }
        };
        match &self.network {
            Network::Encoder(encoder) => {
                let width = encoder.config().hidden;
                encoder.map_batch(batch, |row, vectors| {
                    finite(row, self.finish(self.pooling.pool(vectors, width, 0)))
                })
            }
            Network::Static(_) => self.map(&batch.texts(), 0, finite),
            #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
            Network::Graph(graph) if graph.gives_tokens() => graph.map_batch(batch, |row, vectors, width| {
                finite(row, self.finish(self.pooling.pool(vectors, width, 0)))
            }),
            #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
            Network::Graph(graph) => graph.map_batch(batch, |row, vector, _| finite(row, vector.to_vec())),
        }
    }

    fn finish(&self, mut vector: Vec<f32>) -> Vec<f32> {
        for step in &self.steps {
            step.apply(&mut vector);
        }
        vector
    }

    /// The prompt's own tokens, without the special token that ends a text.
    fn prompt_tokens(&self, prompt: &str) -> Result<usize, LoadError> {
        let tokens = self.tokenizer.encode_batch(&[prompt])?;
        let ids = tokens.first().map(|tokens| tokens.ids.as_slice()).unwrap_or_default();
        Ok(ids.len() - usize::from(ids.last().is_some_and(|id| self.tokenizer.is_special(*id))))
    }

    /// Whether all vectors have length 1, as far as the steps say.
    fn gives_unit_length(&self, options: &EmbedOptions) -> bool {
        let truncated = options.truncate_dim.or(self.settings.truncate_dim);
        let whole = truncated.is_none_or(|kept| kept.get() >= self.width);
        options.normalize || (whole && matches!(self.steps.last(), Some(Step::Normalize)))
    }

    /// Length of a text's vector, unless a call asks for fewer components.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.settings.truncate_dim.map_or(self.width, |kept| kept.get().min(self.width))
    }

    /// What computes the vectors: what [`Backend::Auto`] became, or what was asked for.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match &self.network {
            Network::Encoder(encoder) => encoder.backend(),
            Network::Static(_) => Backend::Cpu,
            #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
            Network::Graph(graph) => graph.backend(),
        }
    }

    /// How the model's vectors are to be compared; most say the cosine, or nothing, which means it.
    #[must_use]
    pub fn similarity(&self) -> Similarity {
        self.settings.similarity
    }

    /// The prompt of this name in `config_sentence_transformers.json`. Every model has `query` and `document`, if only
    /// empty ones.
    #[must_use]
    pub fn prompt(&self, name: &str) -> Option<&str> {
        self.settings.prompt(name)
    }

    /// The names of the prompts in `config_sentence_transformers.json`.
    pub fn prompt_names(&self) -> impl Iterator<Item = &str> {
        self.settings.prompt_names()
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The encoder's configuration; a table of token vectors has none.
    #[must_use]
    pub fn config(&self) -> Option<&ModelConfig> {
        self.config.as_ref()
    }

    /// Where the model came from, when it was loaded for an agent.
    #[must_use]
    pub fn resolved(&self) -> Option<&ResolvedModel> {
        self.resolved.as_ref()
    }
}

/// What a graph may give for a sentence, best first: what pools by itself cannot leave out a prompt.
#[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
const GRAPH_OUTPUTS: [(&str, usize); 3] =
    [("last_hidden_state", 3), ("token_embeddings", 3), ("sentence_embedding", 2)];

impl Network {
    /// What the backend asked for computes, and the tokenizer. `folder` is the encoder's within `dir`.
    fn load(
        dir: &Path,
        folder: &Path,
        config: &ModelConfig,
        options: &LoadOptions,
        pooling: &Pooling,
    ) -> Result<(Self, Tokenizer), LoadError> {
        #[cfg(feature = "tensorrt")]
        if let Some((graph, tokenizer)) = options.in_tensorrt(|| {
            // Where nobody asked for an engine, it is taken only if it does all that the encoder does.
            let asked = options.backend == Backend::TensorRt;
            let outputs =
                if asked || pooling.include_prompt { &GRAPH_OUTPUTS[..] } else { &GRAPH_OUTPUTS[..2] };
            let mut tokenizer = Tokenizer::from_dir(folder, config)?;
            let (graph, longest) = crate::tensorrt::find(dir, outputs, tokenizer.pad_id(), options)?;
            tokenizer.shorten(longest)?;
            Ok((graph, tokenizer))
        })? {
            return Ok((Self::Graph(graph), tokenizer));
        }
        #[cfg(feature = "onnxruntime")]
        if options.backend == Backend::OnnxRuntime {
            options.require_cpu()?;
            let tokenizer = Tokenizer::from_dir(folder, config)?;
            let graph = crate::onnx::find(&[dir, folder], &GRAPH_OUTPUTS, tokenizer.pad_id())?;
            return Ok((Self::Graph(graph), tokenizer));
        }
        let _ = (dir, pooling);
        options.require_built()?;
        let (tokenizer, encoder) = load_both(folder, config, options)?;
        Ok((Self::Encoder(Box::new(encoder)), tokenizer))
    }
}

#[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
fn check_width(graph: &crate::graph::Graph, found: usize, expected: usize) -> Result<(), LoadError> {
    if found == expected {
        return Ok(());
    }
    Err(graph.misfit(&format!("gives vectors of {found} components where the folder's have {expected}")))
}

/// Loads tokenizer and encoder side by side: each takes about half of the time.
pub(crate) fn load_both(
    dir: &Path,
    config: &ModelConfig,
    options: &LoadOptions,
) -> Result<(Tokenizer, Encoder), LoadError> {
    let (tokenizer, encoder) = rayon::join(
        || Tokenizer::from_dir(dir, config),
        || Encoder::load(config.clone(), &Weights::open(dir)?, options),
    );
    Ok((tokenizer?, encoder?))
}

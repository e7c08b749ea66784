//! Sentence embeddings as sentence-transformers computes them.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::files::read_json;
use crate::pooling::normalize;
use crate::resolve::{ResolveOptions, ResolvedModel};
use crate::weights::{Weights, all_finite};
use crate::{Encoder, LoadError, ModelConfig, Pooling, TokenBatch, Tokenizer};

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
    encoder: Encoder,
    tokenizer: Tokenizer,
    pooling: Pooling,
    normalize: bool,
    prompts: Prompts,
    resolved: Option<ResolvedModel>,
}

#[derive(Debug, Default, Deserialize)]
struct Prompts {
    #[serde(default)]
    prompts: HashMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

/// What `modules.json` says, for the modules this crate runs.
struct Modules {
    transformer: PathBuf,
    pooling: Option<PathBuf>,
    normalize: bool,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    class: String,
}

impl SentenceEmbedder {
    /// Loads a sentence-transformers folder, or a plain encoder's, which gets mean pooling.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let modules = Modules::read(dir)?;
        let config = ModelConfig::from_dir(&modules.transformer)?;
        let pooling = modules.pooling(&config)?;
        let prompts_path = dir.join("config_sentence_transformers.json");
        let prompts: Prompts = read_json(&prompts_path)?.unwrap_or_default();
        if let Some(name) =
            prompts.default_prompt_name.as_ref().filter(|name| !prompts.prompts.contains_key(*name))
        {
            let reason = format!("`default_prompt_name` is `{name}`, which is not among its `prompts`");
            return Err(LoadError::config(&prompts_path, reason));
        }
        let (tokenizer, encoder) = load_both(&modules.transformer, &config)?;
        Ok(Self { encoder, tokenizer, pooling, normalize: modules.normalize, prompts, resolved: None })
    }

    /// Loads an agent's model from wherever [`resolve`](crate::resolve()) finds it: the model store first.
    pub fn for_agent(agent: &str) -> Result<Self, LoadError> {
        Self::load(agent, &ResolveOptions::from_env())
    }

    /// [`for_agent`](Self::for_agent) with a version, another store or other places asked for.
    pub fn load(agent: &str, options: &ResolveOptions) -> Result<Self, LoadError> {
        let (model, resolved) = crate::resolve::load(agent, options, |dir| Self::from_dir(dir))?;
        Ok(Self { resolved: Some(resolved), ..model })
    }

    /// The vectors of the texts, in their order, each of [`dimension`](Self::dimension) components; with the model's
    /// default prompt, if it has one.
    pub fn embed<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>, LoadError> {
        match self.prompts.default_prompt_name.as_deref() {
            Some(name) => self.embed_with_prompt(texts, self.prompt(name).unwrap_or_default()),
            None => self.embed_with_prompt(texts, ""),
        }
    }

    /// The vectors of the texts with a prompt put before each of them.
    pub fn embed_with_prompt<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        prompt: &str,
    ) -> Result<Vec<Vec<f32>>, LoadError> {
        let (tokens, prompt_tokens) = if prompt.is_empty() {
            (self.tokenizer.encode_batch(texts)?, 0)
        } else {
            let prompted: Vec<String> =
                texts.iter().map(|text| format!("{prompt}{}", text.as_ref())).collect();
            (self.tokenizer.encode_batch(&prompted)?, self.prompt_tokens(prompt)?)
        };
        self.encoder.map_texts(&tokens, |row, vectors| self.finish(row, vectors, prompt_tokens))
    }

    /// The vectors of a batch of tokens, one a row.
    pub fn embed_tokens(&self, batch: &TokenBatch) -> Result<Vec<Vec<f32>>, LoadError> {
        self.encoder.map_batch(batch, |row, vectors| self.finish(row, vectors, 0))
    }

    fn finish(&self, row: usize, vectors: &[f32], prompt_tokens: usize) -> Result<Vec<f32>, LoadError> {
        let mut vector = self.pooling.pool(vectors, self.encoder.config().hidden, prompt_tokens);
        if self.normalize {
            normalize(&mut vector);
        }
        if all_finite(&vector) { Ok(vector) } else { Err(LoadError::NotFinite { row }) }
    }

    /// The prompt's own tokens, without the special token that ends a text.
    fn prompt_tokens(&self, prompt: &str) -> Result<usize, LoadError> {
        let tokens = self.tokenizer.encode_batch(&[prompt])?;
        let ids = tokens.first().map(|tokens| tokens.ids.as_slice()).unwrap_or_default();
        Ok(ids.len() - usize::from(ids.last().is_some_and(|id| self.tokenizer.is_special(*id))))
    }

    /// Length of a text's vector.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.pooling.dimension(self.encoder.config().hidden)
    }

    /// The prompt of this name in `config_sentence_transformers.json`.
    #[must_use]
    pub fn prompt(&self, name: &str) -> Option<&str> {
        self.prompts.prompts.get(name)?.as_deref()
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        self.encoder.config()
    }

    /// Where the model came from, when it was loaded for an agent.
    #[must_use]
    pub fn resolved(&self) -> Option<&ResolvedModel> {
        self.resolved.as_ref()
    }
}

/// What `modules.json` does with token vectors, for those who compute it elsewhere, such as inside a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentenceModules {
    /// How they become one vector.
    pub pooling: Pooling,
    /// Whether that is scaled to length 1.
    pub normalize: bool,
}

impl SentenceModules {
    /// Reads a sentence-transformers folder without its weights.
    pub fn read(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let modules = Modules::read(dir.as_ref())?;
        let config = ModelConfig::from_dir(&modules.transformer)?;
        Ok(Self { pooling: modules.pooling(&config)?, normalize: modules.normalize })
    }
}

impl Modules {
    fn pooling(&self, config: &ModelConfig) -> Result<Pooling, LoadError> {
        match &self.pooling {
            Some(path) => Pooling::from_file(&path.join("config.json"), config.hidden),
            None => Ok(Pooling::default()),
        }
    }

    fn read(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("modules.json");
        let Some(modules) = read_json::<Vec<Module>>(&path)? else {
            return Ok(Self { transformer: dir.to_owned(), pooling: None, normalize: false });
        };
        let (mut transformer, mut pooling, mut normalize) = (None, None, false);
        for module in &modules {
            if !Path::new(&module.path)
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
            {
                let reason = format!("the module path `{}` leaves the model's folder", module.path);
                return Err(LoadError::config(&path, reason));
            }
            let folder = if module.path.is_empty() { dir.to_owned() } else { dir.join(&module.path) };
            // The class moved between packages over the years; its own name did not.
            let class = module.class.rsplit('.').next().unwrap_or_default();
            let out_of_order = match class {
                "Transformer" => transformer.replace(folder).is_some() || pooling.is_some() || normalize,
                "Pooling" => pooling.replace(folder).is_some() || transformer.is_none() || normalize,
                "Normalize" => std::mem::replace(&mut normalize, true) || pooling.is_none(),
                _ => {
                    return Err(LoadError::Unsupported {
                        path,
                        what: "module",
                        found: module.class.clone(),
                        supported: "Transformer, Pooling, Normalize",
                    });
                }
            };
            if out_of_order {
                let reason = format!(
                    "`{}` comes twice or out of order (Transformer, Pooling, Normalize)",
                    module.class
                );
                return Err(LoadError::config(&path, reason));
            }
        }
        match (transformer, pooling) {
            (Some(transformer), Some(pooling)) => Ok(Self { transformer, pooling: Some(pooling), normalize }),
            _ => {
                Err(LoadError::config(&path, "a sentence embedder needs a Transformer and a Pooling module"))
            }
        }
    }
}

/// Loads tokenizer and encoder side by side: each takes about half of the time.
pub(crate) fn load_both(dir: &Path, config: &ModelConfig) -> Result<(Tokenizer, Encoder), LoadError> {
    let (tokenizer, encoder) = rayon::join(
        || Tokenizer::from_dir(dir, config),
        || Encoder::load(config.clone(), &Weights::open(dir)?, &crate::LoadOptions::default()),
    );
    Ok((tokenizer?, encoder?))
}

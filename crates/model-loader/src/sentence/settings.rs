//! `config_sentence_transformers.json` and what a caller asks for: prompts, dimensions, likeness.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

use serde::Deserialize;

use super::Similarity;
use crate::LoadError;
use crate::files::read_json;

/// How texts are to be embedded; the default is what the model's files say.
///
/// Steps run in this order: prompt, the model's modules, `truncate_dim`, `normalize`.
///
/// ```
/// use std::num::NonZeroUsize;
///
/// use model_loader::EmbedOptions;
///
/// let options = EmbedOptions { truncate_dim: NonZeroUsize::new(128), normalize: true, ..EmbedOptions::default() };
/// # assert!(options.prompt.is_none());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct EmbedOptions {
    /// Put before each text as it is, without a space. `Some("")` is no prompt, not even the model's default one.
    pub prompt: Option<String>,
    /// The name of one of the model's prompts; `prompt` comes first.
    pub prompt_name: Option<String>,
    /// Only the first components are kept, which are not scaled again unless `normalize` says so. `None` is what the
    /// model's files say, mostly all of them.
    pub truncate_dim: Option<NonZeroUsize>,
    /// Whether vectors are scaled to length 1 at the end, whatever the model's modules do.
    pub normalize: bool,
}

/// What texts are to each other, for models that tell the two apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Whatever the model's default is.
    Any,
    Query,
    Document,
}

/// What the file says.
#[derive(Debug, Default)]
pub(super) struct Settings {
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
    pub truncate_dim: Option<NonZeroUsize>,
    pub similarity: Similarity,
}

#[derive(Deserialize, Default)]
struct Raw {
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
    truncate_dim: Option<NonZeroUsize>,
    similarity_fn_name: Option<String>,
}

impl Settings {
    pub(super) fn read(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("config_sentence_transformers.json");
        let raw: Raw = read_json(&path)?.unwrap_or_default();
        let similarity = match raw.similarity_fn_name.as_deref() {
            None => Similarity::default(),
            Some(name) => name.parse().map_err(|_| LoadError::Unsupported {
                path: path.clone(),
                what: "similarity_fn_name",
                found: name.to_owned(),
                supported: "cosine, dot, euclidean, manhattan",
            })?,
        };
        let settings = Self {
            prompts: raw.prompts,
            default_prompt_name: raw.default_prompt_name,
            truncate_dim: raw.truncate_dim,
            similarity,
        };
        let lone = ["passage", "corpus"].into_iter().find(|name| settings.prompts.contains_key(*name));
        if let Some(name) = lone.filter(|_| !settings.prompts.contains_key("document")) {
            tracing::warn!(
                path = %path.display(),
                "the model has a prompt `{name}` and none named `document`: documents get none, as sentence-transformers \
                 does it; ask for it by name"
            );
        }
        match &settings.default_prompt_name {
            Some(name) if settings.prompt(name).is_none() => {
                let reason = format!("`default_prompt_name` is `{name}`, which is not among its `prompts`");
                Err(LoadError::config(&path, reason))
            }
            _ => Ok(settings),
        }
    }

    /// The prompt of this name. Every model has one for `query` and one for `document`, if only the empty one.
    pub(super) fn prompt(&self, name: &str) -> Option<&str> {
        match self.prompts.get(name) {
            Some(prompt) => Some(prompt.as_deref().unwrap_or_default()),
            None => matches!(name, "query" | "document").then_some(""),
        }
    }

    /// The names of the file's prompts.
    pub(super) fn prompt_names(&self) -> impl Iterator<Item = &str> {
        self.prompts.keys().map(String::as_str)
    }

    /// The prompt that a call gets.
    pub(super) fn resolve<'a>(&'a self, options: &'a EmbedOptions, task: Task) -> Result<&'a str, LoadError> {
        if let Some(prompt) = &options.prompt {
            return Ok(prompt);
        }
        if let Some(name) = &options.prompt_name {
            return self.prompt(name).ok_or_else(|| {
                let names: Vec<_> = self.prompt_names().collect();
                let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                LoadError::Asked(format!("the model has no prompt named `{name}`; it has: {known}"))
            });
        }
        let name = match task {
            Task::Any => self.default_prompt_name.as_deref(),
            Task::Query => Some("query"),
            Task::Document => Some("document"),
        };
        Ok(name.and_then(|name| self.prompt(name)).unwrap_or_default())
    }
}

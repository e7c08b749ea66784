//! `modules.json`: the steps that a sentence embedder is made of, and where their files are.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::steps::Kind;
use crate::files::read_json;
use crate::{LoadError, ModelConfig, Pooling, SENTENCE_CONFIG_NAMES};

/// The modules that can be run.
const SUPPORTED: &str =
    "Transformer, Pooling, Dense, LayerNorm, Normalize, Dropout (which does nothing here), StaticEmbedding";

/// What makes vectors of tokens, and what is then done with them.
#[derive(Debug)]
pub(super) struct Modules {
    pub input: Input,
    /// What follows, each with its folder, in order.
    pub steps: Vec<(Kind, PathBuf)>,
}

/// The first module, with its pooling.
#[derive(Debug)]
pub(super) enum Input {
    /// An encoder.
    Transformer {
        folder: PathBuf,
        /// The pooling's folder; without `modules.json` there is none, which means the mean.
        pooling: Option<PathBuf>,
    },
    /// A table of token vectors, whose mean is taken.
    Static { folder: PathBuf },
}

#[derive(Deserialize)]
struct Entry {
    path: String,
    #[serde(rename = "type")]
    class: String,
}

#[derive(Deserialize)]
struct Task {
    transformer_task: Option<String>,
}

impl Modules {
    /// Reads `modules.json` in `dir`; without one, the folder is an encoder's.
    pub(super) fn read(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("modules.json");
        let Some(entries) = read_json::<Vec<Entry>>(&path)? else {
            let input = Input::Transformer { folder: dir.to_owned(), pooling: None };
            return Ok(Self { input, steps: Vec::new() });
        };
        let (mut input, mut steps) = (None, Vec::new());
        for entry in &entries {
            let folder = entry.folder(dir, &path)?;
            // The class moved between packages over the years; its own name did not.
            let class = entry.class.rsplit('.').next().unwrap_or_default();
            let pooled = match &input {
                None => false,
                Some(Input::Static { .. }) => true,
                Some(Input::Transformer { pooling, .. }) => pooling.is_some(),
            };
            let in_order = match class {
                "Transformer" => input.replace(Input::Transformer { folder, pooling: None }).is_none(),
                "StaticEmbedding" => input.replace(Input::Static { folder }).is_none(),
                "Pooling" => match &mut input {
                    Some(Input::Transformer { pooling, .. }) if !pooled => {
                        *pooling = Some(folder);
                        true
                    }
                    _ => false,
                },
                "Dropout" => pooled,
                _ => {
                    let kind = Kind::of(class).ok_or_else(|| LoadError::Unsupported {
                        path: path.clone(),
                        what: "module",
                        found: entry.class.clone(),
                        supported: SUPPORTED,
                    })?;
                    steps.push((kind, folder));
                    pooled
                }
            };
            if !in_order {
                let reason = format!(
                    "`{}` comes twice or out of order (Transformer, Pooling, or StaticEmbedding; then the others)",
                    entry.class
                );
                return Err(LoadError::config(&path, reason));
            }
        }
        match input {
            Some(Input::Transformer { pooling: None, .. }) | None => {
                let reason =
                    "a sentence embedder needs a Transformer and a Pooling module, or a StaticEmbedding";
                Err(LoadError::config(&path, reason))
            }
            Some(input) => {
                if let Input::Transformer { folder, .. } = &input {
                    refuse_other_tasks(folder)?;
                }
                Ok(Self { input, steps })
            }
        }
    }

    /// How an encoder's vectors are pooled; `None` is for what needs no pooling.
    pub(super) fn pooling(&self, config: &ModelConfig) -> Result<Pooling, LoadError> {
        match &self.input {
            Input::Transformer { pooling: Some(folder), .. } => {
                Pooling::from_file(&folder.join("config.json"), config.hidden)
            }
            _ => Ok(Pooling::default()),
        }
    }
}

impl Entry {
    fn folder(&self, dir: &Path, modules: &Path) -> Result<PathBuf, LoadError> {
        let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !Path::new(&self.path).components().all(inside) {
            let reason = format!("the module path `{}` leaves the model's folder", self.path);
            return Err(LoadError::config(modules, reason));
        }
        Ok(if self.path.is_empty() { dir.to_owned() } else { dir.join(&self.path) })
    }
}

/// A `Transformer` may also be told to classify, or to generate: its vectors are then none of tokens.
fn refuse_other_tasks(folder: &Path) -> Result<(), LoadError> {
    for name in SENTENCE_CONFIG_NAMES {
        let path = folder.join(name);
        let Some(Task { transformer_task }) = read_json(&path)? else { continue };
        if let Some(found) = transformer_task.filter(|task| task != "feature-extraction") {
            let (what, supported) = ("transformer_task", "feature-extraction");
            return Err(LoadError::Unsupported { path, what, found, supported });
        }
        break;
    }
    Ok(())
}

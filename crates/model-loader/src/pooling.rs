//! Token vectors to one vector per text, as sentence-transformers' `Pooling` does.

use std::path::Path;

use serde::Deserialize;

use crate::LoadError;
use crate::files::read_json;

/// One way to make a text's vector from those of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PoolingMode {
    /// The first token's.
    Cls,
    /// The largest value of each component.
    Max,
    /// The mean.
    Mean,
    /// The sum over the square root of the number of tokens.
    MeanSqrtLen,
    /// The mean weighted by position: 1, 2, 3, …
    WeightedMean,
    /// The last token's.
    LastToken,
}

/// How a model pools: one mode or several, concatenated in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooling {
    /// The modes, at least one.
    pub modes: Vec<PoolingMode>,
    /// Whether a prompt's tokens count.
    pub include_prompt: bool,
}

impl Default for Pooling {
    /// The mean, prompt included: what a folder without `modules.json` gets.
    fn default() -> Self {
        Self { modes: vec![PoolingMode::Mean], include_prompt: true }
    }
}

/// The older schema has a flag per mode, the newer one names them.
#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a file format")]
struct Raw {
    #[serde(alias = "embedding_dimension")]
    word_embedding_dimension: Option<usize>,
    pooling_mode: Option<OneOrMany>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    include_prompt: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Pooling {
    /// Reads a pooling module's `config.json`, for token vectors of length `hidden`.
    pub(crate) fn from_file(path: &Path, hidden: usize) -> Result<Self, LoadError> {
        let raw: Raw = read_json(path)?.ok_or_else(|| LoadError::Missing {
            path: path.to_owned(),
            next: "modules.json names a pooling module, and this says how it pools".to_owned(),
        })?;
        if let Some(width) = raw.word_embedding_dimension.filter(|width| *width != hidden) {
            let reason = format!("it pools vectors of length {width} where the model's have {hidden}");
            return Err(LoadError::config(path, reason));
        }
        let modes = match &raw.pooling_mode {
            Some(named) => {
                let names = match named {
                    OneOrMany::One(name) => std::slice::from_ref(name),
                    OneOrMany::Many(names) => names,
                };
                names.iter().map(|name| PoolingMode::from_name(name, path)).collect::<Result<Vec<_>, _>>()?
            }
            None => [
                (raw.pooling_mode_cls_token, PoolingMode::Cls),
                (raw.pooling_mode_max_tokens, PoolingMode::Max),
                (raw.pooling_mode_mean_tokens, PoolingMode::Mean),
                (raw.pooling_mode_mean_sqrt_len_tokens, PoolingMode::MeanSqrtLen),
                (raw.pooling_mode_weightedmean_tokens, PoolingMode::WeightedMean),
                (raw.pooling_mode_lasttoken, PoolingMode::LastToken),
            ]
            .into_iter()
            .filter_map(|(on, mode)| on.then_some(mode))
            .collect(),
        };
        let modes = if modes.is_empty() { vec![PoolingMode::Mean] } else { modes };
        Ok(Self { modes, include_prompt: raw.include_prompt.unwrap_or(true) })
    }

    /// Length of a text's vector when a token's has `hidden`.
    #[must_use]
    pub fn dimension(&self, hidden: usize) -> usize {
        self.modes.len() * hidden
    }

    /// One vector of a text's token vectors, `[tokens, hidden]`, leaving out the first `prompt_tokens` of them if prompts do
    /// not count.
    #[must_use]
    pub fn pool(&self, vectors: &[f32], hidden: usize, prompt_tokens: usize) -> Vec<f32> {
        let skip = if self.include_prompt { 0 } else { prompt_tokens };
        let tokens: Vec<(usize, &[f32])> = vectors.chunks_exact(hidden).enumerate().skip(skip).collect();
        self.modes.iter().flat_map(|mode| mode.pool(&tokens, hidden)).collect()
    }
}

impl PoolingMode {
    fn from_name(name: &str, path: &Path) -> Result<Self, LoadError> {
        Ok(match name {
            "cls" => Self::Cls,
            "max" => Self::Max,
            "mean" => Self::Mean,
            "mean_sqrt_len_tokens" => Self::MeanSqrtLen,
            "weightedmean" => Self::WeightedMean,
            "lasttoken" => Self::LastToken,
            other => {
                return Err(LoadError::Unsupported {
                    path: path.to_owned(),
                    what: "pooling_mode",
                    found: other.to_owned(),
                    supported: "cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken",
                });
            }
        })
    }

    /// `tokens` are those that count, each with its position; with none of them the vector is 0.
    fn pool(self, tokens: &[(usize, &[f32])], width: usize) -> Vec<f32> {
        // sentence-transformers' guard against a division by 0.
        const TINY: f32 = 1e-9;
        let only =
            |token: Option<&(usize, &[f32])>| token.map_or(vec![0.0; width], |(_, vector)| vector.to_vec());
        let weighted = |weight: fn(usize) -> f32, divisor: fn(f32) -> f32| {
            let mut sum = vec![0.0; width];
            let mut total = 0.0;
            for (position, vector) in tokens {
                let weight = weight(*position);
                total += weight;
                for (sum, x) in sum.iter_mut().zip(*vector) {
                    *sum += x * weight;
                }
            }
            let divisor = divisor(total.max(TINY));
            for x in &mut sum {
                *x /= divisor;
            }
            sum
        };
        match self {
            Self::Cls => only(tokens.first()),
            Self::LastToken => only(tokens.last()),
            Self::Max => {
                let mut max = only(tokens.first());
                for (_, vector) in tokens {
                    max.iter_mut().zip(*vector).for_each(|(max, x)| *max = max.max(*x));
                }
                max
            }
            Self::Mean => weighted(|_| 1.0, |total| total),
            Self::MeanSqrtLen => weighted(|_| 1.0, f32::sqrt),
            Self::WeightedMean => weighted(|position| (position + 1) as f32, |total| total),
        }
    }
}

/// Scales a vector to length 1, as `torch.nn.functional.normalize` does: a length below 1e-12 counts as 1e-12.
pub(crate) fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    for x in vector {
        *x /= length;
    }
}

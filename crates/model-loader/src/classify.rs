//! Sequence classification with BERT's and `RoBERTa`'s heads.

use std::path::Path;

use candle_core::{Device, Tensor};

use crate::batch::by_length;
use crate::config::{Activation, Family, Scoring};
use crate::encoder::{Linear, Scope, prefix};
use crate::ops::softmax;
use crate::resolve::{ResolveOptions, ResolvedModel};
use crate::sentence::TOKEN_BUDGET;
use crate::weights::{Weights, all_finite};
use crate::{Encoder, Hidden, LoadError, ModelConfig, TokenBatch, Tokenizer};

/// Texts to labels.
///
/// ```no_run
/// let classifier = model_loader::TextClassifier::from_dir("models/sentiment")?;
/// let predictions = classifier.classify(&["What a day!"])?;
/// println!("{} {:.3}", predictions[0].label, predictions[0].score);
/// # Ok::<(), model_loader::LoadError>(())
/// ```
#[derive(Debug)]
pub struct TextClassifier {
    encoder: Encoder,
    tokenizer: Tokenizer,
    head: Head,
    resolved: Option<ResolvedModel>,
}

/// The label of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The label with the highest score.
    pub label: String,
    /// Its score: a probability, or the value itself for a regression.
    pub score: f32,
    /// The scores of all labels, in the order of [`TextClassifier::labels`].
    pub scores: Vec<f32>,
}

/// Both families look at the first token only, through a tanh layer and a linear one.
#[derive(Debug)]
struct Head {
    dense: Linear,
    output: Linear,
}

impl TextClassifier {
    /// Loads a folder that transformers saved from a `…ForSequenceClassification`.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let config = ModelConfig::from_dir(dir)?;
        config.refuse_other_heads()?;
        let weights = Weights::open(dir)?;
        let head = Head::load(&config, &weights)?;
        let (tokenizer, encoder) =
            rayon::join(|| Tokenizer::from_dir(dir, &config), || Encoder::load(config.clone(), &weights));
        Ok(Self { encoder: encoder?, tokenizer: tokenizer?, head, resolved: None })
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

    /// The labels, in the order of the logits.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.encoder.config().labels
    }

    /// The logits of a batch of tokens: a row per text, a column per label.
    pub fn logits(&self, batch: &TokenBatch) -> Result<Vec<Vec<f32>>, LoadError> {
        let hidden = self.encoder.forward(batch)?;
        let logits = self.head.run(&hidden).map_err(LoadError::compute("the classification head"))?;
        match logits.iter().position(|row| !all_finite(row)) {
            Some(row) => Err(LoadError::NotFinite { row }),
            None => Ok(logits),
        }
    }

    /// The labels of the texts, in their order.
    pub fn classify<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Prediction>, LoadError> {
        let tokens = self.tokenizer.encode_batch(texts)?;
        let mut predictions = vec![None; tokens.len()];
        for group in by_length(&tokens, TOKEN_BUDGET) {
            let batch = TokenBatch::pad(group.iter().map(|index| &tokens[*index]), self.tokenizer.pad_id());
            let logits = self.logits(&batch).map_err(|error| match error {
                LoadError::NotFinite { row } => LoadError::NotFinite { row: group[row] },
                other => other,
            })?;
            for (index, logits) in group.into_iter().zip(logits) {
                predictions[index] = Some(self.predict(logits));
            }
        }
        Ok(predictions.into_iter().flatten().collect())
    }

    fn predict(&self, mut scores: Vec<f32>) -> Prediction {
        match self.encoder.config().scoring {
            Scoring::Softmax => softmax(&mut scores, 1.0),
            Scoring::Sigmoid => {
                for x in &mut scores {
                    *x = 1.0 / (1.0 + (-*x).exp());
                }
            }
            Scoring::Identity => {}
        }
        let best = (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
        Prediction { label: self.labels()[best].clone(), score: scores[best], scores }
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

impl Head {
    fn load(config: &ModelConfig, weights: &Weights) -> Result<Self, LoadError> {
        let (hidden, labels) = (config.hidden, config.labels.len());
        let eps = config.layer_norm_eps;
        let encoder = Scope { weights, prefix: prefix(weights, config.family), eps };
        let top = Scope { weights, prefix: "", eps };
        Ok(match config.family {
            Family::Bert => Self {
                dense: encoder.linear(&["pooler.dense"], hidden, hidden)?,
                output: top.linear(&["classifier"], hidden, labels)?,
            },
            Family::Roberta => Self {
                dense: top.linear(&["classifier.dense"], hidden, hidden)?,
                output: top.linear(&["classifier.out_proj"], hidden, labels)?,
            },
        })
    }

    fn run(&self, hidden: &Hidden) -> candle_core::Result<Vec<Vec<f32>>> {
        let row = hidden.seq * hidden.width;
        let first: Vec<f32> =
            hidden.values.chunks_exact(row).flat_map(|row| &row[..hidden.width]).copied().collect();
        let first = Tensor::from_vec(first, (hidden.rows, hidden.width), &Device::Cpu)?;
        self.output.forward(&self.dense.forward(&first, Some(Activation::Tanh))?, None)?.to_vec2()
    }
}

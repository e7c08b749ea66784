//! Sequence classification.

use std::path::Path;

use cpu_kernels::softmax;

use crate::config::Scoring;
use crate::encoder::head::Head;
use crate::resolve::{ResolveOptions, ResolvedModel};
use crate::weights::{Weights, all_finite};
use crate::{Encoder, LoadError, ModelConfig, TokenBatch, Tokenizer};

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

impl TextClassifier {
    /// Loads a folder that transformers saved from a `…ForSequenceClassification`.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let config = ModelConfig::from_dir(dir)?;
        config.refuse_other_heads()?;
        let weights = Weights::open(dir)?;
        let head = Head::load(&config, &weights)?;
        let (tokenizer, encoder) = rayon::join(
            || Tokenizer::from_dir(dir, &config),
            || Encoder::load(config.clone(), &weights, &crate::LoadOptions::default()),
        );
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
        self.encoder.map_batch(batch, |row, vectors| self.run(row, vectors))
    }

    fn run(&self, row: usize, vectors: &[f32]) -> Result<Vec<f32>, LoadError> {
        let logits = self.head.run(vectors);
        if all_finite(&logits) { Ok(logits) } else { Err(LoadError::NotFinite { row }) }
    }

    /// The labels of the texts, in their order.
    pub fn classify<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Prediction>, LoadError> {
        let tokens = self.tokenizer.encode_batch(texts)?;
        self.encoder.map_texts(&tokens, |row, vectors| Ok(self.predict(self.run(row, vectors)?)))
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

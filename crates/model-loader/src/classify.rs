//! Sequence classification: one text or a pair of texts to labels.

use std::path::Path;

use cpu_kernels::softmax;

use crate::config::Scoring;
use crate::encoder::head::Head;
use crate::resolve::{ResolveOptions, ResolvedModel};
use crate::weights::{Weights, all_finite};
use crate::{Backend, Encoder, LoadError, LoadOptions, ModelConfig, TokenBatch, Tokenizer, Tokens};

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
    network: Network,
    config: ModelConfig,
    tokenizer: Tokenizer,
    resolved: Option<ResolvedModel>,
}

/// What gives the logits.
#[derive(Debug)]
enum Network {
    Encoder(Box<(Encoder, Head)>),
    #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
    Graph(crate::graph::Graph),
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
        Self::from_dir_with(dir, &LoadOptions::default())
    }

    /// [`from_dir`](Self::from_dir) with a backend or a device asked for.
    pub fn from_dir_with(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        let config = ModelConfig::from_dir(dir)?;
        config.refuse_other_heads()?;
        let (network, tokenizer) = Network::load(dir, &config, options)?;
        let model = Self { network, config, tokenizer, resolved: None };
        #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
        let model = model.checked()?;
        tracing::debug!(path = %dir.display(), backend = %model.backend(), "text classifier loaded");
        Ok(model)
    }

    /// A graph has to give a logit for each label.
    #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
    fn checked(self) -> Result<Self, LoadError> {
        if matches!(self.network, Network::Graph(_)) {
            self.classify(&["A sentence."])?;
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

    /// The labels, in the order of the logits.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.config.labels
    }

    /// Whether each label is true or not by itself, so that several may hold: scores are then probabilities of their
    /// own and have no common sum.
    #[must_use]
    pub fn is_multi_label(&self) -> bool {
        self.config.scoring == Scoring::Sigmoid && self.labels().len() > 1
    }

    /// The logits of a batch of tokens: a row per text, a column per label.
    pub fn logits(&self, batch: &TokenBatch) -> Result<Vec<Vec<f32>>, LoadError> {
        match &self.network {
            Network::Encoder(model) => {
                model.0.map_batch(batch, |row, vectors| finite(row, model.1.run(vectors)))
            }
            #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
            Network::Graph(graph) => graph.map_batch(batch, |row, logits, _| finite(row, logits.to_vec())),
        }
    }

    /// The labels of the texts, in their order.
    pub fn classify<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Prediction>, LoadError> {
        self.classify_tokens(&self.tokenizer.encode_batch(texts)?)
    }

    /// The labels of pairs of texts, such as a premise and a hypothesis, or a question and a passage, in their order.
    /// A pair that is too long loses the end of its longer text.
    pub fn classify_pairs<A, B>(&self, pairs: &[(A, B)]) -> Result<Vec<Prediction>, LoadError>
    where
        A: AsRef<str> + Sync,
        B: AsRef<str> + Sync,
    {
        self.classify_tokens(&self.tokenizer.encode_pairs(pairs)?)
    }

    fn classify_tokens(&self, tokens: &[Tokens]) -> Result<Vec<Prediction>, LoadError> {
        self.map(tokens, |logits| Ok(self.predict(logits)))
    }

    /// Each text's logits through `f`.
    fn map<T: Send>(
        &self,
        tokens: &[Tokens],
        f: impl Fn(Vec<f32>) -> Result<T, LoadError> + Sync,
    ) -> Result<Vec<T>, LoadError> {
        match &self.network {
            Network::Encoder(model) => {
                let (encoder, head) = &**model;
                encoder.map_texts(tokens, |row, vectors| f(finite(row, head.run(vectors))?))
            }
            #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
            Network::Graph(graph) => graph.map_texts(tokens, |row, logits, found| {
                let expected = self.labels().len();
                if found != expected {
                    let reason = format!("gives {found} logits where config.json has {expected} labels");
                    return Err(graph.misfit(&reason));
                }
                f(finite(row, logits.to_vec())?)
            }),
        }
    }

    fn predict(&self, mut scores: Vec<f32>) -> Prediction {
        match self.config.scoring {
            Scoring::Softmax => softmax(&mut scores, 1.0),
            Scoring::Sigmoid => scores.iter_mut().for_each(|x| *x = sigmoid(*x)),
            Scoring::Identity => {}
        }
        let best = (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
        Prediction { label: self.labels()[best].clone(), score: scores[best], scores }
    }

    /// A prediction's labels with their scores, the highest first, at most `count`.
    ///
    /// ```no_run
    /// let classifier = model_loader::TextClassifier::from_dir("models/topics")?;
    /// let predictions = classifier.classify(&["Profits rose and ships wait."])?;
    /// for (label, score) in classifier.top(&predictions[0], 3) {
    ///     println!("{label} {score:.3}");
    /// }
    /// # Ok::<(), model_loader::LoadError>(())
    /// ```
    #[must_use]
    pub fn top(&self, prediction: &Prediction, count: usize) -> Vec<(&str, f32)> {
        let names = self.labels().iter().map(String::as_str);
        let mut labels: Vec<_> = names.zip(prediction.scores.iter().copied()).collect();
        // Stable: of equal scores the first label stays first.
        labels.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        labels.truncate(count);
        labels
    }

    /// A prediction's labels whose scores are at least `threshold`, in the order of [`labels`](Self::labels): what holds
    /// for a text of a multi-label model, mostly with 0.5.
    #[must_use]
    pub fn above(&self, prediction: &Prediction, threshold: f32) -> Vec<(&str, f32)> {
        let names = self.labels().iter().map(String::as_str);
        names.zip(prediction.scores.iter().copied()).filter(|(_, score)| *score >= threshold).collect()
    }

    /// What computes the logits: what [`Backend::Auto`] became, or what was asked for.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match &self.network {
            Network::Encoder(model) => model.0.backend(),
            #[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
            Network::Graph(graph) => graph.backend(),
        }
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where the model came from, when it was loaded for an agent.
    #[must_use]
    pub fn resolved(&self) -> Option<&ResolvedModel> {
        self.resolved.as_ref()
    }
}

#[cfg(any(feature = "onnxruntime", feature = "tensorrt"))]
const GRAPH_OUTPUTS: [(&str, usize); 1] = [("logits", 2)];

impl Network {
    fn load(dir: &Path, config: &ModelConfig, options: &LoadOptions) -> Result<(Self, Tokenizer), LoadError> {
        #[cfg(feature = "tensorrt")]
        if let Some((graph, tokenizer)) = options.in_tensorrt(|| {
            let mut tokenizer = Tokenizer::from_dir(dir, config)?;
            let (graph, longest) = crate::tensorrt::find(dir, &GRAPH_OUTPUTS, tokenizer.pad_id(), options)?;
            tokenizer.shorten(longest)?;
            Ok((graph, tokenizer))
        })? {
            return Ok((Self::Graph(graph), tokenizer));
        }
        #[cfg(feature = "onnxruntime")]
        if options.backend == Backend::OnnxRuntime {
            options.require_cpu()?;
            let tokenizer = Tokenizer::from_dir(dir, config)?;
            let graph = crate::onnx::find(&[dir], &GRAPH_OUTPUTS, tokenizer.pad_id())?;
            return Ok((Self::Graph(graph), tokenizer));
        }
        options.require_built()?;
        let weights = Weights::open(dir)?;
        let head = Head::load(config, &weights)?;
        let (tokenizer, encoder) = rayon::join(
            || Tokenizer::from_dir(dir, config),
            || Encoder::load(config.clone(), &weights, options),
        );
        Ok((Self::Encoder(Box::new((encoder?, head))), tokenizer?))
    }
}

fn finite(row: usize, logits: Vec<f32>) -> Result<Vec<f32>, LoadError> {
    if all_finite(&logits) { Ok(logits) } else { Err(LoadError::NotFinite { row }) }
}

/// `1 / (1 + e⁻ˣ)`.
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

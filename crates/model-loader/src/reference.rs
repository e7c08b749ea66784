//! The float32 reference of a model folder: what an exported graph or an engine must reproduce.

use std::path::Path;

use crate::weights::Weights;
use crate::{
    Backend, Encoder, LoadError, LoadOptions, ModelConfig, SentenceEmbedder, TextClassifier, TokenBatch,
    Tokenizer,
};

/// What a model gives for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Head {
    /// A vector for each token: `last_hidden_state`.
    HiddenStates,
    /// One vector, pooled and normalised as the folder says.
    SentenceEmbedding,
    /// A logit for each label.
    SequenceClassification,
}

impl Head {
    /// The head that a folder's files call for: `modules.json` makes a sentence embedder, an architecture named
    /// `…ForSequenceClassification` a classifier, and a bare or a masked language model gives hidden states. Without
    /// `architectures` in `config.json`, a classifier is known by its weights.
    ///
    /// Other heads, such as `…ForTokenClassification`, are an [`LoadError::Unsupported`].
    pub fn detect(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        if dir.join("modules.json").is_file() {
            return Ok(Self::SentenceEmbedding);
        }
        let config = ModelConfig::from_dir(dir)?;
        config.refuse_other_heads()?;
        let classifies = if config.architectures.is_empty() {
            let weights = Weights::open(dir)?;
            ["classifier.weight", "classifier.out_proj.weight"].iter().any(|name| weights.contains(name))
        } else {
            config.is_sequence_classifier()
        };
        Ok(if classifies { Self::SequenceClassification } else { Self::HiddenStates })
    }

    /// The name as it stands in manifests and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HiddenStates => "hidden-states",
            Self::SentenceEmbedding => "sentence-embedding",
            Self::SequenceClassification => "sequence-classification",
        }
    }
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What the reference gives for a batch: row-major values and their shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// `[rows, seq, hidden]`, `[rows, dimension]` or `[rows, labels]`, by head.
    pub shape: Vec<usize>,
    /// As many values as the shape says. For hidden states, those at padded positions mean nothing.
    pub values: Vec<f32>,
}

/// A model loaded to be compared with.
///
/// ```no_run
/// use model_loader::{Head, Reference, TokenBatch};
///
/// let reference = Reference::from_dir("models/all-MiniLM-L6-v2", Head::SentenceEmbedding)?;
/// let tokens = reference.tokenizer().encode_batch(&["A sentence."])?;
/// let output = reference.run(&TokenBatch::pad(&tokens, reference.tokenizer().pad_id()))?;
/// assert_eq!(output.shape, [1, 384]);
/// # Ok::<(), model_loader::LoadError>(())
/// ```
#[derive(Debug)]
pub struct Reference {
    model: Model,
}

#[derive(Debug)]
enum Model {
    Hidden(Box<(Tokenizer, Encoder)>),
    Sentence(Box<SentenceEmbedder>),
    Classifier(Box<TextClassifier>),
}

impl Reference {
    /// Loads the folder with this head.
    pub fn from_dir(dir: impl AsRef<Path>, head: Head) -> Result<Self, LoadError> {
        let dir = dir.as_ref();
        // A graph is what is held against this.
        let own = LoadOptions { backend: Backend::Cpu, ..LoadOptions::default() };
        let model = match head {
            Head::HiddenStates => {
                Model::Hidden(Box::new(crate::sentence::load_both(dir, &ModelConfig::from_dir(dir)?, &own)?))
            }
            Head::SentenceEmbedding => Model::Sentence(Box::new(SentenceEmbedder::from_dir_with(dir, &own)?)),
            Head::SequenceClassification => {
                Model::Classifier(Box::new(TextClassifier::from_dir_with(dir, &own)?))
            }
        };
        Ok(Self { model })
    }

    /// The model's output for a batch of tokens, all of it finite.
    pub fn run(&self, batch: &TokenBatch) -> Result<Output, LoadError> {
        let table = |rows: Vec<Vec<f32>>| Output {
            shape: vec![rows.len(), rows.first().map_or(0, Vec::len)],
            values: rows.into_iter().flatten().collect(),
        };
        match &self.model {
            Model::Hidden(pair) => {
                let hidden = pair.1.forward(batch)?;
                let shape = vec![hidden.rows, hidden.seq, hidden.width];
                match hidden.values.iter().position(|x| !x.is_finite()) {
                    Some(at) => Err(LoadError::NotFinite { row: at / (hidden.seq * hidden.width) }),
                    None => Ok(Output { shape, values: hidden.values }),
                }
            }
            Model::Sentence(embedder) => embedder.embed_tokens(batch).map(table),
            Model::Classifier(classifier) => classifier.logits(batch).map(table),
        }
    }

    /// The head it runs.
    #[must_use]
    pub fn head(&self) -> Head {
        match &self.model {
            Model::Hidden(_) => Head::HiddenStates,
            Model::Sentence(_) => Head::SentenceEmbedding,
            Model::Classifier(_) => Head::SequenceClassification,
        }
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        match &self.model {
            Model::Hidden(pair) => &pair.0,
            Model::Sentence(embedder) => embedder.tokenizer(),
            Model::Classifier(classifier) => classifier.tokenizer(),
        }
    }

    /// The encoder's configuration; a table of token vectors has none.
    #[must_use]
    pub fn config(&self) -> Option<&ModelConfig> {
        match &self.model {
            Model::Hidden(pair) => Some(pair.1.config()),
            Model::Sentence(embedder) => embedder.config(),
            Model::Classifier(classifier) => Some(classifier.config()),
        }
    }
}

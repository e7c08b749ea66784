//! `config.json` as `transformers` writes it: what the encoders need of it, validated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::LoadError;
use crate::files::read_json;

mod deberta;
mod modern;

use deberta::RawDeberta;
use modern::RawModern;

/// The kinds of encoder this crate runs.
pub const SUPPORTED_MODEL_TYPES: &str =
    "albert, bert, camembert, deberta-v2, distilbert, electra, modernbert, mpnet, roberta, xlm-roberta";

/// The heads whose results are neither token vectors nor a text's labels.
const OTHER_HEADS: [&str; 3] = ["ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice"];

/// A family of encoders: they differ in how positions come in, in the classification head and in the tensors' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// `model_type` `albert`: BERT with one layer run again and again, over narrow embeddings.
    Albert,
    /// `model_type` `bert`.
    Bert,
    /// `model_type` `deberta-v2`, which is that of `DeBERTa` v3 too: attention to places beside contents.
    DebertaV2,
    /// `model_type` `distilbert`: BERT without token types and pooler.
    DistilBert,
    /// `model_type` `electra`: BERT, maybe over narrow embeddings.
    Electra,
    /// `model_type` `modernbert`: rotary positions, norms before each block, gated feed-forward, local attention.
    ModernBert,
    /// `model_type` `mpnet`: `RoBERTa` with a bias by distance in its attention.
    Mpnet,
    /// `model_type` `roberta`, `xlm-roberta` or `camembert`, which are one architecture.
    Roberta,
}

fn unsupported(path: &Path, what: &'static str, found: &str, supported: &'static str) -> LoadError {
    LoadError::Unsupported { path: path.to_owned(), what, found: found.to_owned(), supported }
}

impl Family {
    fn of(model_type: &str, path: &Path) -> Result<Self, LoadError> {
        Ok(match model_type {
            "albert" => Self::Albert,
            "bert" => Self::Bert,
            "deberta-v2" => Self::DebertaV2,
            "distilbert" => Self::DistilBert,
            "electra" => Self::Electra,
            "modernbert" => Self::ModernBert,
            "mpnet" => Self::Mpnet,
            "roberta" | "xlm-roberta" | "camembert" => Self::Roberta,
            other => return Err(unsupported(path, "model_type", other, SUPPORTED_MODEL_TYPES)),
        })
    }

    /// Whether positions are counted from the padding id on, as fairseq did.
    pub(crate) fn counts_from_pad(self) -> bool {
        matches!(self, Self::Roberta | Self::Mpnet)
    }

    /// Whether token types are looked up by the ids given; the others have one type or none.
    pub(crate) fn uses_types(self) -> bool {
        matches!(self, Self::Albert | Self::Bert | Self::DebertaV2 | Self::Electra)
    }
}

/// The activation between the two products of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x/2 · (1 + erf(x/√2))`: `gelu`, exact.
    Gelu,
    /// The tanh approximation: `gelu_new`, `gelu_fast`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x · sigmoid(x)`: `silu`, `swish`.
    Silu,
    /// `tanh(x)`.
    Tanh,
}

/// How a classifier's logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scoring {
    /// One label of several is true: softmax.
    Softmax,
    /// Each label is true or not by itself (or there is only one): sigmoid.
    Sigmoid,
    /// A regression: the logit itself.
    Identity,
}

/// What a folder's `config.json` says of its model, checked for sense.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The file it was read from.
    pub path: PathBuf,
    /// The `model_type` as written, such as `bert`.
    pub model_type: String,
    /// The family it belongs to.
    pub family: Family,
    /// The class names the model was saved from, such as `BertForSequenceClassification`.
    pub architectures: Vec<String>,
    /// Rows of the word embedding.
    pub vocab_size: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Width of the embeddings, where a product makes token vectors of them.
    pub embedding: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Attention heads; they divide `hidden`.
    pub heads: usize,
    /// Width inside the feed-forward block.
    pub intermediate: usize,
    /// Its activation.
    pub activation: Activation,
    /// Added to the variance in each layer norm.
    pub layer_norm_eps: f32,
    /// Rows of the position embedding; see [`max_tokens`](Self::max_tokens).
    pub max_positions: usize,
    /// Rows of the token type embedding; 0 where there is none.
    pub type_vocab_size: usize,
    /// The id of the padding token.
    pub pad_id: u32,
    /// The labels of a classifier, by index.
    pub labels: Vec<String>,
    /// How a classifier's logits become scores.
    pub scoring: Scoring,
    pub(crate) modern: Option<ModernBert>,
    pub(crate) deberta: Option<Deberta>,
}

/// What only `DeBERTa` has.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deberta {
    /// How attention looks at places; `None` where it does not.
    pub places: Option<Places>,
    /// Whether positions are added to the words.
    pub has_positions: bool,
    pub pooler_activation: Activation,
}

/// How attention looks at places.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a file format")]
pub(crate) struct Places {
    /// Distances from here on are one place.
    pub farthest: usize,
    /// Places to either side, where distances share them by their logarithm.
    pub buckets: Option<usize>,
    pub queries_look: bool,
    pub keys_look: bool,
    /// Whether places go through the products of queries and keys, or through their own.
    pub shares_products: bool,
    pub is_normalised: bool,
}

/// What only `ModernBERT` has.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a file format")]
pub(crate) struct ModernBert {
    /// How far to either side a local layer looks.
    pub window: usize,
    /// Whether each layer is local.
    pub is_local: Vec<bool>,
    pub local_theta: f64,
    pub global_theta: f64,
    pub has_attention_bias: bool,
    pub has_mlp_bias: bool,
    pub has_norm_bias: bool,
    pub has_classifier_bias: bool,
    pub classifier_activation: Activation,
    /// Whether a classifier looks at the mean of all tokens, or at the first.
    pub classifies_mean: bool,
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// ```no_run
    /// let config = model_loader::ModelConfig::from_dir("models/all-MiniLM-L6-v2")?;
    /// assert_eq!((config.num_layers, config.hidden), (6, 384));
    /// # Ok::<(), model_loader::LoadError>(())
    /// ```
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = dir.as_ref().join("config.json");
        let raw: Raw = read_json(&path)?.ok_or_else(|| LoadError::Missing {
            path: path.clone(),
            next: "a model folder has a config.json as transformers writes it".to_owned(),
        })?;
        raw.check(path)
    }

    /// The longest sequence that has positions, special tokens included: `RoBERTa` counts its positions from the
    /// padding id on and so has fewer than rows.
    #[must_use]
    pub fn max_tokens(&self) -> usize {
        if self.family.counts_from_pad() {
            self.max_positions.saturating_sub(self.position_pad() as usize + 1)
        } else {
            self.max_positions
        }
    }

    /// The id whose tokens have no position, in families that count from it: `MPNet` has it fixed at 1.
    pub(crate) fn position_pad(&self) -> u32 {
        if self.family == Family::Mpnet { 1 } else { self.pad_id }
    }

    /// An error if the model was saved with a head that nothing here runs: its encoder alone would load, and answer
    /// something else than the model does.
    pub(crate) fn refuse_other_heads(&self) -> Result<(), LoadError> {
        let other = |name: &&String| OTHER_HEADS.iter().any(|head| name.ends_with(head));
        match self.architectures.iter().find(other) {
            Some(name) => Err(LoadError::Unsupported {
                path: self.path.clone(),
                what: "architecture",
                found: name.clone(),
                supported: "…Model, …ForMaskedLM and …ForPreTraining (their encoder), …ForSequenceClassification",
            }),
            None => Ok(()),
        }
    }

    /// Whether the model was saved as a sequence classifier.
    #[must_use]
    pub fn is_sequence_classifier(&self) -> bool {
        self.architectures.iter().any(|name| name.ends_with("ForSequenceClassification"))
    }
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    embedding_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
    // DistilBERT's words.
    dim: Option<usize>,
    n_layers: Option<usize>,
    n_heads: Option<usize>,
    hidden_dim: Option<usize>,
    activation: Option<String>,
    // ModernBERT's; files of it have some of the others' too.
    hidden_activation: Option<String>,
    norm_eps: Option<f32>,
    max_position_embeddings: Option<usize>,
    type_vocab_size: Option<usize>,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    num_hidden_groups: Option<usize>,
    inner_group_num: Option<usize>,
    id2label: Option<BTreeMap<String, String>>,
    num_labels: Option<usize>,
    problem_type: Option<String>,
    #[serde(flatten)]
    modern: RawModern,
    #[serde(flatten)]
    deberta: RawDeberta,
}

impl Raw {
    /// Moves a family's own words to the common ones.
    fn rename(&mut self) {
        match self.model_type.as_deref() {
            Some("distilbert") => {
                self.hidden_size = self.dim;
                self.num_hidden_layers = self.n_layers;
                self.num_attention_heads = self.n_heads;
                self.intermediate_size = self.hidden_dim;
                self.hidden_act = self.activation.take();
                // Its norms are written with this, whatever the file says.
                self.layer_norm_eps = Some(1e-12);
            }
            Some("modernbert") => {
                self.hidden_act = self.hidden_activation.take();
                self.layer_norm_eps = self.norm_eps.or(Some(1e-5));
                self.position_embedding_type = None;
            }
            // Its own default, and 0 rows are none.
            Some("deberta-v2") => {
                self.layer_norm_eps = self.layer_norm_eps.or(Some(1e-7));
                self.type_vocab_size = self.type_vocab_size.or(Some(0));
            }
            _ => {}
        }
    }

    fn check(mut self, path: PathBuf) -> Result<ModelConfig, LoadError> {
        self.rename();
        let unsupported = |what, found: &str, supported| unsupported(&path, what, found, supported);
        let model_type = self.model_type.clone().ok_or_else(|| {
            LoadError::config(&path, "`model_type` is missing: which architecture is this?")
        })?;
        let family = Family::of(&model_type, &path)?;
        let position = self.position_embedding_type.as_deref().unwrap_or("absolute");
        if position != "absolute" {
            return Err(unsupported("position_embedding_type", position, "absolute"));
        }
        if self.is_decoder {
            return Err(unsupported("is_decoder", "true", "false (an encoder)"));
        }
        let groups = self.num_hidden_groups.unwrap_or(1).max(self.inner_group_num.unwrap_or(1));
        if family == Family::Albert && groups != 1 {
            return Err(unsupported("num_hidden_groups or inner_group_num", &groups.to_string(), "1"));
        }
        let size = |key: &str, value: Option<usize>| match value {
            Some(size) if (1..=1 << 24).contains(&size) => Ok(size),
            Some(size) => Err(LoadError::config(&path, format!("`{key}` is {size}, out of range"))),
            None => Err(LoadError::config(&path, format!("`{key}` is missing"))),
        };
        let (hidden, heads) =
            (size("hidden_size", self.hidden_size)?, size("num_attention_heads", self.num_attention_heads)?);
        if !hidden.is_multiple_of(heads) {
            let reason = format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}");
            return Err(LoadError::config(&path, reason));
        }
        let layer_norm_eps = self.layer_norm_eps.unwrap_or(1e-12);
        if !(0.0..1.0).contains(&layer_norm_eps) {
            let reason = format!("`layer_norm_eps` is {layer_norm_eps}, out of range");
            return Err(LoadError::config(&path, reason));
        }
        let max_positions = size("max_position_embeddings", self.max_position_embeddings)?;
        let pad_id = self.pad_token_id.unwrap_or(u32::from(family.counts_from_pad()));
        if family == Family::Roberta && max_positions <= pad_id as usize + 1 {
            let reason = format!(
                "`max_position_embeddings` {max_positions} leaves no position after `pad_token_id` {pad_id}"
            );
            return Err(LoadError::config(&path, reason));
        }
        let act = self.hidden_act.as_deref().unwrap_or("gelu");
        let activation = Activation::from_name(act)
            .ok_or_else(|| unsupported("hidden_act", act, Activation::SUPPORTED))?;
        let labels = self.labels(&path)?;
        let scoring = self.scoring(labels.len(), &path)?;
        let num_layers = size("num_hidden_layers", self.num_hidden_layers)?;
        if num_layers > 1 << 12 {
            return Err(LoadError::config(
                &path,
                format!("`num_hidden_layers` is {num_layers}, out of range"),
            ));
        }
        let embedding = match (family, self.embedding_size) {
            (Family::Albert | Family::Electra, None) => 128,
            (Family::Albert | Family::Electra, given) => size("embedding_size", given)?,
            (Family::DebertaV2, Some(given)) if given != hidden => {
                let found = given.to_string();
                return Err(unsupported("embedding_size", &found, "that of hidden_size"));
            }
            _ => hidden,
        };
        let modern = match family {
            Family::ModernBert => {
                Some(self.modern.check(num_layers, hidden / heads, max_positions, &path)?)
            }
            _ => None,
        };
        let deberta = match family {
            Family::DebertaV2 => Some(self.deberta.check(hidden, hidden / heads, max_positions, &path)?),
            _ => None,
        };
        let type_vocab_size = match (family, self.type_vocab_size) {
            (Family::DebertaV2, Some(0)) => 0,
            (_, given) => size("type_vocab_size", given.or(Some(2)))?,
        };
        Ok(ModelConfig {
            family,
            architectures: self.architectures.clone().unwrap_or_default(),
            vocab_size: size("vocab_size", self.vocab_size)?,
            hidden,
            embedding,
            num_layers,
            heads,
            intermediate: size("intermediate_size", self.intermediate_size)?,
            activation,
            layer_norm_eps,
            max_positions,
            type_vocab_size,
            pad_id,
            labels,
            scoring,
            modern,
            deberta,
            model_type,
            path,
        })
    }

    fn scoring(&self, labels: usize, path: &Path) -> Result<Scoring, LoadError> {
        Ok(match (self.problem_type.as_deref(), labels) {
            (Some("regression"), _) => Scoring::Identity,
            (Some("multi_label_classification"), _) | (Some("single_label_classification") | None, 1) => {
                Scoring::Sigmoid
            }
            (Some("single_label_classification") | None, _) => Scoring::Softmax,
            (Some(other), _) => {
                let supported = "regression, single_label_classification, multi_label_classification";
                return Err(unsupported(path, "problem_type", other, supported));
            }
        })
    }

    /// Labels by index; without `id2label` there are `num_labels` (transformers' default: 2) called `LABEL_<i>`.
    fn labels(&self, path: &Path) -> Result<Vec<String>, LoadError> {
        let Some(named) = self.id2label.as_ref().filter(|named| !named.is_empty()) else {
            let count = self.num_labels.unwrap_or(2);
            if !(1..=1 << 20).contains(&count) {
                return Err(LoadError::config(path, format!("`num_labels` is {count}, out of range")));
            }
            return Ok((0..count).map(|i| format!("LABEL_{i}")).collect());
        };
        let mut labels = vec![None; named.len()];
        for (key, label) in named {
            let slot = key.parse::<usize>().ok().and_then(|index| labels.get_mut(index));
            *slot.ok_or_else(|| {
                let reason = format!("`id2label` has the key `{key}`; its keys are 0 to {}", named.len() - 1);
                LoadError::config(path, reason)
            })? = Some(label.clone());
        }
        labels
            .into_iter()
            .collect::<Option<_>>()
            .ok_or_else(|| LoadError::config(path, "`id2label` repeats a key"))
    }
}

impl Activation {
    pub(crate) fn kernel(self) -> cpu_kernels::Activation {
        match self {
            Self::Gelu => cpu_kernels::Activation::Gelu,
            Self::GeluTanh => cpu_kernels::Activation::GeluTanh,
            Self::Relu => cpu_kernels::Activation::Relu,
            Self::Silu => cpu_kernels::Activation::Silu,
            Self::Tanh => cpu_kernels::Activation::Tanh,
        }
    }

    /// The values of `hidden_act` that work.
    pub const SUPPORTED: &str =
        "gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu, swish, tanh";

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            _ => return None,
        })
    }
}

//! `config.json` of a causal language model: what the decoder needs of it, validated. What would change the numbers and
//! is not computed here is refused by name.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::LoadError;
use crate::files::read_json;
use crate::lm::rope::Rope;

/// The kinds of language model this crate runs.
pub(crate) const SUPPORTED_LM_TYPES: &str = "llama, mistral, qwen2, qwen3";

/// What a folder's `config.json`, or a GGUF file's metadata, says of its language model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each says of one thing whether the model has it")]
pub struct LmConfig {
    /// The file it was read from.
    pub path: PathBuf,
    /// The `model_type` as written, such as `llama`.
    pub model_type: String,
    /// Rows of the word embedding, and logits of a position.
    pub vocab_size: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of the keys and values; they divide `heads`.
    pub kv_heads: usize,
    /// Width of a head, which need not be `hidden / heads`.
    pub head_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate: usize,
    /// Added to the mean square in each RMS norm.
    pub rms_norm_eps: f32,
    /// The most tokens of prompt and answer together.
    pub max_positions: usize,
    /// Whether the output product is the word embedding.
    pub tied: bool,
    /// How positions turn the queries and keys.
    pub rope: Rope,
    /// For each layer, how many tokens back it sees, itself included; `None` sees all.
    pub windows: Vec<Option<usize>>,
    /// Whether the products of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the product after the attention has a bias.
    pub output_bias: bool,
    /// Whether the products of the feed-forward block have biases.
    pub mlp_bias: bool,
    /// Whether queries and keys are normalised head by head.
    pub qk_norm: bool,
    /// The tokens that end an answer, as `config.json` has them.
    pub eos_ids: Vec<u32>,
}

/// One id, or several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    pub(crate) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    hidden_act: Option<String>,
    rms_norm_eps: Option<f32>,
    max_position_embeddings: Option<usize>,
    tie_word_embeddings: Option<bool>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    /// `null` is no window; without the key it is transformers' default.
    #[serde(default = "default_window")]
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
    eos_token_id: Option<Ids>,
}

#[expect(clippy::unnecessary_wraps, reason = "the type of the field")]
fn default_window() -> Option<usize> {
    Some(4096)
}

impl LmConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// [`LoadError::Missing`] without the file, [`LoadError::Config`] for a value that makes no sense, and
    /// [`LoadError::Unsupported`] for an architecture or a setting that is not computed here.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = dir.as_ref().join("config.json");
        let raw: Raw = read_json(&path)?.ok_or_else(|| LoadError::Missing {
            path: path.clone(),
            next: "a model folder has a config.json as transformers writes it".to_owned(),
        })?;
        raw.check(path)
    }

    /// An error unless the sizes fit each other and are those of a model.
    pub(crate) fn checked(self) -> Result<Self, LoadError> {
        let sizes = [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden, 1 << 20),
            ("num_hidden_layers", self.num_layers, 1 << 12),
            ("num_attention_heads", self.heads, 1 << 14),
            ("num_key_value_heads", self.kv_heads, 1 << 14),
            ("head_dim", self.head_size, 1 << 14),
            ("intermediate_size", self.intermediate, 1 << 22),
            ("max_position_embeddings", self.max_positions, 1 << 24),
        ];
        if let Some((key, size, _)) = sizes.iter().find(|(_, size, max)| !(1..=*max).contains(size)) {
            return Err(LoadError::config(&self.path, format!("`{key}` is {size}, out of range")));
        }
        let Self { heads, kv_heads, head_size, rms_norm_eps, .. } = self;
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!(
                "`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"
            );
            return Err(LoadError::config(&self.path, reason));
        }
        if !head_size.is_multiple_of(2) {
            let reason = format!("`head_dim` {head_size} is odd: rotary positions turn pairs");
            return Err(LoadError::config(&self.path, reason));
        }
        if !(0.0..1.0).contains(&rms_norm_eps) {
            return Err(LoadError::config(
                &self.path,
                format!("`rms_norm_eps` is {rms_norm_eps}, out of range"),
            ));
        }
        if self.windows.contains(&Some(0)) {
            return Err(LoadError::config(&self.path, "`sliding_window` is 0: a token sees at least itself"));
        }
        Ok(self)
    }
}

impl Raw {
    fn check(self, path: PathBuf) -> Result<LmConfig, LoadError> {
        let unsupported = |what, found: String, supported| LoadError::Unsupported {
            path: path.clone(),
            what,
            found,
            supported,
        };
        let model_type = self.model_type.clone().ok_or_else(|| {
            LoadError::config(&path, "`model_type` is missing: which architecture is this?")
        })?;
        if !SUPPORTED_LM_TYPES.split(", ").any(|name| name == model_type) {
            return Err(unsupported("model_type", model_type, SUPPORTED_LM_TYPES));
        }
        if let Some(settings) = &self.quantization_config {
            let method = settings.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            let supported = "none (F32, F16 or BF16 weights), or a GGUF file";
            return Err(unsupported("quantization_config", method.to_owned(), supported));
        }
        let act = self.hidden_act.as_deref().unwrap_or("silu");
        if !matches!(act, "silu" | "swish") {
            return Err(unsupported("hidden_act", act.to_owned(), "silu"));
        }
        let need = |key: &str, value: Option<usize>| {
            value.ok_or_else(|| LoadError::config(&path, format!("`{key}` is missing")))
        };
        let hidden = need("hidden_size", self.hidden_size)?;
        let heads = need("num_attention_heads", self.num_attention_heads)?;
        let head_size = match self.head_dim {
            Some(size) => size,
            // transformers' own default, whatever the width.
            None if model_type == "qwen3" => 128,
            None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let reason =
                    format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}");
                return Err(LoadError::config(&path, reason));
            }
        };
        check_head_size(head_size, &path)?;
        let num_layers = need("num_hidden_layers", self.num_hidden_layers)?;
        let windows = self.windows(&path, &model_type, num_layers)?;
        let is_qwen2 = model_type == "qwen2";
        let attention_bias =
            matches!(model_type.as_str(), "llama" | "qwen3") && self.attention_bias.unwrap_or(false);
        let scaling = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        LmConfig {
            rope: Rope::new(&path, head_size, self.rope_theta, self.partial_rotary_factor, scaling)?,
            vocab_size: need("vocab_size", self.vocab_size)?,
            hidden,
            num_layers,
            heads,
            kv_heads: self.num_key_value_heads.unwrap_or(if model_type == "mistral" { 8 } else { heads }),
            head_size,
            intermediate: need("intermediate_size", self.intermediate_size)?,
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            max_positions: need("max_position_embeddings", self.max_position_embeddings)?,
            tied: self.tie_word_embeddings.unwrap_or(false),
            windows,
            qkv_bias: is_qwen2 || attention_bias,
            output_bias: attention_bias,
            mlp_bias: model_type == "llama" && self.mlp_bias.unwrap_or(false),
            qk_norm: model_type == "qwen3",
            eos_ids: self.eos_token_id.map(Ids::into_vec).unwrap_or_default(),
            model_type,
            path,
        }
        .checked()
    }

    /// What each layer sees: Mistral's window is for all layers, Qwen's for those that `layer_types` names or, in older
    /// files, those from `max_window_layers` on.
    fn windows(&self, path: &Path, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>, LoadError> {
        let layers = layers.min(1 << 12);
        let window = match model_type {
            "mistral" => return Ok(vec![self.sliding_window; layers]),
            "llama" => None,
            _ => self.sliding_window.filter(|_| self.use_sliding_window.unwrap_or(false)),
        };
        let Some(types) = self.layer_types.as_ref().filter(|_| model_type != "llama") else {
            let first = self.max_window_layers.unwrap_or(28);
            return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
        };
        if types.len() != layers {
            let reason = format!("`layer_types` names {} layers of {layers}", types.len());
            return Err(LoadError::config(path, reason));
        }
        let one = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(None),
            "sliding_attention" if window.is_some() => Ok(window),
            "sliding_attention" => Err(LoadError::config(
                path,
                "`layer_types` has sliding layers where no `sliding_window` is used",
            )),
            other => Err(LoadError::Unsupported {
                path: path.to_owned(),
                what: "layer_types",
                found: other.to_owned(),
                supported: "full_attention, sliding_attention",
            }),
        };
        types.iter().map(one).collect()
    }
}

/// Before anything is as long as a head: no tensor has confirmed this number yet.
pub(crate) fn check_head_size(head_size: usize, path: &Path) -> Result<(), LoadError> {
    if (2..=1 << 14).contains(&head_size) && head_size.is_multiple_of(2) {
        return Ok(());
    }
    Err(LoadError::config(path, format!("heads of width {head_size}: it is even, and from 2 to {}", 1 << 14)))
}

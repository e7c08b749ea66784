//! The decoder that Llama, Mistral, Qwen 2 and Qwen 3 share: RMS norms, rotary positions, grouped-query attention, a gated
//! feed-forward block.

use serde::Deserialize;
use serde_json::Value as Json;

use super::Family;
use crate::attention::{ATTENTION_MASK, Heads, INPUT_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Dim, Graph, Value, dim};
use crate::ops::{Activation, Bias};
use crate::rotary::{Rope, RopeConfig, Turns};
use crate::{DataType, ExportError, Head, heads};

/// The values of `config.json` that shape the graph.
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a file format")]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    /// `null` is no window; without the key it is transformers' default.
    #[serde(default = "default_window")]
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    #[serde(rename = "quantization_config")]
    quantized: Option<Json>,
    #[serde(flatten)]
    rope: RopeConfig,
}

#[expect(clippy::unnecessary_wraps, reason = "the type of the field")]
fn default_window() -> Option<usize> {
    Some(4096)
}

/// A decoder with its word embeddings and its last product.
#[derive(Debug)]
pub(super) struct Decoder {
    config: Config,
    prefix: &'static str,
    heads: Heads,
    activation: Activation,
    rope: Rope,
    epsilon: f32,
    qkv_bias: Bias,
    out_bias: Bias,
    mlp_bias: Bias,
    /// Whether queries and keys are normalised head by head.
    has_head_norms: bool,
    /// For each layer, how many tokens back it sees, itself included.
    windows: Vec<Option<usize>>,
}

/// Keys and values of one layer, [batch, heads, tokens, size].
type KeysAndValues = (Value, Value);

/// What all layers of a graph share.
struct Shared {
    turns: Turns,
    /// Positions of the tokens that come in, and of all, past ones among them: [batch, …] in fp32.
    queries: Value,
    keys: Value,
}

impl Decoder {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        let config: Config = checkpoint.config()?;
        let family = checkpoint.model_type();
        let wrong = |reason: String| ExportError::Config { path: checkpoint.config_path(), reason };
        if let Some(settings) = &config.quantized {
            let method = settings.get("quant_method").and_then(Json::as_str).unwrap_or("unknown");
            let what = format!("weights quantised by {method:?} (quantization_config)");
            return Err(super::unsupported(checkpoint, what, "F32, F16 or BF16 weights"));
        }
        let word = config.hidden_act.as_deref().unwrap_or("silu");
        let activation = Activation::from_config(word).ok_or_else(|| {
            super::unsupported(checkpoint, format!("hidden_act {word:?}"), Activation::SUPPORTED)
        })?;
        let count = config.num_attention_heads;
        let size = match config.head_dim {
            Some(size) => size,
            // transformers' own default, whatever the width.
            None if family == "qwen3" => 128,
            None => super::head_size(checkpoint, config.hidden_size, count)?,
        };
        if size == 0 || !size.is_multiple_of(2) {
            return Err(wrong(format!("heads of size {size}: rotary positions turn pairs")));
        }
        let kv = config.num_key_value_heads.unwrap_or(if family == "mistral" { 8 } else { count });
        if kv == 0 || !count.is_multiple_of(kv) {
            let reason = format!("num_attention_heads {count} is not a multiple of num_key_value_heads {kv}");
            return Err(wrong(reason));
        }
        super::limit(checkpoint, "head_dim", size, super::MAX_HEAD_SIZE)?;
        super::limit(checkpoint, "num_hidden_layers", config.num_hidden_layers, super::MAX_LAYERS)?;
        super::limit(
            checkpoint,
            "max_position_embeddings",
            config.max_position_embeddings,
            super::MAX_POSITIONS,
        )?;
        let attention_bias = matches!(family, "llama" | "qwen3") && config.attention_bias;
        let prefixed = checkpoint.has("model.embed_tokens.weight");
        Ok(Self {
            prefix: if prefixed { "model." } else { "" },
            heads: Heads { count, kv, size },
            activation,
            rope: Rope::open(checkpoint, size, &config.rope)?,
            epsilon: config.rms_norm_eps.unwrap_or(1e-6),
            qkv_bias: (family == "qwen2" || attention_bias).into(),
            out_bias: attention_bias.into(),
            mlp_bias: (family == "llama" && config.mlp_bias).into(),
            has_head_norms: family == "qwen3",
            windows: windows(checkpoint, &config)?,
            config,
        })
    }

    /// Word vectors of the tokens, [tokens, hidden].
    fn embed(&self, graph: &mut Graph<'_>, ids: &Value) -> Result<Value, ExportError> {
        graph.within("embed_tokens", |graph| {
            let dtype = graph.compute_type();
            let table = format!("{}embed_tokens.weight", self.prefix);
            let shape = [self.config.vocab_size, self.config.hidden_size];
            let table = graph.weight(&table, &shape, dtype)?;
            let words = graph.gather(&table, ids, 0);
            Ok(graph.reshape(&words, &[-1, dim(self.config.hidden_size)]))
        })
    }

    /// Positions, from `attention_mask` [batch, total], of which the last ones are the tokens that come in.
    fn shared(&self, graph: &mut Graph<'_>, cache: bool) -> Result<Shared, ExportError> {
        let keys = graph.token_positions_by_mask()?;
        let queries = if cache { graph.last_tokens(&keys)? } else { keys.clone() };
        Ok(Shared { turns: graph.turns("positions", &self.rope, &queries)?, queries, keys })
    }

    /// The norm `module` of a layer, or of the whole model where `parent` is the prefix of all.
    fn norm(
        &self,
        graph: &mut Graph<'_>,
        (parent, module): (&str, &str),
        x: &Value,
    ) -> Result<Value, ExportError> {
        let tensor = format!("{parent}{module}");
        graph.within(module, |graph| graph.rms_norm(x, &tensor, self.config.hidden_size, self.epsilon))
    }

    /// All layers: the hidden states [tokens, hidden], and each layer's keys and values with the new ones.
    fn layers(
        &self,
        graph: &mut Graph<'_>,
        words: &Value,
        shared: &Shared,
        past: &[KeysAndValues],
    ) -> Result<(Value, Vec<KeysAndValues>), ExportError> {
        let (mut x, mut present) = (words.clone(), Vec::new());
        for index in 0..self.config.num_hidden_layers {
            let (next, pair) = graph.within(&format!("layers.{index}"), |graph| {
                self.layer(graph, index, &x, shared, past.get(index))
            })?;
            x = next;
            present.push(pair);
        }
        let hidden = self.norm(graph, (self.prefix, "norm"), &x)?;
        Ok((hidden, present))
    }

    fn layer(
        &self,
        graph: &mut Graph<'_>,
        index: usize,
        x: &Value,
        shared: &Shared,
        past: Option<&KeysAndValues>,
    ) -> Result<(Value, KeysAndValues), ExportError> {
        let name = format!("{}layers.{index}", self.prefix);
        let name = name.as_str();
        let (hidden, wide) = (self.config.hidden_size, self.config.intermediate_size);
        let Heads { count, kv, size } = self.heads;
        let (queries, keys) = (count.saturating_mul(size), kv.saturating_mul(size));
        let unit = self.norm(graph, (&format!("{name}."), "input_layernorm"), x)?;
        let q = graph.module(&unit, (name, "self_attn.q_proj"), (hidden, queries), self.qkv_bias)?;
        let k = graph.module(&unit, (name, "self_attn.k_proj"), (hidden, keys), self.qkv_bias)?;
        let v = graph.module(&unit, (name, "self_attn.v_proj"), (hidden, keys), self.qkv_bias)?;
        let (context, pair) = graph.within("self_attn", |graph| {
            let q = self.turned(graph, (name, "q_norm"), &q, count, &shared.turns)?;
            let k = self.turned(graph, (name, "k_norm"), &k, kv, &shared.turns)?;
            let v = graph.split_heads(&v, kv, size)?;
            let (k, v) = match past {
                Some((keys, values)) => (graph.append(keys, &k), graph.append(values, &v)),
                None => (k, v),
            };
            let mask = graph.causal_mask(&shared.queries, &shared.keys, self.windows[index])?;
            Ok((graph.attend([&q, &k, &v], self.heads, self.heads.scale(), &mask)?, (k, v)))
        })?;
        let out = graph.module(&context, (name, "self_attn.o_proj"), (queries, hidden), self.out_bias)?;
        let x = graph.add(x, &out);
        let unit = self.norm(graph, (&format!("{name}."), "post_attention_layernorm"), &x)?;
        let gate = graph.module(&unit, (name, "mlp.gate_proj"), (hidden, wide), self.mlp_bias)?;
        let up = graph.module(&unit, (name, "mlp.up_proj"), (hidden, wide), self.mlp_bias)?;
        let inner = graph.within("mlp", |graph| {
            let gate = graph.activation(&gate, self.activation);
            Ok(graph.arithmetic("Mul", &gate, &up))
        })?;
        let down = graph.module(&inner, (name, "mlp.down_proj"), (wide, hidden), self.mlp_bias)?;
        Ok((graph.add(&x, &down), pair))
    }

    /// [tokens, count · size] as [batch, count, sequence, size], normalised where the family does so, and turned.
    fn turned(
        &self,
        graph: &mut Graph<'_>,
        (layer, norm): (&str, &str),
        x: &Value,
        count: usize,
        turns: &Turns,
    ) -> Result<Value, ExportError> {
        let size = self.heads.size;
        let mut x = graph.split_heads(x, count, size)?;
        if self.has_head_norms {
            let tensor = format!("{layer}.self_attn.{norm}");
            x = graph.within(norm, |graph| graph.rms_norm(&x, &tensor, size, self.epsilon))?;
        }
        graph.turn(&x, turns, size)
    }

    /// Logits [batch, sequence, vocabulary] in fp32, of a product in the module's own type: its weight is among the
    /// largest, and fp32 would double it.
    fn logits(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<Value, ExportError> {
        let tied = self.config.tie_word_embeddings;
        let tensor = if tied { format!("{}embed_tokens", self.prefix) } else { "lm_head".to_owned() };
        if !tied {
            super::require(graph.checkpoint, "lm_head.weight", "the logits of a language model")?;
        }
        let (size, vocabulary) = (self.config.hidden_size, self.config.vocab_size);
        graph.within("lm_head", |graph| {
            let dtype = graph.compute_type();
            let logits = graph.fine_product(hidden, &tensor, (size, vocabulary), dtype)?;
            heads::by_sentence(graph, &logits, vocabulary)
        })
    }
}

/// What each layer sees: Mistral's window is for all layers, Qwen's for those that `layer_types` names or, in older files,
/// those from `max_window_layers` on.
fn windows(checkpoint: &Checkpoint, config: &Config) -> Result<Vec<Option<usize>>, ExportError> {
    let wrong = |reason: String| ExportError::Config { path: checkpoint.config_path(), reason };
    let layers = config.num_hidden_layers;
    let window = match checkpoint.model_type() {
        "mistral" => config.sliding_window,
        "llama" => None,
        _ => config.sliding_window.filter(|_| config.use_sliding_window),
    };
    if window == Some(0) {
        return Err(wrong("sliding_window is 0, and a token sees at least itself".to_owned()));
    }
    if matches!(checkpoint.model_type(), "llama" | "mistral") {
        return Ok(vec![window; layers]);
    }
    let Some(types) = &config.layer_types else {
        let first = config.max_window_layers.unwrap_or(28);
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != layers {
        return Err(wrong(format!("layer_types names {} layers of {layers}", types.len())));
    }
    let one = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" if window.is_some() => Ok(window),
        "sliding_attention" => {
            Err(wrong("layer_types has sliding layers where no sliding_window is used".to_owned()))
        }
        other => {
            let what = format!("layer_types {other:?}");
            Err(super::unsupported(checkpoint, what, "full_attention, sliding_attention"))
        }
    };
    types.iter().map(one).collect()
}

impl Family for Decoder {
    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn max_sequence(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError> {
        let ids = graph.input(INPUT_IDS);
        graph.input(ATTENTION_MASK);
        let words = self.embed(graph, &ids)?;
        let shared = self.shared(graph, false)?;
        Ok(self.layers(graph, &words, &shared, &[])?.0)
    }

    fn classify(&self, graph: &mut Graph<'_>, _hidden: &Value) -> Result<(Value, usize), ExportError> {
        let supported = "the logits of a language model, hidden states, sentence embedding";
        Err(super::unsupported(graph.checkpoint, "sequence classification".to_owned(), supported))
    }

    fn classify_tokens(&self, graph: &mut Graph<'_>, _hidden: &Value) -> Result<(Value, usize), ExportError> {
        let supported = "the logits of a language model, hidden states, sentence embedding";
        Err(super::unsupported(graph.checkpoint, "token classification".to_owned(), supported))
    }

    fn causal_lm(&self, graph: &mut Graph<'_>, cache: bool) -> Result<(), ExportError> {
        let Heads { kv, size, .. } = self.heads;
        let ids = graph.input(INPUT_IDS);
        let tokens = if cache { Dim::Total } else { Dim::Sequence };
        graph.input_of(ATTENTION_MASK, DataType::I64, &[Dim::Batch, tokens]);
        let mut past = Vec::new();
        if cache {
            let shape = [Dim::Batch, Dim::Fixed(kv), Dim::Past, Dim::Fixed(size)];
            for layer in 0..self.config.num_hidden_layers {
                // Of the type that the layer's attention computes in.
                let module = format!("layers.{layer}.self_attn");
                let dtype = graph.within(&module, |graph| Ok(graph.compute_type()))?;
                let mut input =
                    |part: &str| graph.input_of(&format!("past_key_values.{layer}.{part}"), dtype, &shape);
                past.push((input("key"), input("value")));
            }
        }
        let words = self.embed(graph, &ids)?;
        let shared = self.shared(graph, cache)?;
        let (hidden, present) = self.layers(graph, &words, &shared, &past)?;
        let logits = self.logits(graph, &hidden)?;
        let vocabulary = Dim::Fixed(self.config.vocab_size);
        graph.output(Head::CausalLm { cache }.output(), &logits, &[Dim::Batch, Dim::Sequence, vocabulary]);
        if cache {
            let shape = [Dim::Batch, Dim::Fixed(kv), Dim::Total, Dim::Fixed(size)];
            for (layer, (keys, values)) in present.iter().enumerate() {
                graph.output(&format!("present.{layer}.key"), keys, &shape);
                graph.output(&format!("present.{layer}.value"), values, &shape);
            }
        }
        Ok(())
    }
}

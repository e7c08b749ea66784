//! ModernBERT (Warner et al. 2024): rotary positions, norms before each block, a gated feed-forward block, and layers that
//! look only a few tokens to either side.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::Family;
use crate::attention::{ATTENTION_MASK, Heads, INPUT_IDS, Mask};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value, dim};
use crate::ops::{Activation, Bias};
use crate::rotary::{Rope, Turns, single};
use crate::{DataType, ExportError, heads};

/// The values of `config.json` that shape the graph. Defaults are those of `transformers.ModernBertConfig`.
///
/// Older files have the thetas as keys of their own, newer ones in `rope_parameters`; the layers' kinds follow from a
/// number in older files and are listed in newer ones.
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a file format")]
struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "epsilon")]
    norm_eps: f32,
    #[serde(default = "gelu")]
    hidden_activation: String,
    #[serde(default = "window")]
    local_attention: usize,
    #[serde(default)]
    global_attn_every_n_layers: Option<usize>,
    #[serde(default)]
    layer_types: Option<Vec<String>>,
    #[serde(default)]
    local_rope_theta: Option<f64>,
    #[serde(default)]
    global_rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: Option<Json>,
    #[serde(default)]
    rope_parameters: Option<BTreeMap<String, Json>>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    classifier_bias: bool,
    #[serde(default = "gelu")]
    classifier_activation: String,
    #[serde(default)]
    classifier_pooling: Option<String>,
}

fn epsilon() -> f32 {
    1e-5
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn window() -> usize {
    128
}

/// `ModernBERT` with its head and classifier.
#[derive(Debug)]
pub(super) struct ModernBert {
    config: Config,
    prefix: &'static str,
    heads: Heads,
    activation: Activation,
    head_activation: Activation,
    /// Of layers that see everything, and of those that do not.
    ropes: [Rope; 2],
    is_local: Vec<bool>,
}

impl ModernBert {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        let config: Config = checkpoint.config()?;
        let activation = |key: &str, word: &str| {
            Activation::from_config(word).ok_or_else(|| {
                super::unsupported(checkpoint, format!("{key} {word:?}"), Activation::SUPPORTED)
            })
        };
        super::limit(checkpoint, "num_hidden_layers", config.num_hidden_layers, super::MAX_LAYERS)?;
        super::limit(
            checkpoint,
            "max_position_embeddings",
            config.max_position_embeddings,
            super::MAX_POSITIONS,
        )?;
        let size = super::head_size(checkpoint, config.hidden_size, config.num_attention_heads)?;
        super::limit(checkpoint, "hidden_size / num_attention_heads", size, super::MAX_HEAD_SIZE)?;
        if !size.is_multiple_of(2) {
            let reason = format!("heads of size {size} are odd, and rotary positions turn pairs");
            return Err(ExportError::Config { path: checkpoint.config_path(), reason });
        }
        if let Some(scaling) = config.rope_scaling.as_ref().filter(|scaling| !scaling.is_null()) {
            return Err(super::unsupported(checkpoint, format!("rope_scaling {scaling}"), "null"));
        }
        let pooling = config.classifier_pooling.as_deref().unwrap_or("cls");
        if !matches!(pooling, "cls" | "mean") {
            return Err(super::unsupported(
                checkpoint,
                format!("classifier_pooling {pooling:?}"),
                "cls, mean",
            ));
        }
        let rope = |kind: &str, older: Option<f64>, default: f64| {
            let found = config.rope_parameters.as_ref().and_then(|all| all.get(kind));
            let word =
                found.and_then(|rope| rope.get("rope_type")).and_then(Json::as_str).unwrap_or("default");
            if word != "default" {
                return Err(super::unsupported(checkpoint, format!("rope_type {word:?}"), "default"));
            }
            let theta = found.and_then(|rope| rope.get("rope_theta")).and_then(Json::as_f64);
            let theta = theta.or(older).unwrap_or(default);
            if !(theta.is_finite() && theta > 1.0) {
                let reason = format!("the rotary theta {theta} of {kind} is out of range");
                return Err(ExportError::Config { path: checkpoint.config_path(), reason });
            }
            Ok(Rope::plain(size, single(theta)))
        };
        let ropes = [
            rope("full_attention", config.global_rope_theta, 160_000.0)?,
            rope("sliding_attention", config.local_rope_theta, 10_000.0)?,
        ];
        let prefixed = checkpoint.has("model.embeddings.tok_embeddings.weight");
        Ok(Self {
            prefix: if prefixed { "model." } else { "" },
            heads: Heads::plain(config.num_attention_heads, size),
            activation: activation("hidden_activation", &config.hidden_activation)?,
            head_activation: activation("classifier_activation", &config.classifier_activation)?,
            is_local: is_local(checkpoint, &config)?,
            ropes,
            config,
        })
    }

    fn norm(
        &self,
        graph: &mut Graph<'_>,
        scope: &str,
        tensor: &str,
        x: &Value,
    ) -> Result<Value, ExportError> {
        let Config { hidden_size, norm_eps, norm_bias, .. } = self.config;
        graph.within(scope, |graph| {
            let dtype = graph.compute_type();
            graph.layer_norm_as(x, tensor, (hidden_size, norm_eps), norm_bias.into(), dtype)
        })
    }

    fn layer(
        &self,
        graph: &mut Graph<'_>,
        index: usize,
        x: &Value,
        (mask, turns): &(Mask, Turns),
    ) -> Result<Value, ExportError> {
        let name = format!("{}layers.{index}", self.prefix);
        let name = name.as_str();
        let (hidden, wide) = (self.config.hidden_size, self.config.intermediate_size);
        let (attention_bias, mlp_bias) =
            (Bias::from(self.config.attention_bias), Bias::from(self.config.mlp_bias));
        // The embeddings' own norm is the first layer's.
        let unit = match index {
            0 => x.clone(),
            _ => self.norm(graph, "attn_norm", &format!("{name}.attn_norm"), x)?,
        };
        let qkv = graph.module(&unit, (name, "attn.Wqkv"), (hidden, 3 * hidden), attention_bias)?;
        let context = graph.within("attn", |graph| {
            let Heads { count, size, .. } = self.heads;
            let part = |graph: &mut Graph<'_>, index: usize| {
                let part = graph.columns(&qkv, index * hidden, (index + 1) * hidden);
                graph.split_heads(&part, count, size)
            };
            let (q, k, v) = (part(graph, 0)?, part(graph, 1)?, part(graph, 2)?);
            let (q, k) = (graph.turn(&q, turns, size)?, graph.turn(&k, turns, size)?);
            graph.attend([&q, &k, &v], self.heads, self.heads.scale(), mask)
        })?;
        let attended = graph.module(&context, (name, "attn.Wo"), (hidden, hidden), attention_bias)?;
        let x = graph.add(x, &attended);
        let unit = self.norm(graph, "mlp_norm", &format!("{name}.mlp_norm"), &x)?;
        let both = graph.module(&unit, (name, "mlp.Wi"), (hidden, wide.saturating_mul(2)), mlp_bias)?;
        let gated = graph.within("mlp", |graph| {
            let (inner, gate) = (graph.columns(&both, 0, wide), graph.columns(&both, wide, 2 * wide));
            let active = graph.activation(&inner, self.activation);
            Ok(graph.arithmetic("Mul", &active, &gate))
        })?;
        let fed = graph.module(&gated, (name, "mlp.Wo"), (wide, hidden), mlp_bias)?;
        Ok(graph.add(&x, &fed))
    }

    /// The prediction head on vectors [rows, hidden], and its classifier: logits [rows, labels], all in fp32.
    fn head(&self, graph: &mut Graph<'_>, x: &Value) -> Result<(Value, usize), ExportError> {
        let Config { hidden_size, norm_eps, norm_bias, classifier_bias, .. } = self.config;
        let labels = super::label_count(graph.checkpoint, "classifier")?;
        let unit = graph.within("head", |graph| {
            graph.in_fp32("class scores: two small products");
            let sizes = (hidden_size, hidden_size);
            let dense = if classifier_bias {
                graph.linear(x, "head.dense", sizes, DataType::F32)?
            } else {
                graph.product(x, "head.dense", sizes, DataType::F32)?
            };
            let active = graph.activation(&dense, self.head_activation);
            graph.layer_norm_as(
                &active,
                "head.norm",
                (hidden_size, norm_eps),
                norm_bias.into(),
                DataType::F32,
            )
        })?;
        let logits = graph.within("classifier", |graph| {
            graph.in_fp32("class scores: two small products");
            graph.linear(&unit, "classifier", (hidden_size, labels), DataType::F32)
        })?;
        Ok((logits, labels))
    }
}

/// Which layers look only a few tokens to either side.
fn is_local(checkpoint: &Checkpoint, config: &Config) -> Result<Vec<bool>, ExportError> {
    let layers = config.num_hidden_layers;
    let Some(types) = &config.layer_types else {
        let every = config.global_attn_every_n_layers.unwrap_or(3).max(1);
        return Ok((0..layers).map(|layer| layer % every != 0).collect());
    };
    if types.len() != layers {
        let reason = format!("layer_types names {} layers of {layers}", types.len());
        return Err(ExportError::Config { path: checkpoint.config_path(), reason });
    }
    let one = |kind: &String| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(super::unsupported(
            checkpoint,
            format!("layer_types {other:?}"),
            "full_attention, sliding_attention",
        )),
    };
    types.iter().map(one).collect()
}

impl Family for ModernBert {
    fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    fn max_sequence(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError> {
        let Config { hidden_size, vocab_size, local_attention, .. } = self.config;
        let ids = graph.input(INPUT_IDS);
        graph.input(ATTENTION_MASK);
        let embedded = graph.within("embeddings", |graph| {
            let words = graph.within("tok_embeddings", |graph| {
                let dtype = graph.compute_type();
                let name = format!("{}embeddings.tok_embeddings.weight", self.prefix);
                let table = graph.weight(&name, &[vocab_size, hidden_size], dtype)?;
                Ok(graph.gather(&table, &ids, 0))
            })?;
            self.norm(graph, "norm", &format!("{}embeddings.norm", self.prefix), &words)
        })?;
        let positions = graph.plain_positions()?;
        let everything = (graph.padding_mask()?, graph.turns("global", &self.ropes[0], &positions)?);
        let near =
            (graph.window_mask(local_attention / 2)?, graph.turns("local", &self.ropes[1], &positions)?);
        let mut x = graph.reshape(&embedded, &[-1, dim(hidden_size)]);
        for (index, is_local) in self.is_local.iter().enumerate() {
            let kind = if *is_local { &near } else { &everything };
            x = graph.within(&format!("layers.{index}"), |graph| self.layer(graph, index, &x, kind))?;
        }
        self.norm(graph, "final_norm", &format!("{}final_norm", self.prefix), &x)
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, "classifier.weight")?;
        let size = self.config.hidden_size;
        let vector = graph.within("head", |graph| {
            if self.config.classifier_pooling.as_deref() == Some("mean") {
                heads::mean(graph, hidden, size)
            } else {
                heads::first_token(graph, hidden, size)
            }
        })?;
        self.head(graph, &vector)
    }

    fn classify_tokens(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require(graph.checkpoint, "classifier.weight", "token classification")?;
        self.head(graph, hidden)
    }
}

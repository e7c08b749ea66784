//! BERT (Devlin et al. 2018), as `transformers.BertModel` computes it; also the encoder of RoBERTa.

use serde::Deserialize;

use super::Family;
use crate::attention::{ATTENTION_MASK, Heads, INPUT_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value, dim};
use crate::ops::Activation;
use crate::{DataType, ExportError, heads};

/// The values of `config.json` that shape the graph. Defaults are those of `transformers.BertConfig`.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    #[serde(default)]
    pub(super) pad_token_id: Option<i64>,
    #[serde(default)]
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn two() -> usize {
    2
}

fn gelu() -> String {
    "gelu".to_owned()
}

fn epsilon() -> f32 {
    1e-12
}

/// The layers that BERT and RoBERTa share.
#[derive(Debug)]
pub(super) struct Encoder {
    pub(super) config: Config,
    /// What tensor names begin with: `bert.`, `roberta.`, or nothing.
    prefix: String,
    heads: Heads,
    activation: Activation,
}

impl Encoder {
    pub(super) fn open(checkpoint: &Checkpoint, prefix: &str) -> Result<Self, ExportError> {
        let config: Config = checkpoint.config()?;
        let unsupported = |what: String, supported: &str| ExportError::Unsupported {
            path: checkpoint.config_path(),
            what,
            supported: supported.to_owned(),
        };
        let activation = Activation::from_config(&config.hidden_act).ok_or_else(|| {
            unsupported(format!("hidden_act {:?}", config.hidden_act), Activation::SUPPORTED)
        })?;
        if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(unsupported(format!("position_embedding_type {kind:?}"), "absolute"));
        }
        if config.is_decoder {
            return Err(unsupported("is_decoder: true".to_owned(), "encoders"));
        }
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(ExportError::Config {
                path: checkpoint.config_path(),
                reason: format!(
                    "hidden_size {} is not a multiple of num_attention_heads {}",
                    config.hidden_size, config.num_attention_heads
                ),
            });
        }
        let heads = Heads {
            count: config.num_attention_heads,
            size: config.hidden_size / config.num_attention_heads,
        };
        let prefixed = checkpoint.has(&format!("{prefix}embeddings.word_embeddings.weight"));
        let prefix = if prefixed { prefix.to_owned() } else { String::new() };
        Ok(Self { config, prefix, heads, activation })
    }

    pub(super) fn hidden_size(&self) -> usize {
        self.config.hidden_size
    }

    pub(super) fn max_positions(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// The name of a tensor of this encoder in the checkpoint.
    pub(super) fn tensor(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Rows of an embedding table, in the type of the current module.
    fn embedding(
        &self,
        graph: &mut Graph<'_>,
        name: &str,
        rows: usize,
        ids: &Value,
    ) -> Result<Value, ExportError> {
        graph.within(name, |graph| {
            let dtype = graph.compute_type();
            let name = self.tensor(&format!("embeddings.{name}.weight"));
            let table = graph.weight(&name, &[rows, self.hidden_size()], dtype)?;
            Ok(graph.gather(&table, ids, 0))
        })
    }

    /// Word, position and type embeddings, summed and normalised: [batch, sequence, hidden].
    ///
    /// `types` is absent where a family feeds none: all tokens then have type 0.
    pub(super) fn embed(
        &self,
        graph: &mut Graph<'_>,
        ids: &Value,
        positions: &Value,
        types: Option<&Value>,
    ) -> Result<Value, ExportError> {
        graph.within("embeddings", |graph| {
            let config = &self.config;
            let first_type = graph.integer(0);
            let words = self.embedding(graph, "word_embeddings", config.vocab_size, ids)?;
            let types = types.unwrap_or(&first_type);
            let types = self.embedding(graph, "token_type_embeddings", config.type_vocab_size, types)?;
            let rows = config.max_position_embeddings;
            let positions = self.embedding(graph, "position_embeddings", rows, positions)?;
            let sum = graph.add(&words, &types);
            let sum = graph.add(&sum, &positions);
            self.norm(graph, "LayerNorm", "embeddings.LayerNorm", &sum)
        })
    }

    fn norm(&self, graph: &mut Graph<'_>, scope: &str, name: &str, x: &Value) -> Result<Value, ExportError> {
        graph.within(scope, |graph| {
            graph.layer_norm(x, &self.tensor(name), self.hidden_size(), self.config.layer_norm_eps)
        })
    }

    /// All layers, from [batch, sequence, hidden] to [tokens, hidden].
    pub(super) fn layers(&self, graph: &mut Graph<'_>, embedded: &Value) -> Result<Value, ExportError> {
        let mut x = graph.reshape(embedded, &[-1, dim(self.hidden_size())]);
        for layer in 0..self.config.num_hidden_layers {
            let name = format!("encoder.layer.{layer}");
            x = graph.within(&name, |graph| self.layer(graph, &name, &x))?;
        }
        Ok(x)
    }

    fn layer(&self, graph: &mut Graph<'_>, layer: &str, x: &Value) -> Result<Value, ExportError> {
        let (hidden, wide) = (self.hidden_size(), self.config.intermediate_size);
        let linear = |graph: &mut Graph<'_>, module: &str, x: &Value, sizes| {
            graph.within(module, |graph| {
                let dtype = graph.compute_type();
                graph.linear(x, &self.tensor(&format!("{layer}.{module}")), sizes, dtype)
            })
        };
        let norm = |graph: &mut Graph<'_>, module: &str, x: &Value| {
            self.norm(graph, module, &format!("{layer}.{module}"), x)
        };
        let q = linear(graph, "attention.self.query", x, (hidden, hidden))?;
        let k = linear(graph, "attention.self.key", x, (hidden, hidden))?;
        let v = linear(graph, "attention.self.value", x, (hidden, hidden))?;
        let context = graph.within("attention.self", |graph| graph.attention([&q, &k, &v], self.heads))?;
        let attended = linear(graph, "attention.output.dense", &context, (hidden, hidden))?;
        let sum = graph.within("attention.output", |graph| Ok(graph.add(&attended, x)))?;
        let attended = norm(graph, "attention.output.LayerNorm", &sum)?;
        let wide_x = linear(graph, "intermediate.dense", &attended, (hidden, wide))?;
        let active = graph.within("intermediate", |graph| Ok(graph.activation(&wide_x, self.activation)))?;
        let narrow = linear(graph, "output.dense", &active, (wide, hidden))?;
        let sum = graph.within("output", |graph| Ok(graph.add(&narrow, &attended)))?;
        norm(graph, "output.LayerNorm", &sum)
    }
}

/// Rows of a classification layer: the number of labels.
pub(super) fn label_count(checkpoint: &Checkpoint, tensor: &str) -> Result<usize, ExportError> {
    Ok(checkpoint.tensor(tensor)?.shape.first().copied().unwrap_or_default())
}

/// BERT with its pooler and classifier.
#[derive(Debug)]
pub(super) struct Bert(Encoder);

impl Bert {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        Encoder::open(checkpoint, "bert.").map(Self)
    }
}

impl Family for Bert {
    fn hidden_size(&self) -> usize {
        self.0.hidden_size()
    }

    fn max_sequence(&self) -> usize {
        self.0.max_positions()
    }

    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError> {
        let ids = graph.input(INPUT_IDS);
        graph.input(ATTENTION_MASK);
        let types = graph.input("token_type_ids");
        let positions = graph.positions()?;
        let embedded = self.0.embed(graph, &ids, &positions, Some(&types))?;
        self.0.layers(graph, &embedded)
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, "classifier.weight")?;
        let size = self.hidden_size();
        let labels = label_count(graph.checkpoint, "classifier.weight")?;
        let pooled = graph.within("pooler", |graph| {
            let first = heads::first_token(graph, hidden, size)?;
            let dense = graph.linear(&first, &self.0.tensor("pooler.dense"), (size, size), DataType::F32)?;
            Ok(graph.unary("Tanh", &dense))
        })?;
        let logits = graph.within("classifier", |graph| {
            graph.linear(&pooled, "classifier", (size, labels), DataType::F32)
        })?;
        Ok((logits, labels))
    }
}

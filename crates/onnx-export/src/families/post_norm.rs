//! The layers of every encoder that normalises after each block: BERT and its kin, which differ in names and in what goes
//! into their attention.

use serde::Deserialize;

use crate::attention::{Heads, Mask};
use crate::checkpoint::Checkpoint;
use crate::graph::{Graph, Value, dim};
use crate::ops::Activation;
use crate::{DataType, ExportError, heads};

/// The values of `config.json` that shape the graph, by BERT's names. Defaults are those of `transformers.BertConfig`.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    #[serde(default = "two")]
    pub(super) type_vocab_size: usize,
    #[serde(default)]
    pub(super) hidden_act: Option<String>,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    #[serde(default)]
    pub(super) embedding_size: Option<usize>,
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

/// The same by DistilBERT's names.
#[derive(Debug, Deserialize)]
pub(super) struct DistilConfig {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    activation: String,
}

impl From<DistilConfig> for Config {
    fn from(config: DistilConfig) -> Self {
        Self {
            hidden_size: config.dim,
            num_hidden_layers: config.n_layers,
            num_attention_heads: config.n_heads,
            intermediate_size: config.hidden_dim,
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            type_vocab_size: 0,
            hidden_act: Some(config.activation),
            layer_norm_eps: epsilon(),
            embedding_size: None,
            pad_token_id: None,
            position_embedding_type: None,
            is_decoder: false,
        }
    }
}

/// What a family calls the tensors of a layer, below the layer's name.
#[derive(Debug)]
pub(super) struct Names {
    /// Name of a layer; `{}` is its number.
    pub(super) layer: &'static str,
    /// The module of the attention itself, which has no weights of its own.
    pub(super) attention: &'static str,
    pub(super) query_key_value: [&'static str; 3],
    pub(super) out: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) feed_norm: &'static str,
}

/// BERT's names, and those of most others.
pub(super) const BERT: Names = Names {
    layer: "encoder.layer.{}",
    attention: "attention.self",
    query_key_value: ["attention.self.query", "attention.self.key", "attention.self.value"],
    out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    feed_norm: "output.LayerNorm",
};

/// Embeddings and layers.
#[derive(Debug)]
pub(super) struct PostNorm {
    pub(super) config: Config,
    names: &'static Names,
    /// What tensor names begin with: `bert.`, `roberta.`, or nothing.
    prefix: String,
    pub(super) heads: Heads,
    activation: Activation,
}

impl PostNorm {
    pub(super) fn open(
        checkpoint: &Checkpoint,
        config: Config,
        prefix: &str,
        names: &'static Names,
    ) -> Result<Self, ExportError> {
        let unsupported = |what: String, supported: &str| ExportError::Unsupported {
            path: checkpoint.config_path(),
            what,
            supported: supported.to_owned(),
        };
        let word = config.hidden_act.as_deref().unwrap_or("gelu");
        let activation = Activation::from_config(word)
            .ok_or_else(|| unsupported(format!("hidden_act {word:?}"), Activation::SUPPORTED))?;
        if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(unsupported(format!("position_embedding_type {kind:?}"), "absolute"));
        }
        if config.is_decoder {
            return Err(unsupported("is_decoder: true".to_owned(), "encoders"));
        }
        super::limit(checkpoint, "num_hidden_layers", config.num_hidden_layers, super::MAX_LAYERS)?;
        let size = super::head_size(checkpoint, config.hidden_size, config.num_attention_heads)?;
        let heads = Heads::plain(config.num_attention_heads, size);
        let prefixed = checkpoint.has(&format!("{prefix}embeddings.word_embeddings.weight"));
        let prefix = if prefixed { prefix.to_owned() } else { String::new() };
        Ok(Self { config, names, prefix, heads, activation })
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

    /// Width of the embeddings: the layers' own, unless a product makes token vectors of them.
    fn embedding_size(&self) -> usize {
        self.config.embedding_size.unwrap_or(self.config.hidden_size)
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
            let table = graph.weight(&name, &[rows, self.embedding_size()], dtype)?;
            Ok(graph.gather(&table, ids, 0))
        })
    }

    /// Word, type and position embeddings, summed and normalised: [batch, sequence, embedding size].
    ///
    /// `types` is absent where a family feeds none: all tokens then have type 0, or none where the family has no types.
    /// `positions` is absent where they come in later.
    pub(super) fn embed(
        &self,
        graph: &mut Graph<'_>,
        ids: &Value,
        positions: Option<&Value>,
        types: Option<&Value>,
    ) -> Result<Value, ExportError> {
        graph.within("embeddings", |graph| {
            let config = &self.config;
            let mut sum = self.embedding(graph, "word_embeddings", config.vocab_size, ids)?;
            if config.type_vocab_size > 0 {
                let first_type = graph.integer(0);
                let types = types.unwrap_or(&first_type);
                let types = self.embedding(graph, "token_type_embeddings", config.type_vocab_size, types)?;
                sum = graph.add(&sum, &types);
            }
            if let Some(positions) = positions {
                let rows = config.max_position_embeddings;
                let positions = self.embedding(graph, "position_embeddings", rows, positions)?;
                sum = graph.add(&sum, &positions);
            }
            graph.within("LayerNorm", |graph| {
                let name = self.tensor("embeddings.LayerNorm");
                graph.layer_norm(&sum, &name, self.embedding_size(), config.layer_norm_eps)
            })
        })
    }

    /// The product `module`, from embeddings to token vectors: [tokens, hidden] both.
    pub(super) fn project(
        &self,
        graph: &mut Graph<'_>,
        module: &str,
        embedded: &Value,
    ) -> Result<Value, ExportError> {
        let size = self.embedding_size();
        let x = graph.reshape(embedded, &[-1, dim(size)]);
        graph.within(module, |graph| {
            let dtype = graph.compute_type();
            graph.linear(&x, &self.tensor(module), (size, self.hidden_size()), dtype)
        })
    }

    /// Layer normalisation of token vectors by the tensors `name`.
    pub(super) fn norm(&self, graph: &mut Graph<'_>, name: &str, x: &Value) -> Result<Value, ExportError> {
        graph.layer_norm(x, &self.tensor(name), self.hidden_size(), self.config.layer_norm_eps)
    }

    /// All layers, from [batch, sequence, hidden] to [tokens, hidden], with attention that sees every token.
    pub(super) fn layers(&self, graph: &mut Graph<'_>, embedded: &Value) -> Result<Value, ExportError> {
        let mask = graph.padding_mask()?;
        self.layers_with(graph, embedded, |graph, _, qkv| self.attend(graph, &qkv, &mask))
    }

    /// softmax(Q·Kᵀ/√size + mask)·V, from and to [tokens, hidden].
    pub(super) fn attend(
        &self,
        graph: &mut Graph<'_>,
        qkv: &[Value; 3],
        mask: &Mask,
    ) -> Result<Value, ExportError> {
        let [q, k, v] = self.split(graph, qkv)?;
        graph.attend([&q, &k, &v], self.heads, self.heads.scale(), mask)
    }

    /// Queries, keys and values as [batch, heads, sequence, size].
    pub(super) fn split(&self, graph: &mut Graph<'_>, qkv: &[Value; 3]) -> Result<[Value; 3], ExportError> {
        let Heads { count, size, .. } = self.heads;
        let [q, k, v] = qkv;
        Ok([
            graph.split_heads(q, count, size)?,
            graph.split_heads(k, count, size)?,
            graph.split_heads(v, count, size)?,
        ])
    }

    /// All layers, with `attend` for the attention of a layer: it gets the tensor name of the layer, and queries, keys and
    /// values, [tokens, hidden] each, and gives the like.
    pub(super) fn layers_with(
        &self,
        graph: &mut Graph<'_>,
        embedded: &Value,
        mut attend: impl FnMut(&mut Graph<'_>, &str, [Value; 3]) -> Result<Value, ExportError>,
    ) -> Result<Value, ExportError> {
        let mut x = graph.reshape(embedded, &[-1, dim(self.hidden_size())]);
        for layer in 0..self.config.num_hidden_layers {
            let tensors = self.names.layer.replace("{}", &layer.to_string());
            // Where one layer is run again and again, each run is a module of its own.
            let scope = if tensors == self.names.layer {
                BERT.layer.replace("{}", &layer.to_string())
            } else {
                tensors.clone()
            };
            x = graph.within(&scope, |graph| self.layer(graph, &tensors, &x, &mut attend))?;
        }
        Ok(x)
    }

    fn layer(
        &self,
        graph: &mut Graph<'_>,
        layer: &str,
        x: &Value,
        attend: &mut impl FnMut(&mut Graph<'_>, &str, [Value; 3]) -> Result<Value, ExportError>,
    ) -> Result<Value, ExportError> {
        let (names, hidden, wide) = (self.names, self.hidden_size(), self.config.intermediate_size);
        let linear = |graph: &mut Graph<'_>, module: &str, x: &Value, sizes| {
            graph.within(module, |graph| {
                let dtype = graph.compute_type();
                graph.linear(x, &self.tensor(&format!("{layer}.{module}")), sizes, dtype)
            })
        };
        let norm = |graph: &mut Graph<'_>, module: &str, x: &Value| {
            graph.within(module, |graph| self.norm(graph, &format!("{layer}.{module}"), x))
        };
        // A sum belongs to the module that its norm is in.
        let add = |graph: &mut Graph<'_>, norm: &str, a: &Value, b: &Value| {
            let module = norm.rsplit_once('.').map_or(norm, |(module, _)| module);
            graph.within(module, |graph| Ok(graph.add(a, b)))
        };
        let [query, key, value] = names.query_key_value;
        let q = linear(graph, query, x, (hidden, hidden))?;
        let k = linear(graph, key, x, (hidden, hidden))?;
        let v = linear(graph, value, x, (hidden, hidden))?;
        let context = graph.within(names.attention, |graph| attend(graph, layer, [q, k, v]))?;
        let attended = linear(graph, names.out, &context, (hidden, hidden))?;
        let sum = add(graph, names.attention_norm, &attended, x)?;
        let attended = norm(graph, names.attention_norm, &sum)?;
        let wide_x = linear(graph, names.up, &attended, (hidden, wide))?;
        let module = names.up.rsplit_once('.').map_or(names.up, |(module, _)| module);
        let active = graph.within(module, |graph| Ok(graph.activation(&wide_x, self.activation)))?;
        let narrow = linear(graph, names.down, &active, (wide, hidden))?;
        let sum = add(graph, names.feed_norm, &narrow, &attended)?;
        norm(graph, names.feed_norm, &sum)
    }
}

/// A layer over one vector of a sentence, an activation, and a layer that gives the logits, all in fp32.
#[derive(Debug)]
pub(super) struct Classifier {
    /// The first layer, by its tensors.
    dense: String,
    activation: Activation,
    /// The second layer, by its tensors.
    output: &'static str,
}

impl Classifier {
    pub(super) fn new(dense: impl Into<String>, activation: Activation, output: &'static str) -> Self {
        Self { dense: dense.into(), activation, output }
    }

    /// Logits [batch, labels] from the first token of `hidden`, [tokens, size], and the number of labels.
    pub(super) fn write(
        &self,
        graph: &mut Graph<'_>,
        hidden: &Value,
        size: usize,
    ) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, &format!("{}.weight", self.output))?;
        let labels = super::label_count(graph.checkpoint, self.output)?;
        let inner = graph.within(&self.dense, |graph| {
            graph.in_fp32("class scores: two small products");
            let first = heads::first_token(graph, hidden, size)?;
            let dense = graph.linear(&first, &self.dense, (size, size), DataType::F32)?;
            Ok(graph.activation(&dense, self.activation))
        })?;
        let logits = graph.within(self.output, |graph| {
            graph.in_fp32("class scores: two small products");
            graph.linear(&inner, self.output, (size, labels), DataType::F32)
        })?;
        Ok((logits, labels))
    }
}

//! DeBERTa-v2 and v3 (He et al. 2020, 2021): BERT's layers with disentangled attention, in which what a token says and how
//! far away it is are compared apart.

use serde::Deserialize;

use super::Family;
use super::post_norm::{Classifier, Config, Names, PostNorm};
use crate::attention::{ATTENTION_MASK, INPUT_IDS, Mask, TOKEN_TYPE_IDS};
use crate::checkpoint::Checkpoint;
use crate::graph::{Attribute, Graph, Value, dim};
use crate::ops::Activation;
use crate::{DataType, ExportError};

const NAMES: Names = Names {
    layer: "encoder.layer.{}",
    attention: "attention.self",
    query_key_value: ["attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"],
    out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    feed_norm: "output.LayerNorm",
};

/// The keys of `config.json` that only `DeBERTa` has. Defaults are those of `transformers.DebertaV2Config`.
#[derive(Debug, Deserialize)]
struct Own {
    #[serde(default)]
    relative_attention: bool,
    #[serde(default = "minus_one")]
    max_relative_positions: i64,
    #[serde(default = "minus_one")]
    position_buckets: i64,
    #[serde(default = "yes")]
    position_biased_input: bool,
    #[serde(default)]
    share_att_key: bool,
    /// A list, or words with `|` between them.
    #[serde(default)]
    pos_att_type: Option<Words>,
    #[serde(default)]
    norm_rel_ebd: Option<String>,
    #[serde(default)]
    conv_kernel_size: usize,
    #[serde(default)]
    pooler_hidden_act: Option<String>,
}

fn minus_one() -> i64 {
    -1
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

impl Words {
    fn has(&self, word: &str) -> bool {
        match self {
            Self::Many(words) => words.iter().any(|found| found == word),
            Self::One(words) => words.split('|').any(|found| found.trim() == word),
        }
    }
}

/// `DeBERTa` with its pooler and classifier.
#[derive(Debug)]
pub(super) struct Deberta {
    encoder: PostNorm,
    /// Absent where attention knows no distances.
    relative: Option<Relative>,
    has_positions: bool,
    norm_distances: bool,
    pooler: Activation,
}

/// How distances come into attention.
#[derive(Clone, Copy, Debug)]
struct Relative {
    /// Vectors for distances to one side.
    span: usize,
    /// Buckets of distances, or 0 where each distance has a vector of its own.
    buckets: i64,
    /// Distances from here on share a bucket.
    longest: i64,
    /// Whether what a query says is compared with how far its key is, and the other way round.
    content_to_position: bool,
    position_to_content: bool,
    /// Whether both kinds of vector go through the same products.
    shares_products: bool,
}

impl Relative {
    /// By how much scores are multiplied: each kind of comparison adds its part.
    fn scale(self, head: usize) -> f32 {
        let parts = 1 + usize::from(self.content_to_position) + usize::from(self.position_to_content);
        ((head * parts) as f32).sqrt().recip()
    }

    /// The row of the table for query − key (`make_log_bucket_position` in transformers).
    #[expect(clippy::cast_possible_truncation, reason = "rounded up, as torch does it")]
    fn row(self, distance: i64) -> i64 {
        let middle = self.buckets / 2;
        let bucket = if self.buckets == 0 || distance.abs() <= middle {
            distance
        } else {
            let share = (distance.abs() as f32 / middle as f32).ln();
            let share = share / ((self.longest - 1) as f32 / middle as f32).ln();
            let further = (share * (middle - 1) as f32).ceil() as i64;
            (further + middle) * distance.signum()
        };
        (bucket + dim(self.span)).clamp(0, 2 * dim(self.span) - 1)
    }
}

impl Deberta {
    pub(super) fn open(checkpoint: &Checkpoint) -> Result<Self, ExportError> {
        let own: Own = checkpoint.config()?;
        let mut config: Config = checkpoint.config()?;
        if own.conv_kernel_size > 0 {
            let what =
                format!("a convolution after the first layer (conv_kernel_size {})", own.conv_kernel_size);
            return Err(super::unsupported(checkpoint, what, "none, as DeBERTa-v3 has it"));
        }
        if checkpoint.config::<TypeCount>()?.type_vocab_size.is_none() {
            config.type_vocab_size = 0;
        }
        let word = own.pooler_hidden_act.as_deref().unwrap_or("gelu");
        let pooler = Activation::from_config(word).ok_or_else(|| {
            super::unsupported(checkpoint, format!("pooler_hidden_act {word:?}"), Activation::SUPPORTED)
        })?;
        // A table has an entry for each distance, 8 bytes in the graph.
        super::limit(checkpoint, "max_position_embeddings", config.max_position_embeddings, 1 << 16)?;
        let longest = match own.max_relative_positions {
            1.. => own.max_relative_positions,
            _ => dim(config.max_position_embeddings),
        };
        let buckets = own.position_buckets.max(0);
        for (key, value) in [("position_buckets", buckets), ("max_relative_positions", longest)] {
            super::limit(
                checkpoint,
                key,
                usize::try_from(value).unwrap_or(usize::MAX),
                super::MAX_POSITIONS,
            )?;
        }
        // Logarithms of these are divided by each other.
        if buckets > 0 && (buckets < 4 || longest <= buckets / 2 + 1) {
            return Err(ExportError::Config {
                path: checkpoint.config_path(),
                reason: format!(
                    "{buckets} position_buckets for {longest} relative positions are out of range"
                ),
            });
        }
        let kinds = |word: &str| own.pos_att_type.as_ref().is_some_and(|words| words.has(word));
        let relative = Relative {
            span: usize::try_from(if buckets > 0 { buckets } else { longest }).unwrap_or_default(),
            buckets,
            longest,
            content_to_position: kinds("c2p"),
            position_to_content: kinds("p2c"),
            shares_products: own.share_att_key,
        };
        Ok(Self {
            encoder: PostNorm::open(checkpoint, config, "deberta.", &NAMES)?,
            relative: own.relative_attention.then_some(relative),
            has_positions: own.position_biased_input,
            norm_distances: own.norm_rel_ebd.is_some_and(|words| words.contains("layer_norm")),
            pooler,
        })
    }

    /// Embeddings with the vectors of padding made zero, as transformers has them: [batch, sequence, hidden].
    fn embed(&self, graph: &mut Graph<'_>, ids: &Value) -> Result<Value, ExportError> {
        let positions = if self.has_positions { Some(graph.positions()?) } else { None };
        // Most have no types, and so no input of them.
        let types = (self.encoder.config.type_vocab_size > 0).then(|| graph.input(TOKEN_TYPE_IDS));
        let embedded = self.encoder.embed(graph, ids, positions.as_ref(), types.as_ref())?;
        let mask = graph.mask(embedded.dtype)?;
        let masked = graph.within("embeddings", |graph| {
            let mask = graph.unsqueeze(&mask, &[2]);
            Ok(graph.arithmetic("Mul", &embedded, &mask))
        })?;
        if self.encoder.config.embedding_size.is_some_and(|size| size != self.hidden_size()) {
            return Err(super::unsupported(
                graph.checkpoint,
                "embeddings narrower than its layers (embedding_size)".to_owned(),
                "embedding_size as hidden_size",
            ));
        }
        Ok(masked)
    }

    /// The vectors of distances, [2 · span, hidden], and for each pair of tokens which of them: [sequence, sequence].
    fn distances(&self, graph: &mut Graph<'_>, relative: Relative) -> Result<(Value, Value), ExportError> {
        graph.within("encoder", |graph| {
            let table = graph.within("rel_embeddings", |graph| {
                let dtype = graph.compute_type();
                let name = self.encoder.tensor("encoder.rel_embeddings.weight");
                graph.weight(&name, &[2 * relative.span, self.hidden_size()], dtype)
            })?;
            let table = if self.norm_distances {
                graph.within("LayerNorm", |graph| self.encoder.norm(graph, "encoder.LayerNorm", &table))?
            } else {
                table
            };
            // The table goes by key − query, the distance by query − key.
            let rows = graph
                .by_distance("distance/rows", self.max_sequence(), |distance| relative.row(-distance))?;
            Ok((table, rows))
        })
    }

    /// The part of the scores that distances make, already scaled: [batch, heads, sequence, sequence].
    fn bias(
        &self,
        graph: &mut Graph<'_>,
        layer: &str,
        [q, k]: [&Value; 2],
        (table, rows): &(Value, Value),
        relative: Relative,
    ) -> Result<Option<Value>, ExportError> {
        let (heads, hidden) = (self.encoder.heads, self.hidden_size());
        let dtype = q.dtype;
        // [1, heads, 2 · span, size], or with the last two the other way round. As rank 4 throughout: ONNX Runtime 1.32
        // crashes as it folds such constants into a product of rank 3 and rank 4.
        let vectors = |graph: &mut Graph<'_>, module: &str, order: [i64; 4]| {
            let own = if module == "key_proj" { "pos_key_proj" } else { "pos_query_proj" };
            let module = if relative.shares_products { module } else { own };
            graph.within(module, |graph| {
                let tensor = self.encoder.tensor(&format!("{layer}.attention.self.{module}"));
                let dtype = graph.compute_type();
                let x = graph.linear(table, &tensor, (hidden, hidden), dtype)?;
                let x = graph.reshape(&x, &[1, -1, dim(heads.count), dim(heads.size)]);
                Ok(graph.transpose(&x, &order))
            })
        };
        let scale = graph.scalar(relative.scale(heads.size), dtype);
        let rows = self.rows_by_head(graph, rows)?;
        let pick = |graph: &mut Graph<'_>, all: &Value, axis: i64| {
            graph.node("GatherElements", &[all, &rows], vec![Attribute::Int("axis", axis)], dtype)
        };
        let mut parts = Vec::new();
        if relative.content_to_position {
            let keys = vectors(graph, "key_proj", [0, 2, 3, 1])?;
            let q = graph.arithmetic("Mul", q, &scale);
            let all = graph.node("MatMul", &[&q, &keys], Vec::new(), dtype);
            parts.push(pick(graph, &all, 3));
        }
        if relative.position_to_content {
            let queries = vectors(graph, "query_proj", [0, 2, 1, 3])?;
            let queries = graph.arithmetic("Mul", &queries, &scale);
            let k = graph.transpose(k, &[0, 1, 3, 2]);
            let all = graph.node("MatMul", &[&queries, &k], Vec::new(), dtype);
            parts.push(pick(graph, &all, 2));
        }
        Ok(match parts.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            [one, other, ..] => {
                let (one, other) = (graph.cast(one, DataType::F32), graph.cast(other, DataType::F32));
                Some(graph.arithmetic("Add", &one, &other))
            }
        })
    }

    /// `rows` for every head of every sentence, as `GatherElements` wants them: [batch, heads, sequence, sequence].
    fn rows_by_head(&self, graph: &mut Graph<'_>, rows: &Value) -> Result<Value, ExportError> {
        let shape = graph.batch_and_sequence()?;
        graph.once("distance/rows/heads", |graph| {
            let (zero, one) = (graph.integers(&[0]), graph.integers(&[1]));
            let (batch, sequence) = (graph.gather(&shape, &zero, 0), graph.gather(&shape, &one, 0));
            let heads = graph.integers(&[dim(self.encoder.heads.count)]);
            let target = graph.concat(&[&batch, &heads, &sequence, &sequence]);
            Ok(graph.node("Expand", &[rows, &target], Vec::new(), DataType::I64))
        })
    }
}

/// Whether `config.json` says how many token types there are: `DeBERTa`'s default is none.
#[derive(Deserialize)]
struct TypeCount {
    type_vocab_size: Option<usize>,
}

impl Family for Deberta {
    fn hidden_size(&self) -> usize {
        self.encoder.hidden_size()
    }

    fn max_sequence(&self) -> usize {
        self.encoder.max_positions()
    }

    fn encode(&self, graph: &mut Graph<'_>) -> Result<Value, ExportError> {
        let ids = graph.input(INPUT_IDS);
        graph.input(ATTENTION_MASK);
        let embedded = self.embed(graph, &ids)?;
        let padding = graph.padding_mask()?;
        let Some(relative) = self.relative else { return self.encoder.layers(graph, &embedded) };
        let distances = self.distances(graph, relative)?;
        let heads = self.encoder.heads;
        self.encoder.layers_with(graph, &embedded, |graph, layer, qkv| {
            let [q, k, v] = self.encoder.split(graph, &qkv)?;
            let bias = self.bias(graph, layer, [&q, &k], &distances, relative)?;
            let mask: Mask = bias.map_or_else(|| padding.clone(), |bias| graph.biased(&padding, &bias));
            graph.attend([&q, &k, &v], heads, relative.scale(heads.size), &mask)
        })
    }

    fn classify(&self, graph: &mut Graph<'_>, hidden: &Value) -> Result<(Value, usize), ExportError> {
        super::require_classifier(graph.checkpoint, "pooler.dense.weight")?;
        let head = Classifier::new("pooler.dense", self.pooler, "classifier");
        head.write(graph, hidden, self.hidden_size())
    }
}

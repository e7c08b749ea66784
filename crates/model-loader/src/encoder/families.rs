//! Each family's checkpoint, read into one description.

use std::fmt::Debug;

use cpu_kernels::{Attention, Norm, Relative};

use super::embeddings::Embeddings;
use super::places::Table;
use crate::config::{Family, ModernBert};
use crate::weights::Weights;
use crate::{LoadError, ModelConfig};

/// What runs a model: how it wants the weights of a product, of a norm and of places.
pub(crate) trait Kernels {
    type Linear: Debug;
    type Norm: Debug;
    type Relative: Debug;

    /// `weight` is `[outputs, inputs]`, `bias` `[outputs]` or empty.
    fn linear(&self, weight: Vec<f32>, bias: Vec<f32>, inputs: usize) -> Result<Self::Linear, LoadError>;

    fn norm(&self, norm: Norm) -> Result<Self::Norm, LoadError>;

    /// The tables are `[places, heads · width]`.
    fn relative(&self, relative: Relative, sizes: [usize; 2]) -> Result<Self::Relative, LoadError>;
}

/// An encoder of any family.
#[derive(Debug)]
pub(crate) struct Model<K: Kernels> {
    pub width: usize,
    pub embeddings: Embeddings,
    /// From the embeddings' width to the layers'.
    pub projection: Option<K::Linear>,
    pub layers: Vec<Layer<K>>,
    /// Which layer is run when.
    pub order: Vec<usize>,
    /// The kinds of attention, and their rotary positions, that layers refer to.
    pub attention: Vec<(Attention, Option<Rotary>)>,
    pub activation: cpu_kernels::Activation,
    /// Whether a block's norm comes before it, or after its sum with what went in.
    pub norms_come_first: bool,
    pub final_norm: Option<K::Norm>,
}

#[derive(Debug)]
pub(crate) struct Layer<K: Kernels> {
    /// Query, key and value in one product: `[3 · hidden, hidden]`.
    pub qkv: K::Linear,
    /// What attention makes of places, in `DeBERTa`.
    pub relative: Option<K::Relative>,
    pub out: K::Linear,
    /// `None` normalises nothing.
    pub attention_norm: Option<K::Norm>,
    /// `[intermediate, hidden]`, or twice that where it is gated.
    pub up: K::Linear,
    pub is_gated: bool,
    pub down: K::Linear,
    pub feed_norm: Option<K::Norm>,
    /// An index into [`Model::attention`].
    pub attention: usize,
}

/// Rotary positions (Su et al., "`RoFormer`", 2021), by halves: element `i` of a head turns with element `i + half`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rotary {
    pub half: usize,
    /// `[positions, half]`.
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl Rotary {
    fn new(theta: f64, width: usize, positions: usize) -> Self {
        let half = width / 2;
        // In float32 as transformers does it, or long texts would differ.
        #[expect(clippy::cast_possible_truncation, reason = "float32 is what the angles are made of")]
        let theta = theta as f32;
        let speeds: Vec<f32> = (0..half).map(|i| 1.0 / theta.powf((2 * i) as f32 / width as f32)).collect();
        let angles = || (0..positions).flat_map(|p| speeds.iter().map(move |speed| p as f32 * speed));
        Self { half, cos: angles().map(f32::cos).collect(), sin: angles().map(f32::sin).collect() }
    }
}

/// Reads the encoder of a checkpoint.
pub(crate) fn load<K: Kernels>(
    config: &ModelConfig,
    weights: &Weights,
    kernels: &K,
) -> Result<Model<K>, LoadError> {
    let scope = Scope { weights, prefix: prefix(weights, config.family), eps: config.layer_norm_eps };
    let reader = Reader { config, scope, kernels };
    match &config.modern {
        Some(modern) => reader.modern(modern),
        None => reader.post_norm(&names(config.family)),
    }
}

/// What a family that normalises after each block calls its tensors, below its prefix; `{}` is a layer's number.
struct Names {
    layer: &'static str,
    query_key_value: [&'static str; 3],
    out: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    feed_norm: &'static str,
    projection: &'static str,
}

const BERT: Names = Names {
    layer: "encoder.layer.{}.",
    query_key_value: ["attention.self.query", "attention.self.key", "attention.self.value"],
    out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    feed_norm: "output.LayerNorm",
    projection: "embeddings_project",
};

fn names(family: Family) -> Names {
    match family {
        Family::DebertaV2 => Names {
            query_key_value: [
                "attention.self.query_proj",
                "attention.self.key_proj",
                "attention.self.value_proj",
            ],
            ..BERT
        },
        Family::DistilBert => Names {
            layer: "transformer.layer.{}.",
            query_key_value: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
            out: "attention.out_lin",
            attention_norm: "sa_layer_norm",
            up: "ffn.lin1",
            down: "ffn.lin2",
            feed_norm: "output_layer_norm",
            ..BERT
        },
        Family::Mpnet => Names {
            query_key_value: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
            out: "attention.attn.o",
            attention_norm: "attention.LayerNorm",
            ..BERT
        },
        Family::Albert => Names {
            layer: "encoder.albert_layer_groups.{}.albert_layers.0.",
            query_key_value: ["attention.query", "attention.key", "attention.value"],
            out: "attention.dense",
            attention_norm: "attention.LayerNorm",
            up: "ffn",
            down: "ffn_output",
            feed_norm: "full_layer_layer_norm",
            projection: "encoder.embedding_hidden_mapping_in",
        },
        _ => BERT,
    }
}

/// The encoder's own names have a prefix when it was saved as part of a model with a head.
pub(crate) fn prefix(weights: &Weights, family: Family) -> &'static str {
    let (own, words) = match family {
        Family::Albert => ("albert.", "embeddings.word_embeddings.weight"),
        Family::Bert => ("bert.", "embeddings.word_embeddings.weight"),
        Family::DebertaV2 => ("deberta.", "embeddings.word_embeddings.weight"),
        Family::DistilBert => ("distilbert.", "embeddings.word_embeddings.weight"),
        Family::Electra => ("electra.", "embeddings.word_embeddings.weight"),
        Family::ModernBert => ("model.", "embeddings.tok_embeddings.weight"),
        Family::Mpnet => ("mpnet.", "embeddings.word_embeddings.weight"),
        Family::Roberta => ("roberta.", "embeddings.word_embeddings.weight"),
    };
    if weights.contains(&format!("{own}{words}")) { own } else { "" }
}

struct Reader<'a, K> {
    config: &'a ModelConfig,
    scope: Scope<'a>,
    kernels: &'a K,
}

impl<K: Kernels> Reader<'_, K> {
    /// Everything but `ModernBERT`: learned positions, a norm after each block.
    fn post_norm(&self, names: &Names) -> Result<Model<K>, LoadError> {
        let Self { config, scope, .. } = self;
        let ModelConfig { family, hidden, embedding, intermediate, .. } = **config;
        let deberta = config.deberta.as_ref();
        let places = match deberta.and_then(|deberta| deberta.places.as_ref()) {
            Some(places) => Some(Table::read(places, scope, hidden, config.max_tokens())?),
            None => None,
        };
        let layer = |index: usize| {
            let layer = names.layer.replace("{}", &index.to_string());
            let name = |part: &str| format!("{layer}{part}");
            let [query, key, value] = names.query_key_value.map(name);
            let relative = match &places {
                Some(table) => {
                    let sizes = [config.heads, hidden / config.heads];
                    Some(self.kernels.relative(table.of_layer(scope, &layer)?, sizes)?)
                }
                None => None,
            };
            Ok(Layer {
                qkv: self.linear(&[&query, &key, &value], hidden, hidden)?,
                relative,
                out: self.linear(&[&name(names.out)], hidden, hidden)?,
                attention_norm: Some(self.norm(&name(names.attention_norm))?),
                up: self.linear(&[&name(names.up)], hidden, intermediate)?,
                is_gated: false,
                down: self.linear(&[&name(names.down)], intermediate, hidden)?,
                feed_norm: Some(self.norm(&name(names.feed_norm))?),
                attention: 0,
            })
        };
        let has_types = !matches!(family, Family::DistilBert | Family::Mpnet) && config.type_vocab_size > 0;
        let has_positions = deberta.is_none_or(|deberta| deberta.has_positions);
        let embeddings = Embeddings {
            width: embedding,
            words: scope.vector("embeddings.word_embeddings.weight", &[config.vocab_size, embedding])?,
            positions: if has_positions {
                scope.vector("embeddings.position_embeddings.weight", &[config.max_positions, embedding])?
            } else {
                Vec::new()
            },
            types: if has_types {
                scope
                    .vector("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, embedding])?
            } else {
                Vec::new()
            },
            norm: scope.norm("embeddings.LayerNorm", embedding)?,
        };
        let projection = if embedding != hidden || family == Family::Albert {
            Some(self.linear(&[names.projection], embedding, hidden)?)
        } else {
            None
        };
        let distance_bias = if family == Family::Mpnet { self.distance_bias()? } else { Vec::new() };
        // ALBERT runs its one layer every time.
        let layers = if family == Family::Albert { 1 } else { config.num_layers };
        Ok(Model {
            width: hidden,
            embeddings,
            projection,
            layers: (0..layers).map(layer).collect::<Result<_, LoadError>>()?,
            order: (0..config.num_layers).map(|index| index.min(layers - 1)).collect(),
            attention: vec![(self.attention(None, distance_bias), None)],
            activation: config.activation.kernel(),
            norms_come_first: false,
            final_norm: None,
        })
    }

    fn modern(&self, modern: &ModernBert) -> Result<Model<K>, LoadError> {
        let Self { config, scope, .. } = self;
        let ModelConfig { hidden, intermediate, heads, .. } = **config;
        let norm = |name: &str| {
            let gamma = scope.vector(&format!("{name}.weight"), &[hidden])?;
            let beta = if modern.has_norm_bias {
                scope.vector(&format!("{name}.bias"), &[hidden])?
            } else {
                Vec::new()
            };
            Ok::<_, LoadError>(Norm { gamma, beta, eps: scope.eps })
        };
        let layer = |index: usize| {
            let name = |part: &str| format!("layers.{index}.{part}");
            let linear = |part: &str, input, output, has_bias| {
                let bias = if has_bias { Bias::Own } else { Bias::None };
                self.linear_with(&[&name(part)], input, output, bias)
            };
            let attention_norm = match index {
                0 => None,
                _ => Some(self.kernels.norm(norm(&name("attn_norm"))?)?),
            };
            Ok(Layer {
                qkv: linear("attn.Wqkv", hidden, 3 * hidden, modern.has_attention_bias)?,
                relative: None,
                out: linear("attn.Wo", hidden, hidden, modern.has_attention_bias)?,
                attention_norm,
                up: linear("mlp.Wi", hidden, 2 * intermediate, modern.has_mlp_bias)?,
                is_gated: true,
                down: linear("mlp.Wo", intermediate, hidden, modern.has_mlp_bias)?,
                feed_norm: Some(self.kernels.norm(norm(&name("mlp_norm"))?)?),
                attention: usize::from(modern.is_local[index]),
            })
        };
        let rotary = |theta| Some(Rotary::new(theta, hidden / heads, config.max_positions));
        Ok(Model {
            width: hidden,
            embeddings: Embeddings {
                width: hidden,
                words: scope.vector("embeddings.tok_embeddings.weight", &[config.vocab_size, hidden])?,
                positions: Vec::new(),
                types: Vec::new(),
                norm: norm("embeddings.norm")?,
            },
            projection: None,
            layers: (0..config.num_layers).map(layer).collect::<Result<_, LoadError>>()?,
            order: (0..config.num_layers).collect(),
            attention: vec![
                (self.attention(None, Vec::new()), rotary(modern.global_theta)),
                (self.attention(Some(modern.window), Vec::new()), rotary(modern.local_theta)),
            ],
            activation: config.activation.kernel(),
            norms_come_first: true,
            final_norm: Some(self.kernels.norm(norm("final_norm")?)?),
        })
    }

    fn attention(&self, window: Option<usize>, distance_bias: Vec<f32>) -> Attention {
        let width = self.config.hidden / self.config.heads;
        // DeBERTa's scores are a sum of so many products.
        let places = self.config.deberta.as_ref().and_then(|deberta| deberta.places.as_ref());
        let kinds =
            places.map_or(0, |places| usize::from(places.queries_look) + usize::from(places.keys_look));
        let scale = 1.0 / ((width * (1 + kinds)) as f32).sqrt();
        Attention { heads: self.config.heads, width, scale, window, distance_bias }
    }

    /// `MPNet`'s bias, which has a row for a bucket of distances (as T5 has it), spread out to a value a distance.
    fn distance_bias(&self) -> Result<Vec<f32>, LoadError> {
        const BUCKETS: usize = 32;
        let heads = self.config.heads;
        let table = self.scope.vector("encoder.relative_attention_bias.weight", &[BUCKETS, heads])?;
        let span = self.config.max_tokens();
        let bucket = |offset: usize| {
            // Keys after their query have the upper half of the buckets.
            let (distance, side) =
                if offset > span { (offset - span, BUCKETS / 2) } else { (span - offset, 0) };
            side + distance_bucket(distance, BUCKETS / 2)
        };
        let values = |head| (0..=2 * span).map(move |offset| (head, offset));
        Ok((0..heads).flat_map(values).map(|(head, offset)| table[bucket(offset) * heads + head]).collect())
    }

    fn linear(&self, names: &[&str], input: usize, output: usize) -> Result<K::Linear, LoadError> {
        self.linear_with(names, input, output, Bias::Own)
    }

    fn linear_with(
        &self,
        names: &[&str],
        input: usize,
        output: usize,
        bias: Bias,
    ) -> Result<K::Linear, LoadError> {
        let (weight, bias) = self.scope.linear(names, input, output, bias)?;
        self.kernels.linear(weight, bias, input)
    }

    fn norm(&self, name: &str) -> Result<K::Norm, LoadError> {
        self.kernels.norm(self.scope.norm(name, self.config.hidden)?)
    }
}

/// T5's buckets of a distance (Raffel et al., 2020): exact up to half of them, then by its logarithm up to 128 tokens.
fn distance_bucket(distance: usize, buckets: usize) -> usize {
    const MAX_DISTANCE: f32 = 128.0;
    let exact = buckets / 2;
    if distance < exact {
        return distance;
    }
    let share = (distance as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f32).ln();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded down, and above 0")]
    let beyond = (share * (buckets - exact) as f32) as usize;
    (exact + beyond).min(buckets - 1)
}

/// Whether a product has a bias in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    Own,
    None,
}

/// The names below one prefix.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub weights: &'a Weights,
    pub prefix: &'static str,
    pub eps: f32,
}

impl Scope<'_> {
    /// Weight and bias of one linear layer, or of several with the same input stacked into one product.
    pub(crate) fn linear(
        &self,
        names: &[&str],
        input: usize,
        output: usize,
        has_bias: Bias,
    ) -> Result<(Vec<f32>, Vec<f32>), LoadError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (index, name) in names.iter().enumerate() {
            self.read(&format!("{name}.weight"), &[output, input], &mut weight)?;
            if index == 0 {
                // Only now is it certain that the file holds a tensor of the size that config.json claims.
                weight.reserve_exact((names.len() - 1) * weight.len());
            }
            if has_bias == Bias::Own {
                self.read(&format!("{name}.bias"), &[output], &mut bias)?;
            }
        }
        Ok((weight, bias))
    }

    pub(crate) fn norm(&self, name: &str, width: usize) -> Result<Norm, LoadError> {
        // TensorFlow's names, which the oldest checkpoints kept.
        let old = self.weights.contains(&format!("{}{name}.gamma", self.prefix));
        let (gamma, beta) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(Norm {
            gamma: self.vector(&format!("{name}.{gamma}"), &[width])?,
            beta: self.vector(&format!("{name}.{beta}"), &[width])?,
            eps: self.eps,
        })
    }

    pub(crate) fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let mut out = Vec::new();
        self.read(name, shape, &mut out)?;
        Ok(out)
    }

    fn read(&self, name: &str, shape: &[usize], out: &mut Vec<f32>) -> Result<(), LoadError> {
        self.weights.read(&format!("{}{name}", self.prefix), shape, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that transformers' `MPNetEncoder.relative_position_bucket` gives for 16 buckets a side.
    #[test]
    fn distances_fall_into_t5s_buckets() {
        let rows = [
            (0, 0),
            (7, 7),
            (8, 8),
            (11, 8),
            (12, 9),
            (16, 10),
            (23, 11),
            (32, 12),
            (64, 14),
            (91, 15),
            (500, 15),
        ];
        for (distance, bucket) in rows {
            assert_eq!(distance_bucket(distance, 16), bucket, "distance {distance}");
        }
    }
}

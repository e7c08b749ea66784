//! One encoder for BERT and `RoBERTa` in float32 on the CPU: embeddings, then layers of attention and feed-forward.

use std::path::Path;

use candle_core::{Device, Tensor};

use crate::config::Family;
use crate::ops::{AddNorm, Bias, MaskedSoftmax, Norm};
use crate::weights::Weights;
use crate::ragged::Ragged;
use crate::{LoadError, ModelConfig, TokenBatch, Tokens};

/// A loaded encoder.
#[derive(Debug)]
pub struct Encoder {
    config: ModelConfig,
    words: Vec<f32>,
    positions: Vec<f32>,
    types: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

/// A vector for every token of a batch: `[rows, seq, width]`, row-major. Those of padding mean nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Hidden {
    /// How many texts.
    pub rows: usize,
    /// Tokens per row, padding included.
    pub seq: usize,
    /// Length of a token's vector.
    pub width: usize,
    /// The vectors.
    pub values: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    /// Query, key and value in one product: `[3 · hidden, hidden]`.
    qkv: Linear,
    out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    output_norm: Norm,
}

/// `x · weightᵀ + bias`, the weight as stored: `[out, in]`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Vec<f32>,
}

impl Encoder {
    /// Loads the encoder from `config.json` and the safetensors in `dir`.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        let config = ModelConfig::from_dir(&dir)?;
        Self::load(config, &Weights::open(dir.as_ref())?)
    }

    pub(crate) fn load(config: ModelConfig, weights: &Weights) -> Result<Self, LoadError> {
        let ModelConfig { hidden, intermediate, .. } = config;
        let scope = Scope { weights, prefix: prefix(weights, config.family), eps: config.layer_norm_eps };
        let layer = |index: usize| {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            let [query, key, value] =
                ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
            Ok(Layer {
                qkv: scope.linear(&[&query, &key, &value], hidden, hidden)?,
                out: scope.linear(&[&name("attention.output.dense")], hidden, hidden)?,
                attention_norm: scope.norm(&name("attention.output.LayerNorm"), hidden)?,
                up: scope.linear(&[&name("intermediate.dense")], hidden, intermediate)?,
                down: scope.linear(&[&name("output.dense")], intermediate, hidden)?,
                output_norm: scope.norm(&name("output.LayerNorm"), hidden)?,
            })
        };
        Ok(Self {
            words: scope.vector("embeddings.word_embeddings.weight", &[config.vocab_size, hidden])?,
            positions: scope
                .vector("embeddings.position_embeddings.weight", &[config.max_positions, hidden])?,
            types: scope
                .vector("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, hidden])?,
            norm: scope.norm("embeddings.LayerNorm", hidden)?,
            layers: (0..config.num_layers).map(layer).collect::<Result<_, LoadError>>()?,
            config,
        })
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Runs the encoder: the last layer's vectors. How a text is padded does not change its vectors beyond float noise.
    pub fn forward(&self, batch: &TokenBatch) -> Result<Hidden, LoadError> {
        self.check(batch)?;
        let (rows, seq, width) = (batch.rows(), batch.seq(), self.config.hidden);
        let run = || {
            let mut x = Tensor::from_vec(self.embed(batch), (rows * seq, width), &Device::Cpu)?;
            for layer in &self.layers {
                x = layer.forward(&x, batch, &self.config)?;
            }
            x.flatten_all()?.to_vec1()
        };
        let values = run().map_err(LoadError::compute("the encoder"))?;
        Ok(Hidden { rows, seq, width, values })
    }

    /// Runs the encoder on whole texts: the last layer's vectors. What texts run together changes no vector beyond float
    /// noise.
    pub(crate) fn run(&self, texts: &[&Tokens]) -> Result<Ragged, LoadError> {
        let hidden = self.forward(&TokenBatch::pad(texts.iter().copied(), self.config.pad_id))?;
        let mut ragged = Ragged { width: hidden.width, starts: vec![0], values: Vec::new() };
        for (text, row) in texts.iter().zip(hidden.values.chunks_exact(hidden.seq * hidden.width)) {
            ragged.values.extend(&row[..text.len() * hidden.width]);
            ragged.starts.push(ragged.values.len() / hidden.width);
        }
        Ok(ragged)
    }

    fn check(&self, batch: &TokenBatch) -> Result<(), LoadError> {
        let ModelConfig { vocab_size, type_vocab_size, .. } = self.config;
        let max = self.config.max_tokens();
        if batch.seq() > max {
            return Err(LoadError::Tokens(format!(
                "{} tokens where it has positions for {max}",
                batch.seq()
            )));
        }
        if let Some(id) = batch.ids().iter().find(|id| **id as usize >= vocab_size) {
            return Err(LoadError::Tokens(format!(
                "token id {id} where its vocabulary has {vocab_size} entries; the tokenizer belongs to another model"
            )));
        }
        let uses_types = self.config.family == Family::Bert;
        if let Some(id) = batch.type_ids().iter().find(|id| uses_types && **id as usize >= type_vocab_size) {
            return Err(LoadError::Tokens(format!("token type {id} where it has {type_vocab_size} types")));
        }
        Ok(())
    }

    /// Word, position and type vectors of each token, summed and normalised: `[rows · seq, hidden]`.
    fn embed(&self, batch: &TokenBatch) -> Vec<f32> {
        let width = self.config.hidden;
        let mut out = Vec::with_capacity(batch.ids().len() * width);
        for (row, types) in
            batch.ids().chunks_exact(batch.seq()).zip(batch.type_ids().chunks_exact(batch.seq()))
        {
            let mut seen = 0;
            for (index, (id, type_id)) in row.iter().zip(types).enumerate() {
                // RoBERTa counts the tokens that are not padding, from pad_id + 1 on, goes by the ids and not by the
                // mask, gives padding the row pad_id, and has one token type.
                let (position, type_id) = match self.config.family {
                    Family::Bert => (index, *type_id as usize),
                    Family::Roberta if *id == self.config.pad_id => (self.config.pad_id as usize, 0),
                    Family::Roberta => {
                        seen += 1;
                        (self.config.pad_id as usize + seen, 0)
                    }
                };
                let at = out.len();
                let word = row_of(&self.words, *id as usize, width).iter();
                let others =
                    row_of(&self.types, type_id, width).iter().zip(row_of(&self.positions, position, width));
                out.extend(word.zip(others).map(|(word, (kind, position))| word + kind + position));
                self.norm.apply(&mut out[at..]);
            }
        }
        out
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, batch: &TokenBatch, config: &ModelConfig) -> candle_core::Result<Tensor> {
        let (rows, seq, heads) = (batch.rows(), batch.seq(), config.heads);
        let width = config.hidden / heads;
        let qkv = self.qkv.product(x)?;
        qkv.inplace_op1(&Bias { bias: &self.qkv.bias, activation: None })?;
        let qkv = qkv.reshape((rows, seq, 3, heads, width))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
        let part = |index| qkv.get(index)?.reshape((rows * heads, seq, width));
        let scores = part(0)?.matmul(&part(1)?.transpose(1, 2)?)?;
        scores.inplace_op1(&MaskedSoftmax {
            mask: batch.mask(),
            heads,
            scale: 1.0 / (width as f32).sqrt(),
        })?;
        let context = scores.matmul(&part(2)?)?.reshape((rows, heads, seq, width))?.transpose(1, 2)?;

        let attended = self.out.product(&context.reshape((rows * seq, config.hidden))?)?;
        attended.inplace_op2(x, &AddNorm { bias: &self.out.bias, norm: &self.attention_norm })?;
        let inner = self.up.product(&attended)?;
        inner.inplace_op1(&Bias { bias: &self.up.bias, activation: Some(config.activation) })?;
        let output = self.down.product(&inner)?;
        output.inplace_op2(&attended, &AddNorm { bias: &self.down.bias, norm: &self.output_norm })?;
        Ok(output)
    }
}

impl Linear {
    /// Without the bias, which the step after it adds in its own pass.
    fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        x.matmul(&self.weight.t()?)
    }

    /// The whole of it, with an activation, for `[rows, in]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        activation: Option<crate::config::Activation>,
    ) -> candle_core::Result<Tensor> {
        let y = self.product(x)?;
        y.inplace_op1(&Bias { bias: &self.bias, activation })?;
        Ok(y)
    }
}

/// The names below one prefix.
pub(crate) struct Scope<'a> {
    pub weights: &'a Weights,
    pub prefix: &'static str,
    pub eps: f32,
}

impl Scope<'_> {
    /// One linear layer, or several with the same input stacked into one product.
    pub(crate) fn linear(&self, names: &[&str], input: usize, output: usize) -> Result<Linear, LoadError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (index, name) in names.iter().enumerate() {
            self.read(&format!("{name}.weight"), &[output, input], &mut weight)?;
            if index == 0 {
                // Only now is it certain that the file holds a tensor of the size that config.json claims.
                weight.reserve_exact((names.len() - 1) * weight.len());
            }
            self.read(&format!("{name}.bias"), &[output], &mut bias)?;
        }
        let weight = Tensor::from_vec(weight, (names.len() * output, input), &Device::Cpu)
            .map_err(LoadError::compute("a linear layer"))?;
        Ok(Linear { weight, bias })
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, LoadError> {
        // TensorFlow's names, which the oldest checkpoints kept.
        let old = self.weights.contains(&format!("{}{name}.gamma", self.prefix));
        let (gamma, beta) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(Norm {
            gamma: self.vector(&format!("{name}.{gamma}"), &[width])?,
            beta: self.vector(&format!("{name}.{beta}"), &[width])?,
            eps: self.eps,
        })
    }

    fn vector(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let mut out = Vec::new();
        self.read(name, shape, &mut out)?;
        Ok(out)
    }

    fn read(&self, name: &str, shape: &[usize], out: &mut Vec<f32>) -> Result<(), LoadError> {
        self.weights.read(&format!("{}{name}", self.prefix), shape, out)
    }
}

/// The encoder's own names have a prefix when it was saved as part of a model with a head.
pub(crate) fn prefix(weights: &Weights, family: Family) -> &'static str {
    let own = match family {
        Family::Bert => "bert.",
        Family::Roberta => "roberta.",
    };
    if weights.contains(&format!("{own}embeddings.word_embeddings.weight")) { own } else { "" }
}

fn row_of(table: &[f32], index: usize, width: usize) -> &[f32] {
    &table[index * width..(index + 1) * width]
}

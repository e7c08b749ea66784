//! The encoder in candle's operations, on whatever device candle computes: the way onto a GPU, and on the CPU a second
//! opinion on the own kernels.

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor};
use cpu_kernels::{Activation, Attention, Norm};

use super::families::{self, Layer, Model, Rotary};
use crate::LoadError;
use crate::ragged::{Ragged, Rows};

/// The device that a model's tensors are on.
#[derive(Debug)]
pub(crate) struct Candle {
    pub device: Device,
}

/// `x · weightᵀ + bias`, the weight as stored: `[outputs, inputs]`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

#[derive(Debug)]
pub(crate) struct LayerNorm {
    gamma: Tensor,
    beta: Option<Tensor>,
    eps: f64,
}

/// What attention makes of places; the tables are `[1, heads, width, places]`.
#[derive(Debug)]
pub(crate) struct Relative {
    rows: Arc<[usize]>,
    keys: Option<Tensor>,
    queries: Option<Tensor>,
}

impl families::Kernels for Candle {
    type Linear = Linear;
    type Norm = LayerNorm;
    type Relative = Relative;

    fn linear(
        &self,
        weight: Vec<f32>,
        bias: Vec<f32>,
        inputs: usize,
    ) -> std::result::Result<Linear, LoadError> {
        let outputs = weight.len() / inputs;
        let load = || {
            let weight = Tensor::from_vec(weight, (outputs, inputs), &self.device)?;
            Ok(Linear { weight, bias: self.vector(bias)? })
        };
        load().map_err(LoadError::compute("a linear layer"))
    }

    fn norm(&self, norm: Norm) -> std::result::Result<LayerNorm, LoadError> {
        let load = || {
            let gamma = Tensor::new(norm.gamma, &self.device)?;
            Ok(LayerNorm { gamma, beta: self.vector(norm.beta)?, eps: f64::from(norm.eps) })
        };
        load().map_err(LoadError::compute("a layer norm"))
    }

    fn relative(
        &self,
        relative: cpu_kernels::Relative,
        [heads, width]: [usize; 2],
    ) -> std::result::Result<Relative, LoadError> {
        let cpu_kernels::Relative { rows, keys, queries } = relative;
        let table = |values: Vec<f32>| -> Result<Option<Tensor>> {
            let Some(vector) = self.vector(values)? else { return Ok(None) };
            let table = vector.reshape(((), heads, width))?.permute((1, 2, 0))?.unsqueeze(0)?;
            table.contiguous().map(Some)
        };
        let load = || Ok(Relative { keys: table(keys)?, queries: table(queries)?, rows });
        load().map_err(LoadError::compute("the places"))
    }
}

impl Candle {
    fn vector(&self, values: Vec<f32>) -> Result<Option<Tensor>> {
        if values.is_empty() { Ok(None) } else { Tensor::new(values, &self.device).map(Some) }
    }
}

impl Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

impl LayerNorm {
    /// The variance as the mean of squared differences: candle's own takes it as E[x²] − E[x]², which loses digits.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let y = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?.broadcast_mul(&self.gamma)?;
        match &self.beta {
            Some(beta) => y.broadcast_add(beta),
            None => Ok(y),
        }
    }
}

/// The last layer's vectors of texts that run together, padded to the longest.
pub(crate) fn forward(model: &Model<Candle>, texts: &[&Rows]) -> Result<Ragged> {
    let mut starts = vec![0];
    for text in texts {
        starts.push(starts[starts.len() - 1] + text.len());
    }
    let shape =
        Shape { rows: texts.len(), seq: texts.iter().map(|text| text.len()).max().unwrap_or_default() };
    if shape.seq == 0 {
        return Ok(Ragged { width: model.width, starts, values: Vec::new() });
    }
    let device = device(model);
    let mut x = {
        let width = model.embeddings.width;
        let values = model.embeddings.look_up(texts);
        let padded = shape.pad(&values, &starts, width);
        Tensor::from_vec(padded, (shape.rows * shape.seq, width), &device)?
    };
    if let Some(projection) = &model.projection {
        x = projection.forward(&x)?;
    }
    let kinds = model
        .attention
        .iter()
        .map(|(attention, rotary)| Kind::new(attention, rotary.as_ref(), texts, shape, &device))
        .collect::<Result<Vec<_>>>()?;
    for index in &model.order {
        let layer = &model.layers[*index];
        let kind = &kinds[layer.attention];
        let norm = |norm: &Option<LayerNorm>, x: &Tensor| match norm {
            Some(norm) => norm.forward(x),
            None => Ok(x.clone()),
        };
        if model.norms_come_first {
            x = (&x + attend(layer, kind, &norm(&layer.attention_norm, &x)?, shape)?)?;
            x = (&x + feed(layer, model.activation, &norm(&layer.feed_norm, &x)?)?)?;
        } else {
            x = norm(&layer.attention_norm, &(attend(layer, kind, &x, shape)? + &x)?)?;
            x = norm(&layer.feed_norm, &(feed(layer, model.activation, &x)? + &x)?)?;
        }
    }
    if let Some(norm) = &model.final_norm {
        x = norm.forward(&x)?;
    }
    let padded = x.flatten_all()?.to_vec1::<f32>()?;
    let mut values = Vec::with_capacity(starts[texts.len()] * model.width);
    for (text, row) in texts.iter().zip(padded.chunks_exact(shape.seq * model.width)) {
        values.extend_from_slice(&row[..text.len() * model.width]);
    }
    Ok(Ragged { width: model.width, starts, values })
}

/// Where the model's tensors are.
pub(crate) fn device(model: &Model<Candle>) -> Device {
    model.layers.first().map_or(Device::Cpu, |layer| layer.qkv.weight.device().clone())
}

/// The padded rectangle.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    seq: usize,
}

impl Shape {
    fn pad(self, values: &[f32], starts: &[usize], width: usize) -> Vec<f32> {
        let mut padded = vec![0.0; self.rows * self.seq * width];
        for (row, span) in starts.windows(2).enumerate() {
            let text = &values[span[0] * width..span[1] * width];
            padded[row * self.seq * width..][..text.len()].copy_from_slice(text);
        }
        padded
    }
}

/// One kind of attention, made ready for one rectangle.
struct Kind {
    heads: usize,
    width: usize,
    scale: f64,
    /// Added to the scores, broadcast to `[rows, heads, seq, seq]`: −∞ where a key is padding or too far away.
    bias: Tensor,
    /// Cosines and sines, `[rows, 1, seq, half]`.
    rotary: Option<(Tensor, Tensor)>,
}

impl Kind {
    fn new(
        attention: &Attention,
        rotary: Option<&Rotary>,
        texts: &[&Rows],
        shape: Shape,
        device: &Device,
    ) -> Result<Self> {
        let Shape { rows, seq } = shape;
        let Attention { heads, width, scale, window, ref distance_bias } = *attention;
        // The lowest number and not −∞: a text without a token would make NaN of its row, and a warning of it.
        let allowed = |allowed: bool| if allowed { 0.0 } else { f32::MIN };
        let padding: Vec<f32> =
            texts.iter().flat_map(|text| (0..seq).map(|key| allowed(key < text.len()))).collect();
        let mut bias = Tensor::from_vec(padding, (rows, 1, 1, seq), device)?;
        if let Some(window) = window {
            let near = |query: usize| (0..seq).map(move |key| allowed(query.abs_diff(key) <= window));
            let local: Vec<f32> = (0..seq).flat_map(near).collect();
            // Two lowest numbers would add to −∞.
            bias = bias.broadcast_minimum(&Tensor::from_vec(local, (1, 1, seq, seq), device)?)?;
        }
        if !distance_bias.is_empty() {
            let reach = distance_bias.len() / heads;
            let of_head = |head: usize| {
                (0..seq).flat_map(move |query| {
                    let from = head * reach + reach / 2 - query;
                    distance_bias[from..from + seq].iter().copied()
                })
            };
            let distances: Vec<f32> = (0..heads).flat_map(of_head).collect();
            bias = bias.broadcast_add(&Tensor::from_vec(distances, (1, heads, seq, seq), device)?)?;
        }
        let rotary = match rotary {
            Some(Rotary { half, cos, sin }) => {
                let table = |values: &[f32]| {
                    let of_text = |text: &&Rows| {
                        let mut all: Vec<f32> = text
                            .positions
                            .iter()
                            .flat_map(|position| &values[position * half..][..*half])
                            .copied()
                            .collect();
                        all.resize(seq * half, 0.0);
                        all
                    };
                    let values: Vec<f32> = texts.iter().flat_map(of_text).collect();
                    Tensor::from_vec(values, (rows, 1, seq, *half), device)
                };
                Some((table(cos)?, table(sin)?))
            }
            None => None,
        };
        Ok(Self { heads, width, scale: f64::from(scale), bias, rotary })
    }

    /// `x` is `[rows, heads, seq, width]`.
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let Some((cos, sin)) = &self.rotary else { return Ok(x.clone()) };
        let half = self.width / 2;
        let (a, b) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
        let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
        Tensor::cat(&[first, second], 3)
    }
}

impl Relative {
    /// The scores, `[rows, heads, seq, seq]`, with what queries and keys make of each other's places.
    fn add(&self, scores: &Tensor, query: &Tensor, key: &Tensor) -> Result<Tensor> {
        let seq = scores.dim(3)?;
        let middle = self.rows.len() / 2;
        let at = |from: usize, to: usize| u32::try_from(self.rows[middle + to - from]).unwrap_or_default();
        let square = |row: &dyn Fn(usize, usize) -> u32| {
            let rows: Vec<u32> =
                (0..seq).flat_map(|i| (0..seq).map(move |j| (i, j))).map(|(i, j)| row(i, j)).collect();
            Tensor::from_vec(rows, (1, 1, seq, seq), scores.device())?
                .broadcast_as(scores.shape())?
                .contiguous()
        };
        let mut sum = scores.clone();
        if let Some(keys) = &self.keys {
            let at_places = query.broadcast_matmul(keys)?;
            sum = (sum + at_places.gather(&square(&|query, key| at(query, key))?, 3)?)?;
        }
        if let Some(queries) = &self.queries {
            let at_places = key.broadcast_matmul(queries)?;
            sum = (sum + at_places.gather(&square(&|key, query| at(query, key))?, 3)?.transpose(2, 3)?)?;
        }
        Ok(sum)
    }
}

/// `x` is `[rows · seq, hidden]`.
fn attend(layer: &Layer<Candle>, kind: &Kind, x: &Tensor, shape: Shape) -> Result<Tensor> {
    let Shape { rows, seq } = shape;
    let (heads, width) = (kind.heads, kind.width);
    let qkv = layer
        .qkv
        .forward(x)?
        .reshape((rows, seq, 3, heads, width))?
        .permute((2, 0, 3, 1, 4))?
        .contiguous()?;
    let (query, key, value) = (kind.turn(&qkv.get(0)?)?, kind.turn(&qkv.get(1)?)?, qkv.get(2)?);
    let (query, key) = (query.contiguous()?, key.contiguous()?);
    let mut scores = query.matmul(&key.t()?)?;
    if let Some(relative) = &layer.relative {
        scores = relative.add(&scores, &query, &key)?;
    }
    let scores = (scores * kind.scale)?.broadcast_add(&kind.bias)?;
    let shares = candle_nn::ops::softmax_last_dim(&scores)?;
    let context =
        shares.matmul(&value.contiguous()?)?.transpose(1, 2)?.reshape((rows * seq, heads * width))?;
    layer.out.forward(&context)
}

fn feed(layer: &Layer<Candle>, activation: Activation, x: &Tensor) -> Result<Tensor> {
    let inner = layer.up.forward(x)?;
    let inner = if layer.is_gated {
        let half = inner.dim(1)? / 2;
        (activate(activation, &inner.narrow(1, 0, half)?)? * inner.narrow(1, half, half)?)?
    } else {
        activate(activation, &inner)?
    };
    layer.down.forward(&inner)
}

fn activate(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
        Activation::Tanh => x.tanh(),
    }
}

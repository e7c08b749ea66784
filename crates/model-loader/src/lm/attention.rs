//! Grouped-query attention over a cache of keys and values.

use candle_core::{D, DType, Device, Tensor};

use crate::LoadError;
use crate::lm::config::LmConfig;
use crate::lm::decoder::Norm;
use crate::lm::rope::Pairs;
use crate::lm::tensors::{Linear, Tensors};

/// Room for this many tokens at first; it doubles as it fills.
const FIRST_ROOM: usize = 64;

/// The keys and values of one generation, layer by layer.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Keys and values, each `[kv_heads, room, head_size]`.
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
    max_len: usize,
}

impl Cache {
    pub(crate) fn new(layers: usize, max_len: usize) -> Self {
        Self { layers: vec![None; layers], len: 0, max_len }
    }

    /// Tokens that have been through all layers.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn advance(&mut self, count: usize) {
        self.len += count;
    }

    /// Appends a layer's keys and values, each `[kv_heads, count, head_size]`, and gives those of the tokens from `first`
    /// on.
    fn append(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        first: usize,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let total = self.len + k.dim(1)?;
        let held = self.layers[layer].take();
        let room = match &held {
            Some((keys, _)) => keys.dim(1)?,
            None => 0,
        };
        let (keys, values) = match held {
            Some(held) if total <= room => held,
            held => {
                let room = total.max(2 * room).max(FIRST_ROOM).min(self.max_len.max(total));
                let (heads, _, size) = k.dims3()?;
                let grown = |old: Option<Tensor>| {
                    let new = Tensor::zeros((heads, room, size), k.dtype(), k.device())?;
                    if let Some(old) = old.filter(|_| self.len > 0) {
                        new.slice_set(&old.narrow(1, 0, self.len)?.contiguous()?, 1, 0)?;
                    }
                    candle_core::Result::Ok(new)
                };
                let (old_keys, old_values) = held.unzip();
                (grown(old_keys)?, grown(old_values)?)
            }
        };
        keys.slice_set(&k.contiguous()?, 1, self.len)?;
        values.slice_set(&v.contiguous()?, 1, self.len)?;
        let seen = (keys.narrow(1, first, total - first)?, values.narrow(1, first, total - first)?);
        self.layers[layer] = Some((keys, values));
        Ok(seen)
    }
}

/// What the tokens of a run see of those before them and of themselves.
pub(crate) struct View {
    /// The first token that any of them sees.
    first: usize,
    /// 0 where a token sees another and minus infinity where not, `[count, seen]`; `None` where all is seen.
    mask: Option<Tensor>,
}

impl View {
    /// Of `count` tokens from position `start` on.
    pub(crate) fn new(
        start: usize,
        count: usize,
        window: Option<usize>,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let window = window.unwrap_or(usize::MAX);
        let first = (start + 1).saturating_sub(window);
        if count == 1 {
            return Ok(Self { first, mask: None });
        }
        let seen = |query: usize, key: usize| key <= query && query - key < window;
        let row = |query: usize| {
            (first..start + count).map(move |key| if seen(query, key) { 0.0 } else { f32::NEG_INFINITY })
        };
        let mask: Vec<f32> = (start..start + count).flat_map(row).collect();
        Ok(Self { first, mask: Some(Tensor::from_vec(mask, (count, start + count - first), device)?) })
    }
}

#[derive(Debug)]
pub(crate) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    /// Qwen 3's norms of each head of the queries and of the keys.
    norms: Option<(Norm, Norm)>,
    heads: usize,
    kv_heads: usize,
    head_size: usize,
    pairs: Pairs,
}

impl Attention {
    pub(crate) fn load(name: &str, config: &LmConfig, tensors: &dyn Tensors) -> Result<Self, LoadError> {
        let LmConfig { hidden, heads, kv_heads, head_size, qkv_bias, output_bias, .. } = *config;
        let linear = |part: &str, output, input, bias| {
            Linear::load(tensors, &format!("{name}.{part}"), output, input, bias)
        };
        let norm = |part: &str| Norm::load(tensors, &format!("{name}.{part}"), head_size, config);
        Ok(Self {
            q: linear("q_proj", heads * head_size, hidden, qkv_bias)?,
            k: linear("k_proj", kv_heads * head_size, hidden, qkv_bias)?,
            v: linear("v_proj", kv_heads * head_size, hidden, qkv_bias)?,
            out: linear("o_proj", hidden, heads * head_size, output_bias)?,
            norms: if config.qk_norm { Some((norm("q_norm")?, norm("k_norm")?)) } else { None },
            heads,
            kv_heads,
            head_size,
            pairs: config.rope.pairs,
        })
    }

    /// `x` is `[count, hidden]`, and so is what comes of it.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        turns: &(Tensor, Tensor),
        view: &View,
        cache: &mut Cache,
    ) -> candle_core::Result<Tensor> {
        let (count, dtype) = (x.dim(0)?, x.dtype());
        let (q_norm, k_norm) = self.norms.as_ref().map(|(q, k)| (q, k)).unzip();
        let q = self.turned(&self.q.forward(x)?, self.heads, q_norm, turns)?;
        let k = self.turned(&self.k.forward(x)?, self.kv_heads, k_norm, turns)?;
        let v = self.v.forward(x)?.reshape((count, self.kv_heads, self.head_size))?.transpose(0, 1)?;
        let (keys, values) = cache.append(layer, &k, &v, view.first)?;
        let seen = keys.dim(1)?;

        // The queries that share a key head are rows of one product: keys and values are not repeated.
        let group = self.heads / self.kv_heads;
        let q = q.reshape((self.kv_heads, group * count, self.head_size))?;
        let scale = 1.0 / (self.head_size as f64).sqrt();
        let scores = (q.matmul(&keys.transpose(1, 2)?)?.to_dtype(DType::F32)? * scale)?;
        let scores = match &view.mask {
            Some(mask) => scores
                .reshape((self.kv_heads, group, count, seen))?
                .broadcast_add(mask)?
                .reshape((self.kv_heads, group * count, seen))?,
            None => scores,
        };
        let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(dtype)?;
        let mixed = weights.matmul(&values)?.reshape((self.heads, count, self.head_size))?;
        self.out.forward(&mixed.transpose(0, 1)?.contiguous()?.flatten_from(1)?)
    }

    /// `[count, heads · head_size]` to heads, normalised and turned: `[heads, count, head_size]`.
    fn turned(
        &self,
        x: &Tensor,
        heads: usize,
        norm: Option<&Norm>,
        (cos, sin): &(Tensor, Tensor),
    ) -> candle_core::Result<Tensor> {
        let x = x.reshape((x.dim(0)?, heads, x.dim(D::Minus1)? / heads))?;
        let x = match norm {
            Some(norm) => norm.forward(&x)?,
            None => x,
        };
        let x = x.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
        let x = match self.pairs {
            Pairs::Halves => candle_nn::rotary_emb::rope(&x, cos, sin)?,
            Pairs::Neighbours => candle_nn::rotary_emb::rope_i(&x, cos, sin)?,
        };
        x.squeeze(0)
    }
}

//! The decoder that Llama, Mistral, Qwen 2 and Qwen 3 share: RMS norm, rotary positions, grouped-query attention, a gated
//! feed-forward block.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::LoadError;
use crate::lm::attention::{Attention, Cache, View};
use crate::lm::config::LmConfig;
use crate::lm::tensors::{Linear, Matrix, Tensors};
use crate::weights::all_finite;

/// A prompt goes through the layers in pieces of this many tokens: the scores of a piece with all that came before it are
/// what takes memory, and its square would be that of the whole prompt.
const PIECE_TOKENS: usize = 128;

/// A loaded decoder. It holds nothing of a generation: that is in the [`Cache`].
#[derive(Debug)]
pub(crate) struct Decoder {
    config: LmConfig,
    dtype: DType,
    device: Device,
    words: Matrix,
    layers: Vec<Layer>,
    norm: Norm,
    head: Matrix,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
    window: Option<usize>,
}

/// RMS norm with its gain.
#[derive(Debug)]
pub(crate) struct Norm {
    gain: Tensor,
    eps: f32,
}

impl Norm {
    pub(crate) fn load(
        tensors: &dyn Tensors,
        name: &str,
        len: usize,
        config: &LmConfig,
    ) -> Result<Self, LoadError> {
        Ok(Self { gain: tensors.vector(&format!("{name}.weight"), len)?, eps: config.rms_norm_eps })
    }

    /// Over the last dimension, in float32 inside.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::rms_norm(&x.contiguous()?, &self.gain, self.eps)
    }
}

/// Whose logits are wanted.
#[derive(Clone, Copy)]
enum Wanted {
    All,
    Last,
}

impl Decoder {
    /// Reads all weights; an error names the file and the tensor.
    pub(crate) fn load(
        config: LmConfig,
        tensors: &dyn Tensors,
        dtype: DType,
        device: Device,
    ) -> Result<Self, LoadError> {
        let (hidden, vocab) = (config.hidden, config.vocab_size);
        let words = tensors.matrix("model.embed_tokens.weight", vocab, hidden)?;
        let layers = (0..config.num_layers).into_par_iter().map(|index| Layer::load(index, &config, tensors));
        let layers = layers.collect::<Result<_, _>>()?;
        let norm = Norm::load(tensors, "model.norm", hidden, &config)?;
        let head =
            if config.tied { words.clone() } else { tensors.matrix("lm_head.weight", vocab, hidden)? };
        tensors.finish()?;
        Ok(Self { config, dtype, device, words, layers, norm, head })
    }

    pub(crate) fn config(&self) -> &LmConfig {
        &self.config
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// An empty cache for one generation.
    pub(crate) fn cache(&self) -> Cache {
        Cache::new(self.config.num_layers, self.config.max_positions)
    }

    /// The logits of the last of the tokens, which come after those of the cache: one for each word of the vocabulary.
    pub(crate) fn logits(&self, ids: &[u32], cache: &mut Cache) -> Result<Vec<f32>, LoadError> {
        self.run(ids, cache, Wanted::Last)
    }

    /// The logits of each of the tokens, `[tokens, vocabulary]`.
    pub(crate) fn all_logits(&self, ids: &[u32]) -> Result<Vec<f32>, LoadError> {
        self.run(ids, &mut self.cache(), Wanted::All)
    }

    fn run(&self, ids: &[u32], cache: &mut Cache, wanted: Wanted) -> Result<Vec<f32>, LoadError> {
        let LmConfig { vocab_size, max_positions, .. } = self.config;
        if ids.is_empty() {
            return Err(LoadError::Tokens("there are none to continue; give at least one".to_owned()));
        }
        let total = cache.len() + ids.len();
        if total > max_positions {
            return Err(LoadError::Tokens(format!(
                "{total} tokens where it has positions for {max_positions} (max_position_embeddings)"
            )));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(LoadError::Tokens(format!(
                "token id {id} where its vocabulary has {vocab_size} entries; the tokenizer belongs to another model"
            )));
        }
        let mut logits = Vec::new();
        let pieces = ids.len().div_ceil(PIECE_TOKENS);
        for (index, piece) in ids.chunks(PIECE_TOKENS).enumerate() {
            let vectors =
                self.forward(piece, cache).map_err(LoadError::compute("a layer of the language model"))?;
            let vectors = match wanted {
                Wanted::All => Ok(vectors),
                Wanted::Last if index + 1 == pieces => vectors.narrow(0, piece.len() - 1, 1),
                Wanted::Last => continue,
            };
            let found = vectors.and_then(|vectors| self.project(&vectors));
            logits.extend(found.map_err(LoadError::compute("the logits"))?);
        }
        if all_finite(&logits) { Ok(logits) } else { Err(LoadError::NotFinite { row: 0 }) }
    }

    /// The tokens' vectors after all layers, `[tokens, hidden]`, before the last norm.
    fn forward(&self, ids: &[u32], cache: &mut Cache) -> candle_core::Result<Tensor> {
        let (start, count) = (cache.len(), ids.len());
        let mut x = self.words.rows(&Tensor::new(ids, &self.device)?)?.to_dtype(self.dtype)?;
        let turns = self.config.rope.turns(start, count, self.dtype, &self.device)?;
        let mut views: Vec<(Option<usize>, View)> = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let known = views.iter().position(|(window, _)| *window == layer.window);
            let known = known.unwrap_or(views.len());
            if known == views.len() {
                views.push((layer.window, View::new(start, count, layer.window, &self.device)?));
            }
            x = layer.forward(&x, index, &turns, &views[known].1, cache)?;
        }
        cache.advance(count);
        Ok(x)
    }

    fn project(&self, vectors: &Tensor) -> candle_core::Result<Vec<f32>> {
        let logits = self.head.product(&self.norm.forward(vectors)?)?;
        logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
    }
}

impl Layer {
    fn load(index: usize, config: &LmConfig, tensors: &dyn Tensors) -> Result<Self, LoadError> {
        let LmConfig { hidden, intermediate, mlp_bias, .. } = *config;
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let linear = |part: &str, output, input| Linear::load(tensors, &name(part), output, input, mlp_bias);
        Ok(Self {
            attention_norm: Norm::load(tensors, &name("input_layernorm"), hidden, config)?,
            attention: Attention::load(&name("self_attn"), config, tensors)?,
            mlp_norm: Norm::load(tensors, &name("post_attention_layernorm"), hidden, config)?,
            gate: linear("mlp.gate_proj", intermediate, hidden)?,
            up: linear("mlp.up_proj", intermediate, hidden)?,
            down: linear("mlp.down_proj", hidden, intermediate)?,
            window: config.windows.get(index).copied().flatten(),
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        index: usize,
        turns: &(Tensor, Tensor),
        view: &View,
        cache: &mut Cache,
    ) -> candle_core::Result<Tensor> {
        let x = (x + self.attention.forward(&self.attention_norm.forward(x)?, index, turns, view, cache)?)?;
        let unit = self.mlp_norm.forward(&x)?;
        let inner = (self.gate.forward(&unit)?.silu()? * self.up.forward(&unit)?)?;
        x + self.down.forward(&inner)?
    }
}

//! A GGUF file as a language model: its configuration, its weights and its tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Device, Tensor};

use crate::LoadError;
use crate::lm::config::{LmConfig, check_head_size};
use crate::lm::gguf::{Gguf, Value};
use crate::lm::rope::{Pairs, Rope};
use crate::lm::tensors::{Matrix, Tensors};
use crate::weights::all_finite;

const SUPPORTED: &str = "llama (Llama, Mistral), qwen2, qwen3";

/// The single GGUF file of a folder; `None` when there is none.
pub(crate) fn find(dir: &Path) -> Result<Option<PathBuf>, LoadError> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadError::Read { path: dir.to_owned(), source }),
    };
    for entry in entries {
        let path = entry.map_err(LoadError::read(dir))?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        count => {
            let reason =
                format!("{count} GGUF files are there, {} among them: leave one", found[0].display());
            Err(LoadError::config(dir, reason))
        }
    }
}

/// Reads the metadata as the configuration of a model.
pub(crate) fn config(gguf: &Gguf) -> Result<LmConfig, LoadError> {
    let error = |reason: String| LoadError::config(&gguf.path, reason);
    let Some(Value::Text(arch)) = gguf.get("general.architecture") else {
        return Err(error("`general.architecture` is missing: which architecture is this?".to_owned()));
    };
    if !["llama", "qwen2", "qwen3"].contains(&arch.as_str()) {
        return Err(LoadError::Unsupported {
            path: gguf.path.clone(),
            what: "GGUF architecture",
            found: arch.clone(),
            supported: SUPPORTED,
        });
    }
    let key = |name: &str| format!("{arch}.{name}");
    let integer = |name: &str| match gguf.get(&key(name)) {
        Some(Value::Integer(value)) => usize::try_from(*value).ok(),
        _ => None,
    };
    let need = |name: &str| integer(name).ok_or_else(|| error(format!("`{}` is missing", key(name))));
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    if integer("expert_count").is_some_and(|count| count > 0) {
        return Err(LoadError::Unsupported {
            path: gguf.path.clone(),
            what: "GGUF architecture",
            found: format!("{arch} with experts"),
            supported: SUPPORTED,
        });
    }
    let head_size = integer("attention.key_length").unwrap_or(hidden / heads.max(1));
    if integer("attention.value_length").is_some_and(|size| size != head_size)
        || integer("rope.dimension_count").is_some_and(|size| size != head_size)
    {
        let reason = "keys and values, or the part that is turned, have another width than the heads";
        return Err(error(reason.to_owned()));
    }
    let rope = rope(gguf, arch, head_size)?;
    let num_layers = need("block_count")?;
    let vocab_size = match (integer("vocab_size"), gguf.get("tokenizer.ggml.tokens")) {
        (Some(size), _) => size,
        (None, Some(Value::List(tokens))) => tokens.len(),
        _ => return Err(error(format!("`{}` is missing", key("vocab_size")))),
    };
    // The end of a text, and the end of a turn in a conversation.
    let ends = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
    let eos = ends.iter().filter_map(|key| match gguf.get(key) {
        Some(Value::Integer(id)) => u32::try_from(*id).ok(),
        _ => None,
    });
    LmConfig {
        path: gguf.path.clone(),
        model_type: arch.clone(),
        vocab_size,
        hidden,
        num_layers,
        heads,
        kv_heads: integer("attention.head_count_kv").unwrap_or(heads),
        head_size,
        intermediate: need("feed_forward_length")?,
        rms_norm_eps: number(gguf, &key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-6),
        max_positions: need("context_length")?,
        tied: !gguf.contains("output.weight"),
        rope,
        windows: vec![integer("attention.sliding_window").filter(|size| *size > 0); num_layers.min(1 << 12)],
        qkv_bias: gguf.contains("blk.0.attn_q.bias"),
        output_bias: gguf.contains("blk.0.attn_output.bias"),
        mlp_bias: gguf.contains("blk.0.ffn_gate.bias"),
        qk_norm: arch == "qwen3",
        eos_ids: eos.collect(),
    }
    .checked()
}

/// How positions turn the heads.
fn rope(gguf: &Gguf, arch: &str, head_size: usize) -> Result<Rope, LoadError> {
    let key = |name: &str| format!("{arch}.{name}");
    let error = |reason: String| LoadError::config(&gguf.path, reason);
    let number = |name: &str| number(gguf, &key(name));
    check_head_size(head_size, &gguf.path)?;
    let theta = number("rope.freq_base").unwrap_or(10_000.0);
    if !(theta.is_finite() && theta > 0.0) {
        return Err(error(format!("`{}` is {theta}", key("rope.freq_base"))));
    }
    let mut rope = Rope::plain(head_size, theta);
    rope.pairs = if arch == "llama" { Pairs::Neighbours } else { Pairs::Halves };
    match gguf.get(&key("rope.scaling.type")) {
        None => {}
        Some(Value::Text(kind)) if kind == "none" => {}
        Some(Value::Text(kind)) if kind == "linear" => {
            let factor = number("rope.scaling.factor").filter(|factor| *factor > 0.0);
            let factor =
                factor.ok_or_else(|| error(format!("`{}` is missing", key("rope.scaling.factor"))))?;
            rope.divide_by(&vec![factor; head_size / 2]);
        }
        Some(kind) => {
            return Err(LoadError::Unsupported {
                path: gguf.path.clone(),
                what: "rope.scaling.type",
                found: format!("{kind:?}"),
                supported: "none, linear, and the factors of a tensor rope_freqs.weight",
            });
        }
    }
    // Llama 3.1's stretching of the frequencies is stored as its result.
    if gguf.contains("rope_freqs.weight") {
        let factors = gguf.read("rope_freqs.weight", &[head_size / 2], &Device::Cpu)?;
        let factors = factors.dequantize(&Device::Cpu).and_then(|factors| factors.to_vec1::<f32>());
        let factors = factors.map_err(LoadError::compute("the factors of the rotary positions"))?;
        if factors.iter().any(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return Err(LoadError::Tensor {
                path: gguf.path.clone(),
                tensor: "rope_freqs.weight".to_owned(),
                reason: "holds a factor that is not above 0: the model is broken, fetch it again".to_owned(),
            });
        }
        rope.divide_by(&factors);
    }
    Ok(rope)
}

fn number(gguf: &Gguf, key: &str) -> Option<f32> {
    match gguf.get(key) {
        #[expect(clippy::cast_possible_truncation, reason = "stored as float32")]
        Some(Value::Float(value)) => Some(*value as f32),
        _ => None,
    }
}

/// A GGUF file's tensors, under the names that transformers has for them.
pub(crate) struct GgufTensors<'a> {
    pub gguf: &'a Gguf,
    /// The precision of norms and biases, and of the products if their blocks are unpacked.
    pub dtype: DType,
    pub unpack: bool,
    pub device: Device,
}

/// Rows that are unpacked at a time to look at them.
const ROWS_CHECKED: usize = 1024;

impl GgufTensors<'_> {
    /// Looks at every number of a tensor that stays in blocks, which takes no more memory than some of its rows.
    fn check_blocks(&self, blocks: &QTensor, name: &str, rows: usize) -> Result<(), LoadError> {
        let failed = || LoadError::compute("a tensor of a GGUF file");
        for first in (0..rows).step_by(ROWS_CHECKED) {
            let last = rows.min(first + ROWS_CHECKED);
            let ids = (first..last).map(|row| u32::try_from(row).unwrap_or(u32::MAX)).collect::<Vec<_>>();
            let ids = Tensor::new(ids, &self.device).map_err(failed())?;
            let part = blocks.embedding(&ids).and_then(|part| part.flatten_all()?.to_vec1::<f32>());
            if !all_finite(&part.map_err(failed())?) {
                return Err(self.broken(gguf_name(name)));
            }
        }
        Ok(())
    }

    fn broken(&self, tensor: String) -> LoadError {
        LoadError::Tensor {
            path: self.gguf.path.clone(),
            tensor,
            reason: "holds NaN or infinity: the model is broken, fetch it again".to_owned(),
        }
    }

    fn unpacked(&self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let name = gguf_name(name);
        let blocks = self.gguf.read(&name, shape, &Device::Cpu)?;
        let failed = || LoadError::compute("a tensor of a GGUF file");
        let values = blocks.dequantize(&Device::Cpu).map_err(failed())?;
        let numbers = values.flatten_all().and_then(|values| values.to_vec1::<f32>()).map_err(failed())?;
        if !all_finite(&numbers) {
            return Err(self.broken(name));
        }
        values.to_dtype(self.dtype).and_then(|values| values.to_device(&self.device)).map_err(failed())
    }
}

impl Tensors for GgufTensors<'_> {
    fn matrix(&self, name: &str, output: usize, input: usize) -> Result<Matrix, LoadError> {
        if self.unpack || self.gguf.is_plain(&gguf_name(name)) {
            return self.unpacked(name, &[output, input]).map(Matrix::Dense);
        }
        let blocks = Arc::new(self.gguf.read(&gguf_name(name), &[output, input], &self.device)?);
        self.check_blocks(&blocks, name, output)?;
        let product = QMatMul::from_arc(Arc::clone(&blocks));
        Ok(Matrix::Blocks(blocks, product.map_err(LoadError::compute("a tensor of a GGUF file"))?))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Tensor, LoadError> {
        self.unpacked(name, &[len])
    }

    fn finish(&self) -> Result<(), LoadError> {
        Ok(())
    }
}

/// `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight` in a GGUF file.
fn gguf_name(name: &str) -> String {
    const PARTS: [(&str, &str); 14] = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    PARTS.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated() {
        let check = |name: &str, expected: &str| assert_eq!(gguf_name(name), expected);
        check("model.embed_tokens.weight", "token_embd.weight");
        check("model.layers.11.self_attn.o_proj.weight", "blk.11.attn_output.weight");
        check("model.layers.0.self_attn.q_norm.weight", "blk.0.attn_q_norm.weight");
        check("model.layers.3.mlp.gate_proj.bias", "blk.3.ffn_gate.bias");
        check("model.layers.3.input_layernorm.weight", "blk.3.attn_norm.weight");
        check("model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight");
        check("model.norm.weight", "output_norm.weight");
        check("lm_head.weight", "output.weight");
    }
}

//! LoRA adapters, merged into the weights as they are read: in float32, a block of rows at a time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Tensor};

use crate::LoadError;
use crate::lm::adapter_config::{AdapterConfig, Biases};
use crate::lm::config::LmConfig;
use crate::weights::Weights;

/// What peft puts before the names of the model's own modules.
const PREFIX: &str = "base_model.model.";
const EMBEDDING: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";
/// The change of this many rows is in memory at once.
const BLOCK_ROWS: usize = 1024;

/// An adapter's settings and weights.
#[derive(Debug)]
pub(crate) struct Adapter {
    config: AdapterConfig,
    path: PathBuf,
    weights: Weights,
    /// The adapter's tensors that no weight has asked for yet.
    unused: Mutex<BTreeSet<String>>,
}

/// The end of an adapter tensor's name, which says what it is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    LowRank,
    Weight,
    Bias,
}

impl Adapter {
    /// Opens an adapter's folder for a model. `config` is untied when the adapter brings both an embedding and an output
    /// product of its own.
    pub(crate) fn open(dir: &Path, config: &mut LmConfig) -> Result<Self, LoadError> {
        let settings = AdapterConfig::from_dir(dir)?;
        let path = dir.join("adapter_model.safetensors");
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            return Err(LoadError::Pickle { path: dir.join("adapter_model.bin") });
        }
        let weights = Weights::open_file(&path, "peft writes it beside adapter_config.json")?;
        let unused = weights.names().collect::<BTreeSet<_>>();
        let adapter = Self { config: settings, path, weights, unused: Mutex::default() };
        let targeted = modules(config).map(|module| adapter.config.targets(&module));
        if !targeted.collect::<Result<Vec<_>, _>>()?.contains(&true) {
            let reason = "`target_modules` names no module of this model: the adapter belongs to another";
            return Err(LoadError::config(&adapter.config.path, reason));
        }
        for name in &unused {
            adapter.check_name(name)?;
        }
        adapter.untie(config, &unused)?;
        *adapter.unused.lock().unwrap_or_else(PoisonError::into_inner) = unused;
        Ok(adapter)
    }

    /// An error unless the settings explain the tensor.
    fn check_name(&self, name: &str) -> Result<(), LoadError> {
        let explained = match parse(name) {
            None => false,
            Some((module, Role::LowRank)) => self.config.targets(module)?,
            Some((module, Role::Bias)) => match self.config.biases() {
                Biases::All => true,
                Biases::LoraOnly => self.config.targets(module)? || self.config.saves(module),
                Biases::None => self.config.saves(module),
            },
            // peft adds the embeddings by itself when it is asked to change them.
            Some((module, Role::Weight)) => self.config.saves(module) || [EMBEDDING, HEAD].contains(&module),
        };
        if explained {
            return Ok(());
        }
        Err(self
            .error(name, "is not explained by adapter_config.json (target_modules, modules_to_save, bias)"))
    }

    /// A tied model has one embedding for both ends; what an adapter of one end means for the other is not known.
    fn untie(&self, config: &mut LmConfig, names: &BTreeSet<String>) -> Result<(), LoadError> {
        let of = |module: &str, role: Role| names.iter().any(|name| parse(name) == Some((module, role)));
        let touched =
            [EMBEDDING, HEAD].map(|module| [Role::LowRank, Role::Weight].map(|role| of(module, role)));
        if !config.tied || touched == [[false; 2]; 2] {
            return Ok(());
        }
        if touched == [[false, true]; 2] {
            config.tied = false;
            return Ok(());
        }
        Err(LoadError::Unsupported {
            path: self.path.clone(),
            what: "the change of a tied embedding",
            found: "embed_tokens or lm_head alone".to_owned(),
            supported: "both in modules_to_save, or neither",
        })
    }

    /// The adapter's own tensor in the place of the model's, where it has one.
    pub(crate) fn replace(&self, name: &str, shape: &[usize], out: &mut Vec<f32>) -> Result<bool, LoadError> {
        let Some((module, part)) = name.rsplit_once('.') else { return Ok(false) };
        let names = [format!("{PREFIX}{module}.base_layer.{part}"), format!("{PREFIX}{name}")];
        let Some(own) = names.iter().find(|name| self.weights.contains(name)) else {
            if self.config.saves(module) {
                return Err(self.error(&names[1], "is missing: modules_to_save names its module"));
            }
            return Ok(false);
        };
        self.read(own, shape, out)?;
        Ok(true)
    }

    /// Adds the low-rank change of a weight, `[output, input]`, where the adapter has one.
    pub(crate) fn merge(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<(), LoadError> {
        let (Some(module), [rows, columns]) = (name.strip_suffix(".weight"), shape) else { return Ok(()) };
        if !self.config.targets(module)? {
            return Ok(());
        }
        let (rows, columns, rank) = (*rows, *columns, self.config.rank(module)?);
        let failed = || LoadError::compute("the merge of an adapter");
        let part = |part: &str, shape: (usize, usize)| {
            let mut out = Vec::new();
            self.read(&format!("{PREFIX}{module}.{part}"), &[shape.0, shape.1], &mut out)?;
            Tensor::from_vec(out, shape, &Device::Cpu).map_err(failed())
        };
        // The change is `left · right`, `[rows, rank] · [rank, columns]`. An embedding looks its first matrix up by token.
        let is_embedding = module == EMBEDDING;
        let (left, right) = if is_embedding {
            let (a, b) =
                (part("lora_embedding_A", (rank, rows))?, part("lora_embedding_B", (columns, rank))?);
            let turned = || Ok((a.t()?.contiguous()?, b.t()?.contiguous()?));
            turned().map_err(failed())?
        } else {
            (part("lora_B.weight", (rows, rank))?, part("lora_A.weight", (rank, columns))?)
        };
        let scale = self.config.scale(module)?;
        for (index, block) in values.chunks_mut(BLOCK_ROWS * columns).enumerate() {
            let count = block.len() / columns;
            let change = || {
                let left = left.narrow(0, index * BLOCK_ROWS, count)?;
                left.matmul(&right)?.flatten_all()?.to_vec1::<f32>()
            };
            let change = change().map_err(failed())?;
            block.iter_mut().zip(change).for_each(|(value, change)| *value += scale * change);
        }
        if self.config.dora() {
            self.set_magnitudes(module, is_embedding, columns, values)?;
        }
        Ok(())
    }

    /// `DoRA`: each output of a product, or each column of an embedding, gets the length that was learned for it.
    fn set_magnitudes(
        &self,
        module: &str,
        by_column: bool,
        columns: usize,
        values: &mut [f32],
    ) -> Result<(), LoadError> {
        let mut name = format!("{PREFIX}{module}.lora_magnitude_vector");
        if !self.weights.contains(&name) {
            name.push_str(".weight");
        }
        let mut lengths = Vec::new();
        let count = if by_column { columns } else { values.len() / columns };
        self.read(&name, &[count], &mut lengths)?;
        let factor = |wanted: f32, squares: f64| match squares.sqrt() {
            length if length > 0.0 => Ok(f64::from(wanted) / length),
            _ => Err(self.error(&name, "has a length for numbers that are all 0")),
        };
        let square = |value: &f32| f64::from(*value) * f64::from(*value);
        #[expect(clippy::cast_possible_truncation, reason = "the weights are float32")]
        let scaled = |value: f32, factor: f64| (f64::from(value) * factor) as f32;
        if by_column {
            let mut squares = vec![0.0; columns];
            for row in values.chunks(columns) {
                squares.iter_mut().zip(row).for_each(|(sum, value)| *sum += square(value));
            }
            let factors = lengths.iter().zip(squares).map(|(wanted, squares)| factor(*wanted, squares));
            let factors = factors.collect::<Result<Vec<_>, _>>()?;
            for row in values.chunks_mut(columns) {
                row.iter_mut().zip(&factors).for_each(|(value, factor)| *value = scaled(*value, *factor));
            }
        } else {
            for (row, wanted) in values.chunks_mut(columns).zip(lengths) {
                let factor = factor(wanted, row.iter().map(square).sum())?;
                for value in row {
                    *value = scaled(*value, factor);
                }
            }
        }
        Ok(())
    }

    /// An error that names a tensor of the adapter which changed nothing.
    pub(crate) fn all_used(&self) -> Result<(), LoadError> {
        match self.unused.lock().unwrap_or_else(PoisonError::into_inner).first() {
            Some(name) => {
                Err(self.error(name, "changes nothing in this model: the adapter belongs to another"))
            }
            None => Ok(()),
        }
    }

    fn read(&self, name: &str, shape: &[usize], out: &mut Vec<f32>) -> Result<(), LoadError> {
        self.weights.read(name, shape, out)?;
        self.unused.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }

    fn error(&self, tensor: &str, reason: &str) -> LoadError {
        LoadError::Tensor { path: self.path.clone(), tensor: tensor.to_owned(), reason: reason.to_owned() }
    }
}

/// The modules with a matrix, as peft names them.
fn modules(config: &LmConfig) -> impl Iterator<Item = String> {
    const PARTS: [&str; 7] = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    let layer = |index| PARTS.iter().map(move |part| format!("model.layers.{index}.{part}"));
    [EMBEDDING.to_owned(), HEAD.to_owned()].into_iter().chain((0..config.num_layers).flat_map(layer))
}

/// A tensor's module and what it is to it.
fn parse(name: &str) -> Option<(&str, Role)> {
    const ENDS: [(&str, Role); 10] = [
        (".lora_A.weight", Role::LowRank),
        (".lora_B.weight", Role::LowRank),
        (".lora_embedding_A", Role::LowRank),
        (".lora_embedding_B", Role::LowRank),
        (".lora_magnitude_vector", Role::LowRank),
        (".lora_magnitude_vector.weight", Role::LowRank),
        (".base_layer.weight", Role::Weight),
        (".base_layer.bias", Role::Bias),
        (".weight", Role::Weight),
        (".bias", Role::Bias),
    ];
    let name = name.strip_prefix(PREFIX)?;
    ENDS.iter().find_map(|(end, role)| Some((name.strip_suffix(end)?, *role)))
}

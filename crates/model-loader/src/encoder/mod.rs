//! Encoders: tokens to a vector for each.
//!
//! Every family is one description, [`Model`]: embeddings, then layers of attention and feed-forward. [`families`] reads
//! a checkpoint into it; what a product or a norm is follows from what will run it, the own kernels ([`native`]) or
//! candle ([`on_candle`]). Texts are run one after another without padding.

use std::path::Path;

use cpu_kernels::Arithmetic;
use rayon::prelude::*;

use crate::batch::{CPU_TOKENS, GPU_TOKENS, groups, rectangles};
use crate::ragged::{Ragged, Rows};
use crate::weights::Weights;
use crate::{Backend, LoadError, LoadOptions, ModelConfig, TokenBatch, Tokens};

pub(crate) mod embeddings;
pub(crate) mod families;
mod fixed16;
pub(crate) mod head;
mod native;
mod on_candle;
mod places;

pub(crate) use families::Model;

/// A loaded encoder.
#[derive(Debug)]
pub struct Encoder {
    config: ModelConfig,
    runner: Runner,
}

#[derive(Debug)]
enum Runner {
    Cpu(Model<native::Kernels>, Arithmetic),
    Candle(Model<on_candle::Candle>),
}

/// A vector for every token of a batch: `[rows, seq, width]`, row-major. Those of padding are 0.
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

impl Encoder {
    /// Loads the encoder from `config.json` and the safetensors in `dir`, for the CPU.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, LoadError> {
        Self::from_dir_with(dir, &LoadOptions::default())
    }

    /// [`from_dir`](Self::from_dir) for another backend or device.
    pub fn from_dir_with(dir: impl AsRef<Path>, options: &LoadOptions) -> Result<Self, LoadError> {
        let config = ModelConfig::from_dir(&dir)?;
        Self::load(config, &Weights::open(dir.as_ref())?, options)
    }

    pub(crate) fn load(
        config: ModelConfig,
        weights: &Weights,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let backend = options.backend;
        let device = if matches!(backend, Backend::Cpu | Backend::CpuFixed16) {
            options.require_cpu()?;
            candle_core::Device::Cpu
        } else {
            options.candle_device()?
        };
        let runner = if backend == Backend::Candle || !device.is_cpu() {
            Runner::Candle(families::load(&config, weights, &on_candle::Candle { device })?)
        } else {
            Runner::Cpu(families::load(&config, weights, &native::Kernels)?, Arithmetic::Float32)
        };
        let mut encoder = Self { config, runner };
        if backend == Backend::CpuFixed16 {
            fixed16::require()?;
            encoder.convert();
        }
        Ok(encoder)
    }

    /// What the model is.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What computes it.
    #[must_use]
    pub fn backend(&self) -> Backend {
        match self.runner {
            Runner::Cpu(_, Arithmetic::Float32) => Backend::Cpu,
            Runner::Cpu(_, Arithmetic::Fixed16) => Backend::CpuFixed16,
            Runner::Candle(_) => Backend::Candle,
        }
    }

    /// Runs the encoder on a padded batch: the last layer's vectors, as transformers gives them. How much padding follows
    /// a text does not change them beyond float noise; padding before it moves its learned positions.
    pub fn forward(&self, batch: &TokenBatch) -> Result<Hidden, LoadError> {
        let (rows, seq, width) = (batch.rows(), batch.seq(), self.config.hidden);
        let mut values = vec![0.0; rows * seq * width];
        let found = self.map_batch(batch, |_, vectors| Ok(vectors.to_vec()))?;
        for (row, vectors) in found.iter().enumerate() {
            let places = (0..seq).filter(|index| batch.mask()[row * seq + index] == 1);
            for (index, vector) in places.zip(vectors.chunks_exact(width)) {
                values[(row * seq + index) * width..][..width].copy_from_slice(vector);
            }
        }
        Ok(Hidden { rows, seq, width, values })
    }

    /// [`map_texts`](Self::map_texts) for the rows of a padded batch.
    pub(crate) fn map_batch<T: Send>(
        &self,
        batch: &TokenBatch,
        f: impl Fn(usize, &[f32]) -> Result<T, LoadError> + Sync,
    ) -> Result<Vec<T>, LoadError> {
        let rows: Vec<Rows> = (0..batch.rows()).map(|row| Rows::of_batch(batch, row, &self.config)).collect();
        self.map(&rows, f)
    }

    /// Runs the encoder on each text and gives `f` the text's index and its vectors, `[tokens, width]`. Texts of like
    /// length run together, on every core; which do changes no vector beyond float noise.
    pub(crate) fn map_texts<T: Send>(
        &self,
        texts: &[Tokens],
        f: impl Fn(usize, &[f32]) -> Result<T, LoadError> + Sync,
    ) -> Result<Vec<T>, LoadError> {
        let rows: Vec<Rows> = texts.iter().map(|text| Rows::of_text(text, &self.config)).collect();
        self.map(&rows, f)
    }

    fn map<T: Send>(
        &self,
        texts: &[Rows],
        f: impl Fn(usize, &[f32]) -> Result<T, LoadError> + Sync,
    ) -> Result<Vec<T>, LoadError> {
        for text in texts {
            text.check(&self.config)?;
        }
        let lengths: Vec<usize> = texts.iter().map(Rows::len).collect();
        let run = |group: &Vec<usize>, workers: usize| {
            let texts: Vec<&Rows> = group.iter().map(|index| &texts[*index]).collect();
            let ragged = self.run(&texts, workers)?;
            let results = group.iter().enumerate().map(|(at, index)| f(*index, ragged.text(at)));
            Ok(group.iter().copied().zip(results.collect::<Result<Vec<_>, _>>()?).collect::<Vec<_>>())
        };
        let workers = rayon::current_num_threads();
        let found: Vec<Vec<(usize, T)>> = match &self.runner {
            // A core to a group; one group alone gets them all.
            Runner::Cpu(..) => {
                let groups = groups(&lengths, workers);
                match &groups[..] {
                    [only] => vec![run(only, workers)?],
                    many => many
                        .par_iter()
                        .with_max_len(1)
                        .map(|group| run(group, 1))
                        .collect::<Result<_, LoadError>>()?,
                }
            }
            Runner::Candle(model) => {
                let tokens = if on_candle::device(model).is_cpu() { CPU_TOKENS } else { GPU_TOKENS };
                let groups = rectangles(&lengths, tokens);
                groups.iter().map(|group| run(group, 1)).collect::<Result<_, LoadError>>()?
            }
        };
        let mut sorted: Vec<Option<T>> = texts.iter().map(|_| None).collect();
        for (index, value) in found.into_iter().flatten() {
            sorted[index] = Some(value);
        }
        Ok(sorted.into_iter().flatten().collect())
    }

    fn run(&self, texts: &[&Rows], workers: usize) -> Result<Ragged, LoadError> {
        match &self.runner {
            Runner::Cpu(model, _) => Ok(native::forward(model, texts, workers)),
            Runner::Candle(model) => {
                on_candle::forward(model, texts).map_err(LoadError::compute("the encoder"))
            }
        }
    }
}

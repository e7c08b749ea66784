//! What computes a model, and on which device.

use std::fmt;
use std::str::FromStr;

use crate::LoadError;

/// What computes a model's vectors or logits. All give the same numbers within float noise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The fastest that is there, by what was measured (docs/benchmarks.md): on the CPU this crate's own kernels, on a GPU
    /// candle. What it became is logged, and can be asked for after loading.
    #[default]
    Auto,
    /// This crate's own float32 kernels on the CPU.
    Cpu,
    /// candle's, on the CPU or, with the feature `cuda`, on a GPU.
    Candle,
    /// ONNX Runtime on the folder's `model.onnx`, with the feature `onnxruntime`; the library is found at run time.
    OnnxRuntime,
}

impl Backend {
    /// Its name, as logs and command lines have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Candle => "candle",
            Self::OnnxRuntime => "onnxruntime",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let all = [Self::Auto, Self::Cpu, Self::Candle, Self::OnnxRuntime];
        all.into_iter().find(|backend| backend.name() == text).ok_or_else(|| LoadError::Name {
            name: text.to_owned(),
            kind: "backend",
            reason: "write `auto`, `cpu`, `candle` or `onnxruntime`",
        })
    }
}

/// Where a model is computed: `cpu`, or `cuda:0` and so on (`cuda` is the first).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for Device {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let gpu = || match text.strip_prefix("cuda")? {
            "" => Some(0),
            index => index.strip_prefix(':')?.parse().ok(),
        };
        if text == "cpu" {
            return Ok(Self::Cpu);
        }
        gpu().map(Self::Cuda).ok_or_else(|| LoadError::Name {
            name: text.to_owned(),
            kind: "device",
            reason: "write `cpu`, `cuda` or `cuda:<number>`",
        })
    }
}

/// How to load a model that has been found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct LoadOptions {
    /// What computes it.
    pub backend: Backend,
    /// Where.
    pub device: Device,
    /// Whether the CPU may take the place of a GPU that is not there; without this, its absence is an error.
    pub cpu_fallback: bool,
}

impl LoadOptions {
    /// For what computes on the CPU only: an error if a GPU was asked for, unless the CPU may take its place.
    pub(crate) fn require_cpu(&self) -> Result<(), LoadError> {
        match self.device {
            Device::Cpu => Ok(()),
            Device::Cuda(_) if self.cpu_fallback => {
                tracing::warn!(device = %self.device, backend = %self.backend, "computing on the CPU");
                Ok(())
            }
            Device::Cuda(_) => {
                let reason =
                    format!("for this model it computes on the CPU, and {} was asked for", self.device);
                Err(LoadError::Backend { backend: self.backend, reason })
            }
        }
    }

    /// candle's device: the one asked for, or the CPU where that is allowed.
    pub(crate) fn candle_device(&self) -> Result<candle_core::Device, LoadError> {
        let Device::Cuda(index) = self.device else { return Ok(candle_core::Device::Cpu) };
        match candle_core::Device::new_cuda(index) {
            Ok(device) => Ok(device),
            Err(error) if self.cpu_fallback => {
                tracing::warn!(device = %self.device, cause = %error, "no such device; computing on the CPU");
                Ok(candle_core::Device::Cpu)
            }
            Err(source) => Err(LoadError::NoDevice { device: self.device, source }),
        }
    }
}

//! What computes a model, and on which device.

use std::fmt;
use std::str::FromStr;

use crate::LoadError;

/// What computes a model's vectors or logits. All give the same numbers within float noise, and
/// [`CpuFixed16`](Self::CpuFixed16) within a noise of its own that is far below the 0.99999 of exact embeddings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// The fastest that is there: on the CPU this crate's own kernels (docs/benchmarks.md), on a GPU the version's TensorRT
    /// engine, if the feature `tensorrt` and an engine for that GPU are there, else candle. What it became is logged, and
    /// can be asked for after loading.
    ///
    /// For a sentence embedder on a CPU with AVX2 and no AVX-512 it becomes [`CpuFixed16`](Self::CpuFixed16) if that gives, for
    /// texts that are tried while the model is loaded, what [`Cpu`](Self::Cpu) gives: each component within 10⁻⁴, the cosine at
    /// least 0.999999. Else, and for all other models, it becomes `Cpu`.
    #[default]
    Auto,
    /// This crate's own kernels on the CPU, in float32.
    Cpu,
    /// The same, with an encoder's products in block fixed point, [`cpu_kernels::Arithmetic::Fixed16`]; it takes AVX2.
    CpuFixed16,
    /// candle's, on the CPU or, with the feature `cuda`, on a GPU.
    Candle,
    /// ONNX Runtime on the folder's `model.onnx`, with the feature `onnxruntime`; the library is found at run time.
    OnnxRuntime,
    /// TensorRT on the version's engine, with the feature `tensorrt`; the library is found at run time. It computes on the
    /// GPU asked for, and on the first where none was. Texts are cut at the longest sequence that the engine takes.
    TensorRt,
}

impl Backend {
    /// Its name, as logs and command lines have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::CpuFixed16 => "cpu-fixed16",
            Self::Candle => "candle",
            Self::OnnxRuntime => "onnxruntime",
            Self::TensorRt => "tensorrt",
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
        use Backend::{Auto, Candle, Cpu, CpuFixed16, OnnxRuntime, TensorRt};
        let all = [Auto, Cpu, CpuFixed16, Candle, OnnxRuntime, TensorRt];
        all.into_iter().find(|backend| backend.name() == text).ok_or_else(|| LoadError::Name {
            name: text.to_owned(),
            kind: "backend",
            reason: "write `auto`, `cpu`, `cpu-fixed16`, `candle`, `onnxruntime` or `tensorrt`",
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
    /// What `load` loads, where an engine is asked for, or nobody said what computes on a GPU. In the latter case, and
    /// where the CPU may take the place of a GPU, an engine that cannot be used is passed over, and the log says why.
    #[cfg(feature = "tensorrt")]
    pub(crate) fn in_tensorrt<T>(
        &self,
        load: impl FnOnce() -> Result<T, LoadError>,
    ) -> Result<Option<T>, LoadError> {
        let asked = match (self.backend, self.device) {
            (Backend::TensorRt, _) => true,
            (Backend::Auto, Device::Cuda(_)) => false,
            _ => return Ok(None),
        };
        match load() {
            Ok(loaded) => Ok(Some(loaded)),
            Err(LoadError::Backend { backend: Backend::TensorRt, reason }) if !asked => {
                tracing::info!(device = %self.device, reason, "no TensorRT engine is used");
                Ok(None)
            }
            Err(LoadError::Backend { backend: Backend::TensorRt, reason }) if self.cpu_fallback => {
                tracing::warn!(device = %self.device, reason, "TensorRT was asked for and cannot be used");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// An error for a backend that this program was built without.
    pub(crate) fn require_built(&self) -> Result<(), LoadError> {
        let missing = match self.backend {
            Backend::OnnxRuntime if !cfg!(feature = "onnxruntime") => "onnxruntime",
            Backend::TensorRt if !cfg!(feature = "tensorrt") => "tensorrt",
            _ => return Ok(()),
        };
        let reason = format!("this program was built without the feature `{missing}`");
        Err(LoadError::Backend { backend: self.backend, reason })
    }

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

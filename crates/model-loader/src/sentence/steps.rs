//! What a sentence embedder does with a pooled vector: `Dense`, `LayerNorm`, `Normalize`.

use std::path::Path;

use cpu_kernels::{Activation, Norm, Packed, linear};
use serde::Deserialize;

use crate::LoadError;
use crate::classify::sigmoid;
use crate::encoder::families::{Bias, Scope};
use crate::files::read_json;
use crate::pooling::normalize;
use crate::weights::Weights;

/// The kinds of module that follow the pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Dense,
    LayerNorm,
    Normalize,
}

/// One of them, loaded.
#[derive(Debug)]
pub(super) enum Step {
    Dense { layer: Packed, activation: DenseActivation },
    LayerNorm(Norm),
    Normalize,
}

/// What follows a `Dense` module's product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DenseActivation {
    Sigmoid,
    Other(Activation),
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

#[derive(Deserialize)]
struct LayerNormConfig {
    dimension: usize,
}

fn yes() -> bool {
    true
}

impl Kind {
    /// The kind of a module class, by its own name.
    pub(super) fn of(class: &str) -> Option<Self> {
        Some(match class {
            "Dense" => Self::Dense,
            "LayerNorm" => Self::LayerNorm,
            "Normalize" => Self::Normalize,
            _ => return None,
        })
    }
}

impl Step {
    /// Loads one module for vectors of length `width`.
    pub(super) fn load(kind: Kind, folder: &Path, width: usize) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        let fits = |found: usize| match found {
            _ if found == width => Ok(()),
            _ => Err(LoadError::config(
                &path,
                format!("it takes vectors of length {found} where it gets {width}"),
            )),
        };
        Ok(match kind {
            Kind::Normalize => Self::Normalize,
            Kind::LayerNorm => {
                let LayerNormConfig { dimension } = required(&path)?;
                fits(dimension)?;
                // torch.nn.LayerNorm's default, which the module does not change.
                let scope = Scope { weights: &Weights::open(folder)?, prefix: "", eps: 1e-5 };
                Self::LayerNorm(scope.norm("norm", width)?)
            }
            Kind::Dense => {
                let config: DenseConfig = required(&path)?;
                fits(config.in_features)?;
                if config.out_features == 0 {
                    return Err(LoadError::config(&path, "`out_features` is 0"));
                }
                for (what, name) in [
                    ("module_input_name", config.module_input_name),
                    ("module_output_name", config.module_output_name),
                ] {
                    if let Some(found) = name.filter(|name| name != "sentence_embedding") {
                        let supported = "sentence_embedding";
                        return Err(LoadError::Unsupported { path, what, found, supported });
                    }
                }
                let activation = DenseActivation::of(config.activation_function, &path)?;
                let scope = Scope { weights: &Weights::open(folder)?, prefix: "", eps: 0.0 };
                let has_bias = if config.bias { Bias::Own } else { Bias::None };
                let (weight, bias) = scope.linear(&["linear"], width, config.out_features, has_bias)?;
                Self::Dense { layer: Packed::new(&weight, &bias, width), activation }
            }
        })
    }

    /// Length of its result, for vectors of length `width`.
    pub(super) fn width(&self, width: usize) -> usize {
        match self {
            Self::Dense { layer, .. } => layer.outputs(),
            Self::LayerNorm(_) | Self::Normalize => width,
        }
    }

    /// Does it.
    pub(super) fn apply(&self, vector: &mut Vec<f32>) {
        match self {
            Self::Normalize => normalize(vector),
            Self::LayerNorm(norm) => norm.apply(vector),
            Self::Dense { layer, activation } => {
                let (activation, is_sigmoid) = match activation {
                    DenseActivation::Sigmoid => (Activation::Identity, true),
                    DenseActivation::Other(activation) => (*activation, false),
                };
                let mut out = vec![0.0; layer.outputs()];
                linear(vector, layer, activation, &mut out);
                if is_sigmoid {
                    for x in &mut out {
                        *x = sigmoid(*x);
                    }
                }
                *vector = out;
            }
        }
    }
}

impl DenseActivation {
    /// By the name of torch's class. Without one it is tanh.
    fn of(name: Option<String>, path: &Path) -> Result<Self, LoadError> {
        let Some(name) = name else { return Ok(Self::Other(Activation::Tanh)) };
        let class = name.strip_prefix("torch.nn.").and_then(|name| name.rsplit('.').next());
        Ok(match class {
            Some("Identity") => Self::Other(Activation::Identity),
            Some("Sigmoid") => Self::Sigmoid,
            Some("Tanh") => Self::Other(Activation::Tanh),
            Some("ReLU") => Self::Other(Activation::Relu),
            Some("GELU") => Self::Other(Activation::Gelu),
            Some("SiLU") => Self::Other(Activation::Silu),
            _ => {
                return Err(LoadError::Unsupported {
                    path: path.to_owned(),
                    what: "activation_function",
                    found: name,
                    supported: "torch.nn's Identity, Tanh, Sigmoid, ReLU, GELU, SiLU",
                });
            }
        })
    }
}

fn required<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    read_json(path)?.ok_or_else(|| LoadError::Missing {
        path: path.to_owned(),
        next: "modules.json names a module, and this says what it is".to_owned(),
    })
}

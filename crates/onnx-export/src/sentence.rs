//! `modules.json` of a sentence-transformers folder: where the encoder lies, how its vectors are pooled, and what is then
//! done with them.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, read_json};
use crate::graph::{Graph, Value};
use crate::ops::{Activation, Bias};
use crate::{DataType, ExportError, Pooling, SentenceHead};

/// The modules that can be written into a graph.
const SUPPORTED: &str =
    "Transformer, Pooling, Dense, LayerNorm, Normalize, Dropout (which does nothing here)";
/// `torch.nn.LayerNorm`'s default, which the module does not change.
const LAYER_NORM_EPSILON: f32 = 1e-5;

/// What is done with a pooled vector. Modules with weights are named by their folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SentenceStep {
    /// A product, a bias where there is one, and a function of each component.
    Dense {
        /// The module's folder.
        module: String,
        /// Length of the vectors it takes.
        inputs: usize,
        /// Length of the vectors it gives.
        outputs: usize,
        /// Whether it has a bias.
        bias: bool,
        /// The function.
        activation: StepActivation,
    },
    /// Layer normalisation.
    LayerNorm {
        /// The module's folder.
        module: String,
    },
    /// Division by the Euclidean length (at least 1e-12).
    Normalize,
}

/// What follows a [`SentenceStep::Dense`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepActivation {
    /// Nothing.
    Identity,
    /// `tanh(x)`, which is the module's default.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `max(x, 0)`.
    Relu,
    /// `x/2 · (1 + erf(x/√2))`.
    Gelu,
    /// `x · sigmoid(x)`.
    Silu,
}

/// An entry of `modules.json`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Module {
    /// Its folder; empty for the folder itself.
    pub(crate) path: String,
    #[serde(rename = "type")]
    class: String,
}

impl Module {
    /// Its class without the package, which moved over the years.
    pub(crate) fn class(&self) -> &str {
        self.class.rsplit('.').next().unwrap_or_default()
    }
}

/// Reads `modules.json` of a folder; `None` without one.
pub(crate) fn modules(folder: &Path) -> Result<Option<Vec<Module>>, ExportError> {
    let path = folder.join("modules.json");
    if !path.exists() {
        return Ok(None);
    }
    let wrong = |reason: String| ExportError::Config { path: path.clone(), reason };
    let modules: Vec<Module> =
        serde_json::from_value(read_json(&path)?).map_err(|error| wrong(error.to_string()))?;
    let outside = |module: &&Module| {
        !Path::new(&module.path).components().all(|part| matches!(part, Component::Normal(_)))
    };
    if let Some(module) = modules.iter().find(outside) {
        return Err(wrong(format!("the module path {:?} leaves the model's folder", module.path)));
    }
    Ok(Some(modules))
}

/// The older schema has a flag per mode, the newer one names them.
#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the flags of a file format")]
struct PoolingConfig {
    #[serde(rename = "pooling_mode")]
    named: Option<Words>,
    #[serde(default, rename = "pooling_mode_cls_token")]
    cls: bool,
    #[serde(default, rename = "pooling_mode_max_tokens")]
    max: bool,
    #[serde(default, rename = "pooling_mode_mean_tokens")]
    mean: bool,
    #[serde(default, rename = "pooling_mode_mean_sqrt_len_tokens")]
    mean_sqrt_len: bool,
    #[serde(default, rename = "pooling_mode_weightedmean_tokens")]
    weighted_mean: bool,
    #[serde(default, rename = "pooling_mode_lasttoken")]
    last_token: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
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

fn yes() -> bool {
    true
}

impl SentenceHead {
    /// What `modules.json` beside a checkpoint asks for; `None` without one. A module that cannot be written into a graph
    /// is an error that names it.
    pub fn read(checkpoint: &Checkpoint) -> Result<Option<Self>, ExportError> {
        let Some(modules) = modules(checkpoint.folder())? else { return Ok(None) };
        let path = checkpoint.folder().join("modules.json");
        let mut head = Self { pooling: Vec::new(), normalize: false, steps: Vec::new() };
        let mut is_encoded = false;
        for module in &modules {
            let is_pooled = !head.pooling.is_empty();
            let in_order = match module.class() {
                "Transformer" => !std::mem::replace(&mut is_encoded, true),
                "Pooling" => {
                    let fits = is_encoded && !is_pooled;
                    head.pooling = pooling(&checkpoint.folder().join(&module.path).join("config.json"))?;
                    fits
                }
                "Dropout" => is_pooled,
                "Dense" => {
                    head.steps.push(dense(checkpoint, &module.path)?);
                    is_pooled
                }
                "LayerNorm" => {
                    require_weights(checkpoint, &module.path, "norm.weight")?;
                    head.steps.push(SentenceStep::LayerNorm { module: module.path.clone() });
                    is_pooled
                }
                "Normalize" => {
                    head.steps.push(SentenceStep::Normalize);
                    is_pooled
                }
                other => {
                    let (what, supported) = (format!("the module {other:?}"), SUPPORTED.to_owned());
                    return Err(ExportError::Unsupported { path, what, supported });
                }
            };
            if !in_order {
                let reason = format!(
                    "{:?} comes twice or out of order (Transformer, Pooling, then the others)",
                    module.class()
                );
                return Err(ExportError::Config { path, reason });
            }
        }
        if head.pooling.is_empty() {
            let reason = "it names no Pooling module".to_owned();
            return Err(ExportError::Config { path, reason });
        }
        if head.steps.last() == Some(&SentenceStep::Normalize) {
            head.steps.pop();
            head.normalize = true;
        }
        Ok(Some(head))
    }
}

fn pooling(path: &Path) -> Result<Vec<Pooling>, ExportError> {
    let config: PoolingConfig = serde_json::from_value(read_json(path)?)
        .map_err(|error| ExportError::Config { path: path.to_owned(), reason: error.to_string() })?;
    let one = |name: &String| {
        Ok(match name.as_str() {
            "cls" => Pooling::Cls,
            "max" => Pooling::Max,
            "mean" => Pooling::Mean,
            "mean_sqrt_len_tokens" => Pooling::MeanSqrtLen,
            "weightedmean" => Pooling::WeightedMean,
            "lasttoken" => Pooling::LastToken,
            other => {
                let supported = "cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken".to_owned();
                let what = format!("pooling_mode {other:?}");
                return Err(ExportError::Unsupported { path: path.to_owned(), what, supported });
            }
        })
    };
    let modes: Vec<Pooling> = match &config.named {
        Some(Words::One(name)) => vec![one(name)?],
        Some(Words::Many(names)) => names.iter().map(one).collect::<Result<_, _>>()?,
        None => [
            (config.cls, Pooling::Cls),
            (config.max, Pooling::Max),
            (config.mean, Pooling::Mean),
            (config.mean_sqrt_len, Pooling::MeanSqrtLen),
            (config.weighted_mean, Pooling::WeightedMean),
            (config.last_token, Pooling::LastToken),
        ]
        .into_iter()
        .filter_map(|(on, mode)| on.then_some(mode))
        .collect(),
    };
    Ok(if modes.is_empty() { vec![Pooling::Mean] } else { modes })
}

fn dense(checkpoint: &Checkpoint, module: &str) -> Result<SentenceStep, ExportError> {
    let path = checkpoint.folder().join(module).join("config.json");
    let config: DenseConfig = serde_json::from_value(read_json(&path)?)
        .map_err(|error| ExportError::Config { path: path.clone(), reason: error.to_string() })?;
    let unsupported = |what: String, supported: &str| ExportError::Unsupported {
        path: path.clone(),
        what,
        supported: supported.to_owned(),
    };
    for name in [&config.module_input_name, &config.module_output_name].into_iter().flatten() {
        if name != "sentence_embedding" {
            return Err(unsupported(format!("a Dense module on {name:?}"), "sentence_embedding"));
        }
    }
    let class = config.activation_function.as_deref().unwrap_or("torch.nn.Tanh");
    let torch = class.strip_prefix("torch.nn.").and_then(|name| name.rsplit('.').next());
    let activation = match torch {
        Some("Identity") => StepActivation::Identity,
        Some("Tanh") => StepActivation::Tanh,
        Some("Sigmoid") => StepActivation::Sigmoid,
        Some("ReLU") => StepActivation::Relu,
        Some("GELU") => StepActivation::Gelu,
        Some("SiLU") => StepActivation::Silu,
        _ => {
            let supported = "torch.nn's Identity, Tanh, Sigmoid, ReLU, GELU, SiLU";
            return Err(unsupported(format!("activation_function {class:?}"), supported));
        }
    };
    require_weights(checkpoint, module, "linear.weight")?;
    let (inputs, outputs, bias) = (config.in_features, config.out_features, config.bias);
    Ok(SentenceStep::Dense { module: module.to_owned(), inputs, outputs, bias, activation })
}

/// Says which pickle to convert where a module has no safetensors weights.
fn require_weights(checkpoint: &Checkpoint, module: &str, tensor: &str) -> Result<(), ExportError> {
    let folder: PathBuf = checkpoint.folder().join(module);
    if folder.join("model.safetensors").is_file() {
        return checkpoint.tensor(&format!("{module}.{tensor}")).map(|_| ());
    }
    let pickles = crate::checkpoint::pickles(&folder);
    Err(ExportError::NoWeights { folder, pickles })
}

impl Graph<'_> {
    /// Does `step` with `vector`, [batch, size] in fp32; gives the result and its size.
    pub(crate) fn sentence_step(
        &mut self,
        vector: &Value,
        size: usize,
        step: &SentenceStep,
    ) -> Result<(Value, usize), ExportError> {
        match step {
            SentenceStep::Normalize => Ok((self.unit_length(vector), size)),
            SentenceStep::LayerNorm { module } => self.within(&format!("{module}.norm"), |graph| {
                let (name, sizes) = (format!("{module}.norm"), (size, LAYER_NORM_EPSILON));
                Ok((graph.layer_norm_as(vector, &name, sizes, Bias::Own, DataType::F32)?, size))
            }),
            SentenceStep::Dense { module, inputs, outputs, bias, activation } => {
                if *inputs != size {
                    let path = self.checkpoint.folder().join(module).join("config.json");
                    let reason = format!("it takes vectors of length {inputs} where it gets {size}");
                    return Err(ExportError::Config { path, reason });
                }
                let name = format!("{module}.linear");
                self.within(&name, |graph| {
                    let sizes = (*inputs, *outputs);
                    let x = if *bias {
                        graph.linear(vector, &name, sizes, DataType::F32)?
                    } else {
                        graph.product(vector, &name, sizes, DataType::F32)?
                    };
                    let x = match activation {
                        StepActivation::Identity => x,
                        StepActivation::Sigmoid => graph.unary("Sigmoid", &x),
                        StepActivation::Tanh => graph.activation(&x, Activation::Tanh),
                        StepActivation::Relu => graph.activation(&x, Activation::Relu),
                        StepActivation::Gelu => graph.activation(&x, Activation::Gelu),
                        StepActivation::Silu => graph.activation(&x, Activation::Silu),
                    };
                    Ok((x, *outputs))
                })
            }
        }
    }
}

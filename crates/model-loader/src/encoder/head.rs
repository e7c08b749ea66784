//! The heads that make logits of token vectors.

use cpu_kernels::{Activation, Norm, Packed, linear};

use super::families::{Bias, Scope, prefix};
use crate::config::Family;
use crate::weights::Weights;
use crate::{LoadError, ModelConfig};

/// A layer over one vector of a text, then one that gives a logit for each label.
#[derive(Debug)]
pub(crate) struct Head {
    dense: Packed,
    activation: Activation,
    norm: Option<Norm>,
    output: Packed,
    /// Whether it looks at the mean of the tokens, or at the first.
    takes_mean: bool,
}

impl Head {
    pub(crate) fn load(config: &ModelConfig, weights: &Weights) -> Result<Self, LoadError> {
        let (hidden, labels) = (config.hidden, config.labels.len());
        let eps = config.layer_norm_eps;
        let encoder = Scope { weights, prefix: prefix(weights, config.family), eps };
        let top = Scope { weights, prefix: "", eps };
        let packed = |scope: &Scope<'_>, name: &str, outputs: usize, has_bias| {
            let (weight, bias) = scope.linear(&[name], hidden, outputs, has_bias)?;
            Ok::<_, LoadError>(Packed::new(&weight, &bias, hidden))
        };
        let (scope, dense, activation, output) = match config.family {
            Family::Bert => (&encoder, "pooler.dense", Activation::Tanh, "classifier"),
            Family::Albert => (&encoder, "pooler", Activation::Tanh, "classifier"),
            Family::DebertaV2 => {
                let pooler = config.deberta.as_ref().map(|deberta| deberta.pooler_activation.kernel());
                (&top, "pooler.dense", pooler.unwrap_or(Activation::Gelu), "classifier")
            }
            Family::DistilBert => (&top, "pre_classifier", Activation::Relu, "classifier"),
            Family::Electra => (&top, "classifier.dense", Activation::Gelu, "classifier.out_proj"),
            Family::Mpnet | Family::Roberta => {
                (&top, "classifier.dense", Activation::Tanh, "classifier.out_proj")
            }
            Family::ModernBert => (&top, "head.dense", Activation::Gelu, "classifier"),
        };
        let modern = config.modern.as_ref();
        let has_bias =
            if modern.is_none_or(|modern| modern.has_classifier_bias) { Bias::Own } else { Bias::None };
        let norm = match modern {
            Some(modern) => Some(Norm {
                gamma: top.vector("head.norm.weight", &[hidden])?,
                beta: if modern.has_norm_bias {
                    top.vector("head.norm.bias", &[hidden])?
                } else {
                    Vec::new()
                },
                eps,
            }),
            None => None,
        };
        Ok(Self {
            dense: packed(scope, dense, hidden, has_bias)?,
            activation: modern.map_or(activation, |modern| modern.classifier_activation.kernel()),
            norm,
            output: packed(&top, output, labels, Bias::Own)?,
            takes_mean: modern.is_some_and(|modern| modern.classifies_mean),
        })
    }

    /// A logit for each label from a text's vectors, `[tokens, hidden]`; a text without tokens counts as one of zeros.
    pub(crate) fn run(&self, vectors: &[f32]) -> Vec<f32> {
        let width = self.dense.inputs();
        let mut input = vec![0.0; width];
        let tokens = vectors.chunks_exact(width);
        let count = if self.takes_mean { tokens.len() } else { tokens.len().min(1) };
        for token in tokens.take(count) {
            input.iter_mut().zip(token).for_each(|(sum, x)| *sum += x / count as f32);
        }
        let mut inner = vec![0.0; self.dense.outputs()];
        linear(&input, &self.dense, self.activation, &mut inner);
        if let Some(norm) = &self.norm {
            norm.apply(&mut inner);
        }
        let mut logits = vec![0.0; self.output.outputs()];
        linear(&inner, &self.output, Activation::Identity, &mut logits);
        logits
    }
}

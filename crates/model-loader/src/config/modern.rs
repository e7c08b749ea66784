//! The keys of `config.json` that only `ModernBERT` has.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::{Activation, ModernBert, unsupported};
use crate::LoadError;

/// Older files have the thetas as keys of their own, newer ones in `rope_parameters`; the layers' kinds follow from a
/// number in older files and are listed in newer ones.
#[derive(Deserialize)]
pub(super) struct RawModern {
    local_attention: Option<usize>,
    global_attn_every_n_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    local_rope_theta: Option<f64>,
    global_rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    rope_parameters: Option<BTreeMap<String, serde_json::Value>>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    norm_bias: Option<bool>,
    classifier_bias: Option<bool>,
    classifier_activation: Option<String>,
    classifier_pooling: Option<String>,
}

/// `rope_theta` and kind of one layer type.
#[derive(Deserialize, Default)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

impl RawModern {
    /// With the defaults of transformers' `ModernBertConfig`.
    pub(super) fn check(
        &self,
        num_layers: usize,
        head: usize,
        max_positions: usize,
        path: &Path,
    ) -> Result<ModernBert, LoadError> {
        // Its rotary positions turn halves of a head, and no tensor of the file is as long as the positions.
        if !head.is_multiple_of(2) || max_positions.saturating_mul(head) > 1 << 26 {
            let reason = format!(
                "heads of width {head} and {max_positions} positions are out of range for ModernBERT"
            );
            return Err(LoadError::config(path, reason));
        }
        let unsupported = |what, found: &str, supported| unsupported(path, what, found, supported);
        if let Some(scaling) = self.rope_scaling.as_ref().filter(|value| !value.is_null()) {
            return Err(unsupported("rope_scaling", &scaling.to_string(), "null"));
        }
        let theta = |kind: &str, older: Option<f64>, default: f64| {
            let rope = match self.rope_parameters.as_ref().and_then(|all| all.get(kind)) {
                Some(value) => Rope::deserialize(value)
                    .map_err(|error| LoadError::config(path, format!("`rope_parameters.{kind}`: {error}")))?,
                None => Rope::default(),
            };
            match rope.rope_type.as_deref() {
                None | Some("default") => {}
                Some(other) => return Err(unsupported("rope_type", other, "default")),
            }
            let theta = rope.rope_theta.or(older).unwrap_or(default);
            if theta.is_finite() && theta > 1.0 {
                Ok(theta)
            } else {
                Err(LoadError::config(path, format!("the rotary theta of {kind} is {theta}, out of range")))
            }
        };
        let is_local = match &self.layer_types {
            Some(types) if types.len() != num_layers => {
                let reason = format!("`layer_types` has {} entries for {num_layers} layers", types.len());
                return Err(LoadError::config(path, reason));
            }
            Some(types) => types
                .iter()
                .map(|kind| match kind.as_str() {
                    "sliding_attention" => Ok(true),
                    "full_attention" => Ok(false),
                    other => Err(unsupported("layer_types", other, "full_attention, sliding_attention")),
                })
                .collect::<Result<_, _>>()?,
            None => {
                let every = self.global_attn_every_n_layers.unwrap_or(3).max(1);
                (0..num_layers).map(|layer| layer % every != 0).collect()
            }
        };
        let activation = self.classifier_activation.as_deref().unwrap_or("gelu");
        let pooling = self.classifier_pooling.as_deref().unwrap_or("cls");
        Ok(ModernBert {
            window: self.local_attention.unwrap_or(128) / 2,
            is_local,
            local_theta: theta("sliding_attention", self.local_rope_theta, 10_000.0)?,
            global_theta: theta("full_attention", self.global_rope_theta, 160_000.0)?,
            has_attention_bias: self.attention_bias.unwrap_or(false),
            has_mlp_bias: self.mlp_bias.unwrap_or(false),
            has_norm_bias: self.norm_bias.unwrap_or(false),
            has_classifier_bias: self.classifier_bias.unwrap_or(false),
            classifier_activation: Activation::from_name(activation)
                .ok_or_else(|| unsupported("classifier_activation", activation, Activation::SUPPORTED))?,
            classifies_mean: match pooling {
                "cls" => false,
                "mean" => true,
                other => return Err(unsupported("classifier_pooling", other, "cls, mean")),
            },
        })
    }
}

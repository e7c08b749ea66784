//! The keys of `config.json` that only `DeBERTa` has.

use std::path::Path;

use serde::Deserialize;

use super::{Activation, Deberta, Places, unsupported};
use crate::LoadError;

#[derive(Deserialize)]
pub(super) struct RawDeberta {
    relative_attention: Option<bool>,
    max_relative_positions: Option<i64>,
    position_buckets: Option<i64>,
    share_att_key: Option<bool>,
    position_biased_input: Option<bool>,
    pos_att_type: Option<Kinds>,
    norm_rel_ebd: Option<String>,
    pooler_hidden_act: Option<String>,
    pooler_hidden_size: Option<usize>,
    conv_kernel_size: Option<usize>,
    attention_head_size: Option<usize>,
}

/// `["p2c", "c2p"]`, or `"p2c|c2p"` in older files.
#[derive(Deserialize)]
#[serde(untagged)]
enum Kinds {
    List(Vec<String>),
    Text(String),
}

impl Kinds {
    fn names(&self) -> Vec<&str> {
        match self {
            Self::List(names) => names.iter().map(String::as_str).collect(),
            Self::Text(names) => names.split('|').collect(),
        }
    }
}

impl RawDeberta {
    /// With the defaults of transformers' `DebertaV2Config`.
    pub(super) fn check(
        &self,
        hidden: usize,
        head: usize,
        max_positions: usize,
        path: &Path,
    ) -> Result<Deberta, LoadError> {
        let unsupported = |what, found: &str, supported| unsupported(path, what, found, supported);
        if let Some(size) = self.conv_kernel_size.filter(|size| *size > 0) {
            return Err(unsupported("conv_kernel_size", &size.to_string(), "0 (no convolution)"));
        }
        for (key, found, expected) in [
            ("pooler_hidden_size", self.pooler_hidden_size, hidden),
            ("attention_head_size", self.attention_head_size, head),
        ] {
            if let Some(found) = found.filter(|found| *found != expected) {
                let reason = format!("`{key}` is {found} where {expected} is what runs here");
                return Err(LoadError::config(path, reason));
            }
        }
        let activation = self.pooler_hidden_act.as_deref().unwrap_or("gelu");
        Ok(Deberta {
            places: self.places(max_positions, path)?,
            has_positions: self.position_biased_input.unwrap_or(true),
            pooler_activation: Activation::from_name(activation)
                .ok_or_else(|| unsupported("pooler_hidden_act", activation, Activation::SUPPORTED))?,
        })
    }

    fn places(&self, max_positions: usize, path: &Path) -> Result<Option<Places>, LoadError> {
        if !self.relative_attention.unwrap_or(false) {
            return Ok(None);
        }
        let names = self.pos_att_type.as_ref().map(Kinds::names).unwrap_or_default();
        if let Some(other) = names.iter().find(|name| !matches!(**name, "c2p" | "p2c")) {
            return Err(unsupported(path, "pos_att_type", other, "c2p, p2c"));
        }
        // A row for every distance, and no tensor of the file is as long as that.
        if max_positions > 1 << 20 {
            return Err(LoadError::config(
                path,
                format!("{max_positions} positions are out of range for DeBERTa"),
            ));
        }
        let positive =
            |value: Option<i64>| value.and_then(|it| usize::try_from(it).ok()).filter(|it| *it > 0);
        let farthest = positive(self.max_relative_positions).unwrap_or(max_positions);
        let buckets = positive(self.position_buckets);
        // Logarithms of these are divided by each other.
        if farthest > 1 << 24 || buckets.is_some_and(|buckets| buckets < 4 || farthest <= buckets / 2 + 1) {
            let buckets = buckets.unwrap_or_default();
            let reason =
                format!("{buckets} `position_buckets` for {farthest} relative positions are out of range");
            return Err(LoadError::config(path, reason));
        }
        Ok(Some(Places {
            farthest,
            buckets,
            queries_look: names.contains(&"c2p"),
            keys_look: names.contains(&"p2c"),
            shares_products: self.share_att_key.unwrap_or(false),
            is_normalised: self
                .norm_rel_ebd
                .as_deref()
                .unwrap_or("none")
                .split('|')
                .any(|it| it.trim() == "layer_norm"),
        }))
    }
}

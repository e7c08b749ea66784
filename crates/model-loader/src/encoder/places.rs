//! `DeBERTa`'s places: what a layer has for each distance between a query and a key.

use std::sync::Arc;

use cpu_kernels::{Activation, Packed, Relative, linear};

use super::families::{Bias, Scope};
use crate::LoadError;
use crate::config::Places;

impl Places {
    /// Rows of the table of places: as many before a token as after it.
    fn count(&self) -> usize {
        2 * self.buckets.unwrap_or(self.farthest)
    }

    /// The row for a key so far from its query, by `query - key`.
    fn row(&self, distance: isize) -> usize {
        let bucket = match self.buckets {
            Some(buckets) => {
                distance.signum() * (bucket(distance.unsigned_abs(), buckets, self.farthest).cast_signed())
            }
            None => distance,
        };
        let half = (self.count() / 2).cast_signed();
        (bucket + half).clamp(0, 2 * half - 1).unsigned_abs()
    }
}

/// Distances up to half of the buckets have one each, the others share them by their logarithm
/// (`make_log_bucket_position` in transformers, in float32 as there).
fn bucket(distance: usize, buckets: usize, farthest: usize) -> usize {
    let middle = buckets / 2;
    if distance <= middle {
        return distance;
    }
    #[expect(clippy::cast_possible_truncation, reason = "float32 is what is compared with")]
    let whole = (((farthest - 1) as f64 / middle as f64) as f32).ln();
    let share = (distance as f32 / middle as f32).ln() / whole;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number above 0")]
    let beyond = (share * (middle - 1) as f32).ceil() as usize;
    middle + beyond
}

/// The table that all layers make their own of, `[places, hidden]`, and its rows by distance.
pub(super) struct Table {
    places: Places,
    values: Vec<f32>,
    rows: Arc<[usize]>,
    hidden: usize,
}

impl Table {
    pub(super) fn read(
        places: &Places,
        scope: &Scope<'_>,
        hidden: usize,
        longest: usize,
    ) -> Result<Self, LoadError> {
        let mut values = scope.vector("encoder.rel_embeddings.weight", &[places.count(), hidden])?;
        if places.is_normalised {
            scope.norm("encoder.LayerNorm", hidden)?.apply(&mut values);
        }
        let span = longest.cast_signed();
        let rows = (-span..=span).map(|after| places.row(-after)).collect();
        Ok(Self { places: places.clone(), values, rows, hidden })
    }

    /// One layer's: its products of the table, those of its own keys and queries where they are shared.
    pub(super) fn of_layer(&self, scope: &Scope<'_>, layer: &str) -> Result<Relative, LoadError> {
        let product = |wanted: bool, shared: &str, own: &str| {
            if !wanted {
                return Ok(Vec::new());
            }
            let name =
                format!("{layer}attention.self.{}", if self.places.shares_products { shared } else { own });
            let (weight, bias) = scope.linear(&[&name], self.hidden, self.hidden, Bias::Own)?;
            let mut out = vec![0.0; self.values.len()];
            let packed = Packed::new(&weight, &bias, self.hidden);
            linear(&self.values, &packed, Activation::Identity, &mut out);
            Ok::<_, LoadError>(out)
        };
        Ok(Relative {
            rows: self.rows.clone(),
            keys: product(self.places.queries_look, "key_proj", "pos_key_proj")?,
            queries: product(self.places.keys_look, "query_proj", "pos_query_proj")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that transformers' `make_log_bucket_position` gives for 256 buckets and 512 positions.
    #[test]
    fn distances_share_buckets_by_their_logarithm() {
        let rows = [
            (0, 0),
            (1, 1),
            (127, 127),
            (128, 128),
            (129, 129),
            (130, 130),
            (150, 143),
            (200, 169),
            (255, 192),
            (300, 207),
            (400, 233),
            (510, 255),
            (511, 255),
        ];
        for (distance, expected) in rows {
            assert_eq!(bucket(distance, 256, 512), expected, "distance {distance}");
        }
    }
}

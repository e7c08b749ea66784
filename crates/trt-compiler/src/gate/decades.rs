//! Numbers counted by their powers of ten.

use serde::{Deserialize, Serialize};

/// How many numbers are below a limit, and not below that of the bucket before.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// The limit; the last bucket has all that is larger too.
    pub below: f64,
    /// How many.
    pub count: usize,
}

/// The limits of the buckets.
const LIMITS: [f64; 11] = [1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];

/// Counts numbers from 0 on.
#[derive(Debug, Default)]
pub(super) struct Decades([usize; LIMITS.len()]);

impl Decades {
    pub(super) fn add(&mut self, x: f64) {
        let place = LIMITS.iter().position(|limit| x < *limit).unwrap_or(LIMITS.len() - 1);
        self.0[place] += 1;
    }

    pub(super) fn buckets(self) -> Vec<Bucket> {
        LIMITS.iter().zip(self.0).map(|(&below, count)| Bucket { below, count }).collect()
    }
}

//! A range from the distribution of an activation.

use super::Method;

/// Which share of the values [`Method::Percentile`] keeps.
const KEPT: f64 = 0.9999;

/// How often magnitudes fall into bins of one width, which doubles as larger ones come.
#[derive(Clone, Debug, Default)]
pub(super) struct Histogram {
    /// The end of the last bin; 0 before anything but zeros was seen.
    end: f32,
    counts: Vec<u64>,
    largest: f32,
}

/// As many as TensorRT's calibrator had.
const BINS: usize = 2048;
/// Steps of an int8 to one side, with that of zero.
const STEPS: usize = 128;

impl Histogram {
    /// Adds the magnitudes of values. What is no number shows in the gate, not here.
    pub(super) fn add(&mut self, values: &[f32]) {
        let magnitudes = || values.iter().map(|x| x.abs()).filter(|x| x.is_finite());
        let largest = magnitudes().fold(0.0, f32::max);
        if largest > 0.0 && self.counts.is_empty() {
            self.counts = vec![0; BINS];
            self.end = largest;
        }
        while largest > self.end {
            let pairs: Vec<u64> = self.counts.chunks(2).map(|pair| pair.iter().sum()).collect();
            self.counts[..BINS / 2].copy_from_slice(&pairs);
            self.counts[BINS / 2..].fill(0);
            self.end *= 2.0;
        }
        self.largest = self.largest.max(largest);
        if self.counts.is_empty() {
            return;
        }
        let scale = BINS as f32 / self.end;
        for x in magnitudes() {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a magnitude's bin")]
            let bin = (x * scale) as usize;
            self.counts[bin.min(BINS - 1)] += 1;
        }
    }

    /// The range by a method that goes by the distribution; the largest magnitude by any other.
    pub(super) fn range(&self, method: Method) -> f32 {
        let bin = match method {
            Method::Max | Method::Error => return self.largest,
            Method::Percentile => self.percentile(),
            Method::Entropy => self.least_loss(),
        };
        (bin as f32 / BINS as f32 * self.end).min(self.largest)
    }

    /// The number of bins that hold the kept share.
    fn percentile(&self) -> usize {
        let total: u64 = self.counts.iter().sum();
        let mut left = (total as f64 * (1.0 - KEPT)).floor();
        for (bin, count) in self.counts.iter().enumerate().rev() {
            left -= *count as f64;
            if left < 0.0 {
                return bin + 1;
            }
        }
        0
    }

    /// The number of bins whose distribution and that of the steps which stand for it differ least, by
    /// Kullback and Leibler's divergence.
    fn least_loss(&self) -> usize {
        if self.counts.is_empty() {
            return 0;
        }
        let loss = |end: usize| {
            let mut cut: Vec<f64> = self.counts[..end].iter().map(|count| *count as f64).collect();
            let (total, beyond) =
                (self.counts.iter().sum::<u64>() as f64, self.counts[end..].iter().sum::<u64>() as f64);
            let kept = total - beyond;
            let mut coarse = vec![0.0; end];
            for step in 0..STEPS {
                let (from, to) = (step * end / STEPS, (step + 1) * end / STEPS);
                let filled = cut[from..to].iter().filter(|count| **count > 0.0).count();
                let sum: f64 = cut[from..to].iter().sum();
                for (coarse, count) in coarse[from..to].iter_mut().zip(&cut[from..to]) {
                    *coarse = if *count > 0.0 { sum / filled as f64 } else { 0.0 };
                }
            }
            // What is cut off counts as the last value that is not.
            cut[end - 1] += beyond;
            let parts = cut.iter().zip(&coarse).filter(|(p, _)| **p > 0.0);
            // A step that holds nothing stands for a value that there is: as far away as a single one of many.
            parts.map(|(p, q)| p / total * ((p / total) / (q.max(1e-6) / kept.max(1.0))).ln()).sum::<f64>()
        };
        let ends = (STEPS..=BINS).step_by(STEPS / 8);
        ends.map(|end| (end, loss(end))).min_by(|a, b| a.1.total_cmp(&b.1)).map_or(BINS, |(end, _)| end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(batches: &[Vec<f32>]) -> Histogram {
        let mut histogram = Histogram::default();
        for batch in batches {
            histogram.add(batch);
        }
        histogram
    }

    /// Evenly from 0 to `end`.
    fn even(count: u16, end: f32) -> Vec<f32> {
        (0..count).map(|i| f32::from(i) / f32::from(count) * end).collect()
    }

    #[test]
    fn ranges_follow_the_method() {
        let mut with_outlier = even(50_000, 1.0);
        with_outlier.extend(even(50_000, 1.0));
        with_outlier.extend(even(50_000, 1.0));
        with_outlier.push(100.0);
        let check = |name: &str, batches: &[Vec<f32>], expected: [(Method, f32, f32); 3]| {
            let histogram = histogram(batches);
            for (method, low, high) in expected {
                let range = histogram.range(method);
                assert!((low..=high).contains(&range), "{name} by {method}: {range}");
            }
        };
        check(
            "without outliers",
            &[even(10_000, 1.0)],
            [(Method::Max, 0.99, 1.0), (Method::Percentile, 0.99, 1.0), (Method::Entropy, 0.9, 1.0)],
        );
        // One value of 150,000 is beyond: all but one of 100,000 are kept.
        check(
            "one outlier",
            std::slice::from_ref(&with_outlier),
            [(Method::Max, 100.0, 100.0), (Method::Percentile, 0.99, 1.1), (Method::Entropy, 0.9, 100.0)],
        );
        // The same in another order of batches: bins are as wide as the largest asks for.
        check(
            "growing",
            &[even(60_000, 0.01), even(60_000, 1.0), vec![3.0], even(60_000, 0.5)],
            [(Method::Max, 3.0, 3.0), (Method::Percentile, 0.99, 1.1), (Method::Entropy, 0.4, 3.0)],
        );
        check(
            "zeros",
            &[vec![0.0; 100]],
            [(Method::Max, 0.0, 0.0), (Method::Percentile, 0.0, 0.0), (Method::Entropy, 0.0, 0.0)],
        );
        check(
            "not numbers",
            &[vec![f32::NAN, f32::INFINITY, 2.0]],
            [(Method::Max, 2.0, 2.0), (Method::Percentile, 2.0, 2.0), (Method::Entropy, 0.1, 2.0)],
        );
    }
}

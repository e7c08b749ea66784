//! From logits to the next token.

use std::collections::HashSet;

use crate::lm::options::GenerateOptions;

/// Draws tokens; what it draws follows from the seed alone.
#[derive(Debug)]
pub(crate) struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    state: u64,
    seen: HashSet<u32>,
}

impl Sampler {
    pub(crate) fn new(options: &GenerateOptions, prompt: &[u32]) -> Self {
        let &GenerateOptions { temperature, top_k, top_p, min_p, repetition_penalty, seed, .. } = options;
        let seen = prompt.iter().copied().collect();
        Self { temperature, top_k, top_p, min_p, repetition_penalty, state: seed, seen }
    }

    /// The next token. The order of the steps is transformers': penalty, temperature, top k, top p, min p. Of equal
    /// logits the first in the vocabulary counts as the likelier.
    pub(crate) fn next(&mut self, mut logits: Vec<f32>) -> u32 {
        if self.repetition_penalty.to_bits() != 1.0_f32.to_bits() {
            for id in &self.seen {
                if let Some(logit) = logits.get_mut(*id as usize) {
                    *logit = if *logit < 0.0 {
                        *logit * self.repetition_penalty
                    } else {
                        *logit / self.repetition_penalty
                    };
                }
            }
        }
        let id = if self.temperature > 0.0 { self.draw(&logits) } else { likeliest(&logits) };
        self.seen.insert(id);
        id
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        // From the largest down, so that a small temperature overflows on the side that is left out anyway.
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut order: Vec<(u32, f32)> =
            (0..).zip(logits.iter().map(|x| (x - top) / self.temperature)).collect();
        order.sort_by(|(a, x), (b, y)| y.total_cmp(x).then(a.cmp(b)));
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let mut kept = probabilities(&order);
        if self.top_p < 1.0 {
            let mut before = 0.0;
            let enough = kept.iter().position(|p| {
                before += p;
                before >= f64::from(self.top_p)
            });
            order.truncate(enough.map_or(order.len(), |last| last + 1));
            kept = probabilities(&order);
        }
        if self.min_p > 0.0 {
            let least = f64::from(self.min_p) * kept[0];
            order.truncate(kept.iter().take_while(|p| **p >= least).count().max(1));
            kept = probabilities(&order);
        }
        let mut rest = self.uniform();
        for ((id, _), p) in order.iter().zip(&kept) {
            rest -= p;
            if rest < 0.0 {
                return *id;
            }
        }
        // What rounding left over belongs to the last.
        order.last().map_or(0, |(id, _)| *id)
    }

    /// From 0 to 1, by `SplitMix64` (Steele, Lea and Flood, 2014): the top 53 bits of its next number.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// The softmax of logits that go down.
fn probabilities(order: &[(u32, f32)]) -> Vec<f64> {
    let top = order.first().map_or(0.0, |(_, logit)| *logit);
    let mut values: Vec<f64> = order.iter().map(|(_, logit)| f64::from(logit - top).exp()).collect();
    let sum: f64 = values.iter().sum();
    for value in &mut values {
        *value /= sum;
    }
    values
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (id, *logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(options: &GenerateOptions, logits: &[f32], times: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(options, &[]);
        (0..times).map(|_| sampler.next(logits.to_vec())).collect()
    }

    #[test]
    fn each_option_leaves_what_it_says() {
        // Probabilities of about 0.64, 0.24, 0.09, 0.03.
        let logits = [1.0, 3.0, 2.0, 0.0];
        let check = |row: &str, options: GenerateOptions, expected: &[u32]| {
            let mut found = drawn(&options, &logits, 400);
            found.sort_unstable();
            found.dedup();
            assert_eq!(found, expected, "{row}");
        };
        let warm = GenerateOptions { temperature: 1.0, ..GenerateOptions::default() };
        check("greedy", GenerateOptions::default(), &[1]);
        check("all", warm.clone(), &[0, 1, 2, 3]);
        check("cold", GenerateOptions { temperature: 1e-3, ..warm.clone() }, &[1]);
        check("coldest", GenerateOptions { temperature: f32::MIN_POSITIVE, ..warm.clone() }, &[1]);
        check("top k", GenerateOptions { top_k: 2, ..warm.clone() }, &[1, 2]);
        check("top p, within the first", GenerateOptions { top_p: 0.6, ..warm.clone() }, &[1]);
        check("top p", GenerateOptions { top_p: 0.7, ..warm.clone() }, &[1, 2]);
        check("min p", GenerateOptions { min_p: 0.1, ..warm.clone() }, &[0, 1, 2]);
        check("top k before top p", GenerateOptions { top_k: 3, top_p: 0.95, ..warm }, &[0, 1, 2]);
    }

    #[test]
    fn draws_are_as_often_as_they_are_likely() {
        let options = GenerateOptions { temperature: 2.0, seed: 7, ..GenerateOptions::default() };
        let logits = [0.0, 2.0 * 3.0_f32.ln()];
        let found = drawn(&options, &logits, 20_000);
        let share = found.iter().filter(|id| **id == 1).count() as f64 / 20_000.0;
        assert!((share - 0.75).abs() < 0.02, "{share}");
        assert_eq!(found, drawn(&options, &logits, 20_000), "the seed decides");
        assert_ne!(found, drawn(&GenerateOptions { seed: 8, ..options }, &logits, 20_000));
    }

    #[test]
    fn a_repeated_token_is_less_likely() {
        let options = GenerateOptions { repetition_penalty: 4.0, ..GenerateOptions::default() };
        assert_eq!(
            drawn(&options, &[1.0, 3.0, 2.0], 3),
            [1, 2, 0],
            "3, then 3/4 against 2, then 2/4 against 1"
        );
        assert_eq!(drawn(&options, &[-1.0, -1.5], 2), [0, 1], "a negative logit goes down, not up");
        let mut sampler = Sampler::new(&options, &[1]);
        assert_eq!(sampler.next(vec![1.0, 3.0]), 0, "the prompt counts");
    }
}

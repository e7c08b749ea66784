//! The optimiser.

use std::collections::BTreeMap;

use crate::matrix::Matrix;
use crate::params::{Bound, Params};
use crate::tape::Gradients;

/// Adam (Kingma and Ba, 2015) with a linear warm-up and decay of the step size.
pub(crate) struct Adam {
    moments: BTreeMap<String, (Matrix, Matrix)>,
    schedule: Schedule,
    step: usize,
    decay1: f32,
    decay2: f32,
}

/// How the step size changes over a training run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// The largest step size.
    pub(crate) peak: f32,
    /// Steps from zero to the peak.
    pub(crate) warm_up: usize,
    /// Steps until zero again.
    pub(crate) total: usize,
}

/// A word is in few batches, so its row takes larger steps than what is in all of them.
const WORD_TABLE: &str = "word_embeddings.weight";
const WORD_TABLE_BOOST: f32 = 6.0;
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.98;
const EPSILON: f32 = 1e-8;

impl Schedule {
    #[expect(clippy::cast_precision_loss, reason = "a run has far fewer than 2^24 steps")]
    fn rate(self, step: usize) -> f32 {
        let rising = (step + 1) as f32 / self.warm_up as f32;
        let falling = (self.total.saturating_sub(step)) as f32 / (self.total - self.warm_up) as f32;
        self.peak * rising.min(falling).min(1.0)
    }
}

impl Adam {
    /// The number of updates so far.
    pub(crate) fn steps(&self) -> usize {
        self.step
    }

    pub(crate) fn new(schedule: Schedule) -> Self {
        Self { moments: BTreeMap::new(), schedule, step: 0, decay1: 1.0, decay2: 1.0 }
    }

    /// One update; parameters that the loss did not depend on stay as they are.
    pub(crate) fn step(&mut self, params: &mut Params, bound: &Bound, gradients: &mut Gradients) {
        let rate = self.schedule.rate(self.step);
        self.step += 1;
        self.decay1 *= BETA1;
        self.decay2 *= BETA2;
        let (unbias1, unbias2) = (1.0 / (1.0 - self.decay1), 1.0 / (1.0 - self.decay2));
        for (name, value) in params.values_mut() {
            let Some(gradient) = gradients.take(bound.get(name)) else { continue };
            let rate = if name.ends_with(WORD_TABLE) { rate * WORD_TABLE_BOOST } else { rate };
            let zeros = || Matrix::zeros(value.rows, value.cols);
            let (mean, square) = self.moments.entry(name.to_owned()).or_insert_with(|| (zeros(), zeros()));
            let moments = mean.data.iter_mut().zip(&mut square.data);
            for ((x, g), (m, v)) in value.data.iter_mut().zip(&gradient.data).zip(moments) {
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                *x -= rate * (*m * unbias1) / ((*v * unbias2).sqrt() + EPSILON);
            }
        }
    }
}

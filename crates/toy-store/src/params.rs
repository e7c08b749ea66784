//! Named parameters, and Adam.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::matrix::Matrix;
use crate::rng::Rng;
use crate::tape::{Gradients, Tape, Var};

/// A model's parameters under their Hugging Face names, in name order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    value: Rc<Matrix>,
    /// A vector is one row here and one-dimensional in the file.
    is_vector: bool,
}

/// The parameters on a tape.
pub(crate) struct Bound(BTreeMap<String, Var>);

impl Params {
    /// A `[rows, cols]` matrix of normal numbers times `deviation`.
    pub(crate) fn normal(&mut self, name: &str, rows: usize, cols: usize, deviation: f32, rng: &mut Rng) {
        let value = Matrix::from_fn(rows, cols, || rng.normal() * deviation);
        self.insert(name, value, false);
    }

    /// A vector of `len` equal numbers.
    pub(crate) fn constant(&mut self, name: &str, len: usize, value: f32) {
        self.insert(name, Matrix::from_fn(1, len, || value), true);
    }

    /// `<name>.weight` as `[outputs, inputs]` with deviation 1/√inputs, and `<name>.bias`, zero.
    #[expect(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
    pub(crate) fn linear(&mut self, name: &str, outputs: usize, inputs: usize, rng: &mut Rng) {
        let deviation = 1.0 / (inputs as f32).sqrt();
        self.normal(&format!("{name}.weight"), outputs, inputs, deviation, rng);
        self.constant(&format!("{name}.bias"), outputs, 0.0);
    }

    /// `<name>.weight` = 1 and `<name>.bias` = 0.
    pub(crate) fn layer_norm(&mut self, name: &str, width: usize) {
        self.constant(&format!("{name}.weight"), width, 1.0);
        self.constant(&format!("{name}.bias"), width, 0.0);
    }

    pub(crate) fn insert(&mut self, name: &str, value: Matrix, is_vector: bool) {
        let entry = Entry { value: Rc::new(value), is_vector };
        let previous = self.entries.insert(name.to_owned(), entry);
        assert!(previous.is_none(), "two parameters are called {name}");
    }

    pub(crate) fn bind(&self, tape: &mut Tape) -> Bound {
        Bound(
            self.entries
                .iter()
                .map(|(name, entry)| (name.clone(), tape.leaf(Rc::clone(&entry.value))))
                .collect(),
        )
    }

    /// Name, shape and values, in name order.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, Vec<usize>, &[f32])> {
        self.entries.iter().map(|(name, entry)| {
            let Matrix { rows, cols, data } = &*entry.value;
            let shape = if entry.is_vector { vec![*cols] } else { vec![*rows, *cols] };
            (name.as_str(), shape, data.as_slice())
        })
    }
}

impl Bound {
    /// The parameter of that name; a missing one is a bug in a model's description.
    pub(crate) fn get(&self, name: &str) -> Var {
        *self.0.get(name).unwrap_or_else(|| panic!("the model has no parameter {name}"))
    }

    /// `x · weightᵀ + bias` with the parameters below `name`.
    pub(crate) fn linear(&self, tape: &mut Tape, name: &str, x: Var) -> Var {
        let bias = self.get(&format!("{name}.bias"));
        tape.linear(x, self.get(&format!("{name}.weight")), Some(bias))
    }

    /// Layer normalisation with the parameters below `name`.
    pub(crate) fn layer_norm(&self, tape: &mut Tape, name: &str, x: Var, epsilon: f32) -> Var {
        tape.layer_norm(x, self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")), epsilon)
    }
}

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
        for (name, entry) in &mut params.entries {
            let Some(gradient) = gradients.take(bound.get(name)) else { continue };
            let rate = if name.ends_with(WORD_TABLE) { rate * WORD_TABLE_BOOST } else { rate };
            let value = Rc::make_mut(&mut entry.value);
            let zeros = || Matrix::zeros(value.rows, value.cols);
            let (mean, square) = self.moments.entry(name.clone()).or_insert_with(|| (zeros(), zeros()));
            let moments = mean.data.iter_mut().zip(&mut square.data);
            for ((x, g), (m, v)) in value.data.iter_mut().zip(&gradient.data).zip(moments) {
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                *x -= rate * (*m * unbias1) / ((*v * unbias2).sqrt() + EPSILON);
            }
        }
    }
}

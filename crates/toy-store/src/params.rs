//! Named parameters.

use std::collections::BTreeMap;
use std::rc::Rc;

use safetensors::SafeTensors;

use crate::matrix::Matrix;
use crate::rng::Rng;
use crate::tape::{Tape, Var};

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

    /// The tensors of a `model.safetensors` that [`Folder::put_weights`](crate::Folder) wrote.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let file =
            SafeTensors::deserialize(bytes).unwrap_or_else(|e| panic!("our own weights are refused: {e}"));
        let mut params = Self::default();
        for (name, tensor) in file.iter() {
            let bytes = tensor.data().chunks_exact(size_of::<f32>());
            let data: Vec<f32> = bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let shape = tensor.shape();
            let cols = shape.last().copied().unwrap_or(1);
            params.insert(name, Matrix { rows: data.len() / cols, cols, data }, shape.len() == 1);
        }
        params
    }

    fn insert(&mut self, name: &str, value: Matrix, is_vector: bool) {
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

    /// Names and values, for an optimiser, in name order.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = (&str, &mut Matrix)> {
        self.entries.iter_mut().map(|(name, entry)| (name.as_str(), Rc::make_mut(&mut entry.value)))
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

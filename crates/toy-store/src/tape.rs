//! Reverse-mode differentiation: operations record how to send a gradient back to what they were made of.

use std::rc::Rc;

use crate::matrix::Matrix;

/// A value on a [`Tape`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Var(usize);

/// Receives the gradient of an operation's output and adds to those of its inputs.
type Backward = Box<dyn FnOnce(Matrix, &mut Gradients)>;

struct Node {
    value: Rc<Matrix>,
    backward: Option<Backward>,
}

/// One forward pass. Values are in order of creation, so walking it from the end visits every consumer before its inputs.
#[derive(Default)]
pub(crate) struct Tape {
    nodes: Vec<Node>,
}

/// The gradient of a loss by every value of the tape that it depends on.
pub(crate) struct Gradients(Vec<Option<Matrix>>);

impl Tape {
    /// A value that nothing on the tape produced: a parameter or an input.
    pub(crate) fn leaf(&mut self, value: Rc<Matrix>) -> Var {
        self.nodes.push(Node { value, backward: None });
        Var(self.nodes.len() - 1)
    }

    pub(crate) fn push(
        &mut self,
        value: Matrix,
        backward: impl FnOnce(Matrix, &mut Gradients) + 'static,
    ) -> Var {
        self.nodes.push(Node { value: Rc::new(value), backward: Some(Box::new(backward)) });
        Var(self.nodes.len() - 1)
    }

    pub(crate) fn value(&self, var: Var) -> Rc<Matrix> {
        Rc::clone(&self.nodes[var.0].value)
    }

    /// The gradients of `loss`, a 1 × 1 value.
    pub(crate) fn backward(self, loss: Var) -> Gradients {
        let mut gradients = Gradients((0..self.nodes.len()).map(|_| None).collect());
        gradients.0[loss.0] = Some(Matrix { rows: 1, cols: 1, data: vec![1.0] });
        for (index, node) in self.nodes.into_iter().enumerate().rev() {
            let Some(backward) = node.backward else { continue };
            if let Some(gradient) = gradients.0[index].take() {
                backward(gradient, &mut gradients);
            }
        }
        gradients
    }
}

impl Gradients {
    /// The gradient by a leaf, or `None` where the loss does not depend on it.
    pub(crate) fn take(&mut self, var: Var) -> Option<Matrix> {
        self.0[var.0].take()
    }

    pub(crate) fn add(&mut self, var: Var, gradient: Matrix) {
        match &mut self.0[var.0] {
            Some(sum) => sum.add_assign(&gradient),
            empty => *empty = Some(gradient),
        }
    }

    /// The accumulator of `var` (zeros of that shape when new), for operations that touch only a few rows.
    pub(crate) fn accumulator(&mut self, var: Var, rows: usize, cols: usize) -> &mut Matrix {
        self.0[var.0].get_or_insert_with(|| Matrix::zeros(rows, cols))
    }
}

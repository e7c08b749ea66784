//! Training: what each agent learns from, and how long.

pub(crate) mod analyst;
mod bert;
pub(crate) mod memory;
pub(crate) mod roberta;
pub(crate) mod synthesizer;

use crate::adam::Adam;
use crate::params::{Bound, Params};
use crate::tape::{Tape, Var};

/// Minimises the loss that `forward` puts on the tape of each step, until the optimiser has made `until` steps in all.
fn fit(
    params: &mut Params,
    adam: &mut Adam,
    until: usize,
    mut forward: impl FnMut(usize, &mut Tape, &Bound) -> Var,
) {
    for step in adam.steps()..until {
        let mut tape = Tape::default();
        let bound = params.bind(&mut tape);
        let loss = forward(step, &mut tape, &bound);
        let mut gradients = tape.backward(loss);
        adam.step(params, &bound, &mut gradients);
    }
}

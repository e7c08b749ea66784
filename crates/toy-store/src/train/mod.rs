//! Training: what each agent learns from, and how long.

pub(crate) mod analyst;
mod bert;
pub(crate) mod memory;
pub(crate) mod roberta;
pub(crate) mod synthesizer;

use crate::params::{Adam, Bound, Params, Schedule};
use crate::tape::{Tape, Var};

/// Minimises the loss that `forward` puts on the tape of each step, and returns every step's loss.
fn fit(
    params: &mut Params,
    schedule: Schedule,
    mut forward: impl FnMut(usize, &mut Tape, &Bound) -> Var,
) -> Vec<f32> {
    let mut adam = Adam::new(schedule);
    let mut losses = Vec::with_capacity(schedule.total);
    for step in 0..schedule.total {
        let mut tape = Tape::default();
        let bound = params.bind(&mut tape);
        let loss = forward(step, &mut tape, &bound);
        losses.push(tape.value(loss).data[0]);
        let mut gradients = tape.backward(loss);
        adam.step(params, &bound, &mut gradients);
    }
    if std::env::var_os("TOY_TRACE").is_some() {
        let n = losses.len();
        eprintln!("{:?} {:?}", &losses[..3], losses[n - 20..].iter().sum::<f32>() / 20.0);
    }
    losses
}

//! Every backward against finite differences of its forward.

use std::rc::Rc;

use crate::matrix::Matrix;
use crate::model::Batch;
use crate::model::decoder::Decoder;
use crate::model::encoder::Encoder;
use crate::ops::Heads;
use crate::params::Params;
use crate::rng::Rng;
use crate::tape::{Tape, Var};

/// Half the distance of the two points of a central difference; the best for `f32` is about the cube root of 10⁻⁷.
const STEP: f32 = 4e-3;
/// What a difference of two `f32` losses near 1 may be off by, and the curvature beside it.
const TOLERANCE: f32 = 4e-3;

/// An operation's name, the shapes of its inputs, and itself.
type Row<'a> = (&'a str, &'a [(usize, usize)], Build<'a>);
type Build<'a> = &'a dyn Fn(&mut Tape, &[Var]) -> Var;

/// A number from all elements of `output` in which no two have the same weight, so that no error can cancel.
fn loss_of(tape: &mut Tape, output: Var) -> Var {
    let Matrix { rows, cols, .. } = *tape.value(output);
    let mut rng = Rng::new(7, "weights of a loss");
    let weights = tape.leaf(Rc::new(Matrix::from_fn(1, cols, || rng.normal())));
    let sums = tape.linear(output, weights, None);
    let all = 0..rows;
    let mean = tape.mean_rows(sums, Rc::from([all]));
    tape.tanh(mean)
}

fn loss(build: Build<'_>, inputs: &[Matrix]) -> f32 {
    let mut tape = Tape::default();
    let inputs: Vec<Var> = inputs.iter().map(|input| tape.leaf(Rc::new(input.clone()))).collect();
    let output = build(&mut tape, &inputs);
    let loss = loss_of(&mut tape, output);
    tape.value(loss).data[0]
}

fn check(name: &str, shapes: &[(usize, usize)], build: Build<'_>) {
    let mut rng = Rng::new(1, name);
    let mut inputs: Vec<Matrix> =
        shapes.iter().map(|(r, c)| Matrix::from_fn(*r, *c, || rng.normal())).collect();
    let mut tape = Tape::default();
    let vars: Vec<Var> = inputs.iter().map(|input| tape.leaf(Rc::new(input.clone()))).collect();
    let output = build(&mut tape, &vars);
    let loss_var = loss_of(&mut tape, output);
    let mut gradients = tape.backward(loss_var);
    let mut largest = 0.0_f32;
    for (which, var) in vars.iter().enumerate() {
        let gradient = gradients.take(*var).unwrap_or_else(|| panic!("{name}: no gradient by input {which}"));
        for (element, exact) in gradient.data.iter().enumerate() {
            let middle = inputs[which].data[element];
            inputs[which].data[element] = middle + STEP;
            let above = loss(build, &inputs);
            inputs[which].data[element] = middle - STEP;
            let below = loss(build, &inputs);
            inputs[which].data[element] = middle;
            let measured = (above - below) / (2.0 * STEP);
            assert!(
                (measured - exact).abs() <= TOLERANCE * (1.0 + exact.abs()),
                "{name}: by element {element} of input {which} backward says {exact}, differences say {measured}"
            );
            largest = largest.max(exact.abs());
        }
    }
    assert!(largest > 0.02, "{name}: gradients of at most {largest} show nothing");
}

const FULL: Heads = Heads { query: 2, key_value: 2, size: 2, causal: false };
const GROUPED: Heads = Heads { query: 4, key_value: 2, size: 2, causal: true };

#[test]
fn every_operation_is_differentiated_exactly() {
    let spans = || Rc::from([0..2, 2..5]);
    let rows: [Row<'_>; 15] = [
        ("linear", &[(3, 4), (5, 4), (1, 5)], &|t, v| t.linear(v[0], v[1], Some(v[2]))),
        ("linear without bias", &[(3, 4), (5, 4)], &|t, v| t.linear(v[0], v[1], None)),
        ("linear of itself", &[(3, 4)], &|t, v| t.linear(v[0], v[0], None)),
        ("add", &[(3, 4), (3, 4)], &|t, v| t.add(v[0], v[1])),
        ("scale", &[(3, 4)], &|t, v| t.scale(v[0], 1.5)),
        ("gather", &[(4, 3)], &|t, v| t.gather(v[0], Rc::from([3, 1, 3, 0, 2]))),
        ("gelu", &[(3, 4)], &|t, v| t.gelu(v[0])),
        ("tanh", &[(3, 4)], &|t, v| t.tanh(v[0])),
        ("swiglu", &[(3, 4), (3, 4)], &|t, v| t.swiglu(v[0], v[1])),
        ("layer_norm", &[(3, 4), (1, 4), (1, 4)], &|t, v| t.layer_norm(v[0], v[1], v[2], 1e-5)),
        ("rms_norm", &[(3, 4), (1, 4)], &|t, v| t.rms_norm(v[0], v[1], 1e-5)),
        ("unit_rows", &[(3, 4)], &|t, v| t.unit_rows(v[0])),
        ("rotary", &[(3, 8)], &|t, v| t.rotary(v[0], &[0, 1, 5], 4, 10_000.0)),
        ("attention", &[(5, 4), (5, 4), (5, 4)], &|t, v| t.attention(v[0], v[1], v[2], FULL, spans())),
        ("grouped causal attention", &[(5, 8), (5, 4), (5, 4)], &|t, v| {
            t.attention(v[0], v[1], v[2], GROUPED, spans())
        }),
    ];
    for (name, shapes, build) in rows {
        check(name, shapes, build);
    }
}

#[test]
fn mean_rows_and_cross_entropy_are_differentiated_exactly() {
    check("mean_rows", &[(5, 3)], &|t, v| t.mean_rows(v[0], Rc::from([0..2, 2..5])));
    check("cross_entropy", &[(3, 4)], &|t, v| {
        t.cross_entropy(v[0], vec![vec![(1, 1.0)], vec![], vec![(0, 0.25), (3, 0.75)]])
    });
}

/// The loss of a whole model, and that of the model with one parameter element moved, along the gradient of every parameter.
fn check_model(name: &str, params: &Params, forward: &dyn Fn(&mut Tape, &crate::params::Bound) -> Var) {
    let run = |params: &Params| {
        let mut tape = Tape::default();
        let bound = params.bind(&mut tape);
        let output = forward(&mut tape, &bound);
        let loss = loss_of(&mut tape, output);
        (tape, bound, loss)
    };
    let (tape, bound, at) = run(params);
    let mut gradients = tape.backward(at);
    let names: Vec<String> = params.tensors().map(|(name, ..)| name.to_owned()).collect();
    for parameter in names {
        let gradient =
            gradients.take(bound.get(&parameter)).unwrap_or_else(|| panic!("{name}: {parameter} is unused"));
        let length = gradient.data.iter().map(|g| g * g).sum::<f32>().sqrt().max(1e-6);
        let moved = |by: f32| {
            let mut moved = params.clone();
            for (other, value) in moved.values_mut() {
                if other == parameter {
                    value.zip_assign(&gradient, |x, g| x + by * g / length);
                }
            }
            let (tape, _, loss) = run(&moved);
            tape.value(loss).data[0]
        };
        // Where the loss is steep it is curved too, and a shorter step still shows a difference.
        let step = STEP / length.max(1.0);
        let measured = (moved(step) - moved(-step)) / (2.0 * step);
        assert!(
            (measured - length).abs() <= TOLERANCE * (1.0 + length),
            "{name}: along {parameter} backward says {length}, differences say {measured}"
        );
    }
}

#[test]
fn whole_models_are_differentiated_exactly() {
    let batch = || Batch::new([[1_u32, 4, 2].as_slice(), &[3, 0, 5, 1]]);
    let encoder = Encoder {
        prefix: "roberta.",
        vocabulary: 6,
        hidden: 8,
        layers: 2,
        heads: 2,
        intermediate: 6,
        positions: 6,
        first_position: 2,
        token_types: 1,
        epsilon: 1e-5,
        has_pooler: false,
    };
    let mut params = Params::default();
    let mut rng = Rng::new(2, "a small encoder");
    encoder.init(&mut params, &mut rng);
    params.linear("classifier.dense", 8, 8, &mut rng);
    params.linear("classifier.out_proj", 3, 8, &mut rng);
    check_model("encoder", &params, &|tape, bound| encoder.classify(tape, bound, &batch()));

    let decoder = Decoder {
        vocabulary: 6,
        hidden: 8,
        layers: 2,
        heads: 4,
        key_value_heads: 2,
        intermediate: 6,
        epsilon: 1e-5,
        theta: 10_000.0,
    };
    let mut params = Params::default();
    decoder.init(&mut params, &mut Rng::new(2, "a small decoder"));
    check_model("decoder", &params, &|tape, bound| decoder.logits(tape, bound, &batch()));
}

//! The encoder on this crate's own kernels.

use cpu_kernels::{Activation, Attention, Norm, Packed, Scratch, gate, linear};
use rayon::prelude::*;

use super::families::{self, Layer, Model, Rotary};
use crate::LoadError;
use crate::ragged::{Ragged, Rows};

/// Packed products and norms as they are.
#[derive(Debug)]
pub(crate) struct Kernels;

impl families::Kernels for Kernels {
    type Linear = Packed;
    type Norm = Norm;

    fn linear(&self, weight: Vec<f32>, bias: Vec<f32>, inputs: usize) -> Result<Packed, LoadError> {
        Ok(Packed::new(&weight, &bias, inputs))
    }

    fn norm(&self, norm: Norm) -> Result<Norm, LoadError> {
        Ok(norm)
    }
}

/// The last layer's vectors of texts that run together. With several workers the rows of each step are shared among them.
pub(crate) fn forward(model: &Model<Kernels>, texts: &[&Rows], workers: usize) -> Ragged {
    let mut starts = vec![0];
    for text in texts {
        starts.push(starts[starts.len() - 1] + text.len());
    }
    let mut x = model.embeddings.look_up(texts);
    if let Some(projection) = &model.projection {
        x = product(&x, projection, Activation::Identity, workers);
    }
    for index in &model.order {
        let layer = &model.layers[*index];
        let step = Step { model, layer, texts, starts: &starts, workers };
        if model.norms_come_first {
            let mut inner = x.clone();
            layer.attention_norm.iter().for_each(|norm| norm.apply(&mut inner));
            add(&mut x, &step.attend(&inner));
            inner.copy_from_slice(&x);
            layer.feed_norm.iter().for_each(|norm| norm.apply(&mut inner));
            add(&mut x, &step.feed(&inner));
        } else {
            let attended = step.attend(&x);
            x = normalised(layer.attention_norm.as_ref(), attended, &x);
            let fed = step.feed(&x);
            x = normalised(layer.feed_norm.as_ref(), fed, &x);
        }
    }
    model.final_norm.iter().for_each(|norm| norm.apply(&mut x));
    Ragged { width: model.width, starts, values: x }
}

struct Step<'a> {
    model: &'a Model<Kernels>,
    layer: &'a Layer<Kernels>,
    texts: &'a [&'a Rows],
    starts: &'a [usize],
    workers: usize,
}

impl Step<'_> {
    fn attend(&self, x: &[f32]) -> Vec<f32> {
        let width = self.model.width;
        let (attention, rotary) = &self.model.attention[self.layer.attention];
        let mut qkv = product(x, &self.layer.qkv, Activation::Identity, self.workers);
        if let Some(rotary) = rotary {
            for (text, start) in self.texts.iter().zip(self.starts) {
                turn(rotary, attention, &text.positions, &mut qkv[start * 3 * width..]);
            }
        }
        let mut context = vec![0.0; x.len()];
        let mut rest = &mut context[..];
        let mut scratch = Scratch::new();
        for span in self.starts.windows(2) {
            let (out, after) = rest.split_at_mut((span[1] - span[0]) * width);
            rest = after;
            let qkv = &qkv[span[0] * 3 * width..span[1] * 3 * width];
            if self.workers == 1 {
                attention.run(qkv, 0, &mut scratch, out);
            } else {
                let share = out.len() / width / self.workers + 1;
                out.par_chunks_mut(share * width).enumerate().for_each(|(index, out)| {
                    attention.run(qkv, index * share, &mut Scratch::new(), out);
                });
            }
        }
        product(&context, &self.layer.out, Activation::Identity, self.workers)
    }

    fn feed(&self, x: &[f32]) -> Vec<f32> {
        let Layer { up, is_gated, down, .. } = self.layer;
        let inner = if *is_gated {
            let both = product(x, up, Activation::Identity, self.workers);
            let mut inner = vec![0.0; both.len() / 2];
            gate(&both, up.outputs() / 2, self.model.activation, &mut inner);
            inner
        } else {
            product(x, up, self.model.activation, self.workers)
        };
        product(&inner, down, Activation::Identity, self.workers)
    }
}

/// Rows this few are not worth another thread.
const MIN_ROWS: usize = 16;

fn product(x: &[f32], weight: &Packed, activation: Activation, workers: usize) -> Vec<f32> {
    let rows = x.len() / weight.inputs();
    let mut out = vec![0.0; rows * weight.outputs()];
    let share = rows.div_ceil(workers).max(MIN_ROWS);
    if workers == 1 || share >= rows {
        linear(x, weight, activation, &mut out);
    } else {
        let shares = x.par_chunks(share * weight.inputs()).zip(out.par_chunks_mut(share * weight.outputs()));
        shares.for_each(|(x, out)| linear(x, weight, activation, out));
    }
    out
}

fn normalised(norm: Option<&Norm>, mut x: Vec<f32>, residual: &[f32]) -> Vec<f32> {
    match norm {
        Some(norm) => norm.add_apply(&mut x, residual),
        None => add(&mut x, residual),
    }
    x
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Turns the queries and keys of one text, `[tokens, 3 · heads · width]`, to their positions.
fn turn(rotary: &Rotary, attention: &Attention, positions: &[usize], qkv: &mut [f32]) {
    let Rotary { half, cos, sin } = rotary;
    let hidden = attention.heads * attention.width;
    for (position, row) in positions.iter().zip(qkv.chunks_exact_mut(3 * hidden)) {
        let (cos, sin) = (&cos[position * half..][..*half], &sin[position * half..][..*half]);
        for head in row[..2 * hidden].chunks_exact_mut(attention.width) {
            let (first, second) = head.split_at_mut(*half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

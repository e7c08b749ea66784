//! The encoder on this crate's own kernels.

use cpu_kernels::{Activation, Attention, Norm, Packed, Relative, Scratch, gate, linear};
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
    type Relative = Relative;

    fn linear(&self, weight: Vec<f32>, bias: Vec<f32>, inputs: usize) -> Result<Packed, LoadError> {
        Ok(Packed::new(&weight, &bias, inputs))
    }

    fn norm(&self, norm: Norm) -> Result<Norm, LoadError> {
        Ok(norm)
    }

    fn relative(&self, relative: Relative, _sizes: [usize; 2]) -> Result<Relative, LoadError> {
        Ok(relative)
    }
}

/// The last layer's vectors of texts that run together. With several workers the rows of each step are shared among them.
pub(crate) fn forward(model: &Model<Kernels>, texts: &[&Rows], workers: usize) -> Ragged {
    let mut starts = vec![0];
    for text in texts {
        starts.push(starts[starts.len() - 1] + text.len());
    }
    let mut x = model.embeddings.look_up(texts);
    let mut buffers = Buffers::default();
    if let Some(projection) = &model.projection {
        product(&x, projection, Activation::Identity, workers, &mut buffers.out);
        std::mem::swap(&mut x, &mut buffers.out);
    }
    for index in &model.order {
        let layer = &model.layers[*index];
        let step = Step { model, layer, texts, starts: &starts, workers };
        if model.norms_come_first {
            let mut inner = x.clone();
            layer.attention_norm.iter().for_each(|norm| norm.apply(&mut inner));
            step.attend(&inner, &mut buffers);
            add(&mut x, &buffers.out);
            inner.copy_from_slice(&x);
            layer.feed_norm.iter().for_each(|norm| norm.apply(&mut inner));
            step.feed(&inner, &mut buffers);
            add(&mut x, &buffers.out);
        } else {
            step.attend(&x, &mut buffers);
            replace(&mut x, &mut buffers.out, layer.attention_norm.as_ref());
            step.feed(&x, &mut buffers);
            replace(&mut x, &mut buffers.out, layer.feed_norm.as_ref());
        }
    }
    model.final_norm.iter().for_each(|norm| norm.apply(&mut x));
    Ragged { width: model.width, starts, values: x }
}

/// Memory that every layer uses again: what is new has to be cleared first, which costs as much as a norm.
#[derive(Default)]
struct Buffers {
    qkv: Vec<f32>,
    context: Vec<f32>,
    /// Both halves of a gated block.
    both: Vec<f32>,
    inner: Vec<f32>,
    /// What a step gives.
    out: Vec<f32>,
    scratch: Scratch,
}

struct Step<'a> {
    model: &'a Model<Kernels>,
    layer: &'a Layer<Kernels>,
    texts: &'a [&'a Rows],
    starts: &'a [usize],
    workers: usize,
}

impl Step<'_> {
    fn attend(&self, x: &[f32], buffers: &mut Buffers) {
        let width = self.model.width;
        let (attention, rotary) = &self.model.attention[self.layer.attention];
        let Buffers { qkv, context, out, scratch, .. } = buffers;
        product(x, &self.layer.qkv, Activation::Identity, self.workers, qkv);
        if let Some(rotary) = rotary {
            for (text, start) in self.texts.iter().zip(self.starts) {
                turn(rotary, attention, &text.positions, &mut qkv[start * 3 * width..]);
            }
        }
        let relative = self.layer.relative.as_ref();
        context.resize(x.len(), 0.0);
        let mut rest = &mut context[..];
        for span in self.starts.windows(2) {
            let (part, after) = rest.split_at_mut((span[1] - span[0]) * width);
            rest = after;
            let qkv = &qkv[span[0] * 3 * width..span[1] * 3 * width];
            if self.workers == 1 {
                attention.run(qkv, relative, 0, scratch, part);
            } else {
                let share = part.len() / width / self.workers + 1;
                part.par_chunks_mut(share * width).enumerate().for_each(|(index, part)| {
                    attention.run(qkv, relative, index * share, &mut Scratch::new(), part);
                });
            }
        }
        product(context, &self.layer.out, Activation::Identity, self.workers, out);
    }

    fn feed(&self, x: &[f32], buffers: &mut Buffers) {
        let Layer { up, is_gated, down, .. } = self.layer;
        let Buffers { both, inner, out, .. } = buffers;
        if *is_gated {
            product(x, up, Activation::Identity, self.workers, both);
            inner.resize(both.len() / 2, 0.0);
            gate(both, up.outputs() / 2, self.model.activation, inner);
        } else {
            product(x, up, self.model.activation, self.workers, inner);
        }
        product(inner, down, Activation::Identity, self.workers, out);
    }
}

/// Rows this few are not worth another thread.
const MIN_ROWS: usize = 16;

fn product(x: &[f32], weight: &Packed, activation: Activation, workers: usize, out: &mut Vec<f32>) {
    let rows = x.len() / weight.inputs();
    out.resize(rows * weight.outputs(), 0.0);
    let share = rows.div_ceil(workers).max(MIN_ROWS);
    if workers == 1 || share >= rows {
        linear(x, weight, activation, out);
    } else {
        let shares = x.par_chunks(share * weight.inputs()).zip(out.par_chunks_mut(share * weight.outputs()));
        shares.for_each(|(x, out)| linear(x, weight, activation, out));
    }
}

/// `x = norm(x + out)`.
fn replace(x: &mut Vec<f32>, out: &mut Vec<f32>, norm: Option<&Norm>) {
    match norm {
        Some(norm) => norm.add_apply(out, x),
        None => add(out, x),
    }
    std::mem::swap(x, out);
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

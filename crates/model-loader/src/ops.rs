//! The steps between the matrix products, in place on candle's CPU memory and in parallel by row.
//!
//! They are here because candle's own cost a pass over memory each, and because its layer norm takes the variance as
//! E[x²] − E[x]², which loses digits where the mean is large; here it is the mean of squared differences.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, bail};
use rayon::prelude::*;

use crate::config::Activation;

/// `x + bias`, row by row, then an activation: `[rows, width]`.
pub(crate) struct Bias<'a> {
    pub bias: &'a [f32],
    pub activation: Option<Activation>,
}

impl InplaceOp1 for Bias<'_> {
    fn name(&self) -> &'static str {
        "bias-activation"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        floats_mut(storage, layout)?.par_chunks_mut(self.bias.len()).for_each(|row| {
            for (x, bias) in row.iter_mut().zip(self.bias) {
                *x += bias;
            }
            match self.activation {
                None => {}
                Some(Activation::Gelu) => {
                    each(row, |x| 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)));
                }
                Some(Activation::GeluTanh) => each(row, |x| {
                    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                    0.5 * x * (1.0 + inner.tanh())
                }),
                Some(Activation::Relu) => each(row, |x| x.max(0.0)),
                Some(Activation::Silu) => each(row, |x| x / (1.0 + (-x).exp())),
                Some(Activation::Tanh) => each(row, f32::tanh),
            }
        });
        Ok(())
    }
}

fn each(row: &mut [f32], f: impl Fn(f32) -> f32) {
    for x in row {
        *x = f(*x);
    }
}

/// `norm(x + bias + residual)`, row by row: `[rows, width]`.
pub(crate) struct AddNorm<'a> {
    pub bias: &'a [f32],
    pub norm: &'a Norm,
}

impl InplaceOp2 for AddNorm<'_> {
    fn name(&self) -> &'static str {
        "add-norm"
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        other: &Layout,
    ) -> Result<()> {
        let width = self.bias.len();
        let residual = floats(residual, other)?;
        floats_mut(dst, layout)?.par_chunks_mut(width).zip(residual.par_chunks(width)).for_each(
            |(row, residual)| {
                for ((x, bias), r) in row.iter_mut().zip(self.bias).zip(residual) {
                    *x += bias + r;
                }
                self.norm.apply(row);
            },
        );
        Ok(())
    }
}

/// A layer norm: `(x − mean) / √(variance + eps) · gamma + beta`.
#[derive(Debug)]
pub(crate) struct Norm {
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub eps: f32,
}

impl Norm {
    /// Normalises one row of the norm's width.
    pub(crate) fn apply(&self, row: &mut [f32]) {
        let width = row.len() as f32;
        let mean = sum(row, |x| x) / width;
        let variance = sum(row, |x| (x - mean) * (x - mean)) / width;
        let scale = 1.0 / (variance + self.eps).sqrt();
        for ((x, gamma), beta) in row.iter_mut().zip(&self.gamma).zip(&self.beta) {
            *x = (*x - mean) * scale * gamma + beta;
        }
    }
}

/// A sum in sixteen lanes: quick, and rounder than one running sum.
fn sum(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    const LANES: usize = 16;
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|x| f(*x)).sum::<f32>()
}

/// `softmax(scale · x)` over the keys that the mask allows: `[batch · heads, seq, seq]` with a mask `[batch, seq]`.
/// Padding gets weight 0. A row with no key at all gets 0 everywhere.
pub(crate) struct MaskedSoftmax<'a> {
    pub mask: &'a [u32],
    pub heads: usize,
    pub scale: f32,
}

impl InplaceOp1 for MaskedSoftmax<'_> {
    fn name(&self) -> &'static str {
        "masked-softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let &[_, seq, keys] = layout.dims() else { bail!("scores are [batch · heads, seq, seq]") };
        floats_mut(storage, layout)?.par_chunks_mut(seq * keys).enumerate().for_each(|(index, square)| {
            let mask = &self.mask[index / self.heads * keys..][..keys];
            let full = mask.iter().all(|m| *m == 1);
            for row in square.chunks_exact_mut(keys) {
                if !full {
                    for (x, m) in row.iter_mut().zip(mask) {
                        *x = if *m == 1 { *x } else { f32::NEG_INFINITY };
                    }
                }
                softmax(row, self.scale);
            }
        });
        Ok(())
    }
}

/// `softmax(scale · x)` in place, for a positive scale; all −∞ gives all 0.
pub(crate) fn softmax(row: &mut [f32], scale: f32) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    for x in row.iter_mut() {
        *x = ((*x - max) * scale).exp();
    }
    let total = sum(row, |x| x);
    for x in row {
        *x /= total;
    }
}

fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => bail!("a contiguous float32 tensor on the CPU is needed"),
    }
}

fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&mut values[start..end]),
        _ => bail!("a contiguous float32 tensor on the CPU is needed"),
    }
}

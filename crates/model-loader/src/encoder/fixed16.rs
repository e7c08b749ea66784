//! An encoder's products in block fixed point.

use cpu_kernels::{Arithmetic, Packed};

use super::families::{Layer, Model};
use super::{Encoder, Runner};
use crate::{Backend, LoadError};

/// An error where this processor has no such arithmetic.
pub(super) fn require() -> Result<(), LoadError> {
    if Arithmetic::Fixed16.is_available() {
        return Ok(());
    }
    let reason = "this processor has no AVX2".to_owned();
    Err(LoadError::Backend { backend: Backend::CpuFixed16, reason })
}

impl Encoder {
    /// Whether this processor would be faster in block fixed point than in what the encoder computes in.
    pub(crate) fn would_gain(&self) -> bool {
        matches!(self.runner, Runner::Cpu(_, Arithmetic::Float32))
            && Arithmetic::fastest() == Arithmetic::Fixed16
    }

    /// Turns the products to block fixed point, one after another, so that hardly more memory is needed than before.
    pub(crate) fn convert(&mut self) {
        let Runner::Cpu(model, arithmetic) = &mut self.runner else { return };
        let Model { projection, layers, .. } = model;
        let of_layers = layers.iter_mut().flat_map(|Layer { qkv, out, up, down, .. }| [qkv, out, up, down]);
        projection.iter_mut().chain(of_layers).for_each(Packed::turn_to_fixed16);
        *arithmetic = Arithmetic::Fixed16;
    }
}

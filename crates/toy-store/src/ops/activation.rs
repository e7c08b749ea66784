//! Element-wise functions.

use crate::math::{exp, normal_cdf};
use crate::matrix::Matrix;
use crate::tape::{Tape, Var};

/// 1/√(2π), the height of the normal density at zero.
const NORMAL_DENSITY_AT_ZERO: f32 = 0.398_942_3;

impl Tape {
    /// The GELU with `erf`, `x · Φ(x)` (Hugging Face's `"gelu"`, not its tanh approximation).
    pub(crate) fn gelu(&mut self, x: Var) -> Var {
        let input = self.value(x);
        let mut output = Matrix::zeros(input.rows, input.cols);
        let mut slope = Matrix::zeros(input.rows, input.cols);
        for ((x, y), slope) in input.data.iter().zip(&mut output.data).zip(&mut slope.data) {
            let bell = exp(-0.5 * x * x);
            let cdf = normal_cdf(*x, bell);
            *y = x * cdf;
            *slope = cdf + x * NORMAL_DENSITY_AT_ZERO * bell;
        }
        self.push(output, move |mut gradient, gradients| {
            gradient.zip_assign(&slope, |g, slope| g * slope);
            gradients.add(x, gradient);
        })
    }

    pub(crate) fn tanh(&mut self, x: Var) -> Var {
        let output = self.value(x).map(libm::tanhf);
        let saved = output.clone();
        self.push(output, move |mut gradient, gradients| {
            gradient.zip_assign(&saved, |g, y| g * (1.0 - y * y));
            gradients.add(x, gradient);
        })
    }

    /// `SiLU(gate) · up`, the middle of a Llama feed-forward block.
    pub(crate) fn swiglu(&mut self, gate: Var, up: Var) -> Var {
        let (g, u) = (self.value(gate), self.value(up));
        let sigma = g.map(|g| 1.0 / (1.0 + exp(-g)));
        let mut output = g.zip(&sigma, |g, s| g * s);
        output.zip_assign(&u, |silu, u| silu * u);
        self.push(output, move |gradient, gradients| {
            let mut by_gate = Matrix::zeros(g.rows, g.cols);
            let mut by_up = Matrix::zeros(g.rows, g.cols);
            let inputs = g.data.iter().zip(&sigma.data).zip(&u.data).zip(&gradient.data);
            for ((((g, s), u), d), (by_gate, by_up)) in
                inputs.zip(by_gate.data.iter_mut().zip(&mut by_up.data))
            {
                *by_up = d * g * s;
                *by_gate = d * u * s * (1.0 + g * (1.0 - s));
            }
            gradients.add(gate, by_gate);
            gradients.add(up, by_up);
        })
    }
}

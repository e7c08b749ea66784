//! Element-wise functions, all through `libm`: a platform's own `exp` may differ in the last bit.

use crate::matrix::Matrix;
use crate::tape::{Tape, Var};

/// 1/√(2π), the height of the normal density at zero.
const NORMAL_DENSITY_AT_ZERO: f32 = 0.398_942_28;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-x))
}

impl Tape {
    /// The exact GELU, `x · Φ(x)` with `Φ` through `erf` (Hugging Face's `"gelu"`).
    pub(crate) fn gelu(&mut self, x: Var) -> Var {
        let input = self.value(x);
        let cumulative = input.map(|x| 0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2)));
        let output = input.zip(&cumulative, |x, phi| x * phi);
        self.push(output, move |gradient, gradients| {
            let slope =
                input.zip(&cumulative, |x, phi| phi + x * NORMAL_DENSITY_AT_ZERO * libm::expf(-0.5 * x * x));
            gradients.add(x, gradient.zip(&slope, |g, slope| g * slope));
        })
    }

    pub(crate) fn tanh(&mut self, x: Var) -> Var {
        let output = self.value(x).map(libm::tanhf);
        let saved = output.clone();
        self.push(output, move |gradient, gradients| {
            gradients.add(x, gradient.zip(&saved, |g, y| g * (1.0 - y * y)));
        })
    }

    /// `SiLU(gate) · up`, the middle of a Llama feed-forward block.
    pub(crate) fn swiglu(&mut self, gate: Var, up: Var) -> Var {
        let (g, u) = (self.value(gate), self.value(up));
        let sigma = g.map(sigmoid);
        let mut output = g.zip(&sigma, |g, s| g * s);
        for (value, u) in output.data.iter_mut().zip(&u.data) {
            *value *= u;
        }
        self.push(output, move |gradient, gradients| {
            let mut by_gate = Matrix::zeros(g.rows, g.cols);
            let mut by_up = Matrix::zeros(g.rows, g.cols);
            for (index, d) in gradient.data.iter().enumerate() {
                let (g, s, u) = (g.data[index], sigma.data[index], u.data[index]);
                by_up.data[index] = d * g * s;
                by_gate.data[index] = d * u * s * (1.0 + g * (1.0 - s));
            }
            gradients.add(gate, by_gate);
            gradients.add(up, by_up);
        })
    }
}

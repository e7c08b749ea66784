//! Rotary position embedding.

use std::rc::Rc;

use crate::matrix::Matrix;
use crate::tape::{Tape, Var};

/// The rotation of every (token, pair of channels), as (cosine, sine).
fn rotations(positions: &[usize], half: usize, theta: f32) -> Vec<(f32, f32)> {
    #[expect(clippy::cast_precision_loss, reason = "positions and channels are far below 2^24")]
    let angle = |position: usize, pair: usize| position as f32 / libm::powf(theta, pair as f32 / half as f32);
    let angles = positions.iter().flat_map(|position| (0..half).map(move |pair| angle(*position, pair)));
    angles.map(|angle| (libm::cosf(angle), libm::sinf(angle))).collect()
}

/// Turns channel `c` with channel `c + half` of every head, Llama's layout in Hugging Face checkpoints.
fn rotate(matrix: &mut Matrix, half: usize, rotations: &[(f32, f32)], direction: f32) {
    let cols = matrix.cols;
    for (row, turns) in matrix.data.chunks_exact_mut(cols).zip(rotations.chunks_exact(half)) {
        for head in row.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for ((a, b), (cosine, sine)) in low.iter_mut().zip(high).zip(turns) {
                let sine = sine * direction;
                (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
            }
        }
    }
}

impl Tape {
    /// Rotates the rows of `x` (heads of `head_size` channels) by their positions.
    pub(crate) fn rotary(&mut self, x: Var, positions: &[usize], head_size: usize, theta: f32) -> Var {
        let half = head_size / 2;
        let turns: Rc<[_]> = rotations(positions, half, theta).into();
        let mut output = Matrix::clone(&self.value(x));
        rotate(&mut output, half, &turns, 1.0);
        self.push(output, move |mut gradient, gradients| {
            rotate(&mut gradient, half, &turns, -1.0);
            gradients.add(x, gradient);
        })
    }
}

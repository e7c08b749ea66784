//! The faster arithmetic, where it gives the same vectors.

use super::{Network, SentenceEmbedder};

/// What is tried: texts of a sentence and of a few words, and none.
const TRIED: [&str; 4] =
    ["Ships in the Suez Canal wait for the wind to fall.", "La Banque centrale relève ses taux.", "42 %", ""];

/// How far a component of a vector may be from float32's: as far as exact vectors may be from the original's.
const MAX_ABS: f32 = 1e-4;
/// The least cosine: a tenth of the distance that exact vectors may have.
const MIN_COSINE: f64 = 0.999_999;

impl SentenceEmbedder {
    /// Turns the encoder to block fixed point if that is the faster arithmetic here. Says whether the model can be used: not
    /// if the vectors of some texts moved too far, when it has to be loaded again for float32.
    pub(super) fn quicken(&mut self) -> bool {
        let Network::Encoder(encoder) = &self.network else { return true };
        if !encoder.would_gain() {
            return true;
        }
        // What fails now fails when the model is used, and says so then.
        let Ok(exact) = self.embed_with_prompt(&TRIED, "") else { return true };
        if let Network::Encoder(encoder) = &mut self.network {
            encoder.convert();
        }
        let found = self.embed_with_prompt(&TRIED, "");
        let stayed = found.is_ok_and(|found| exact.iter().zip(&found).all(|(a, b)| is_near(a, b)));
        if !stayed {
            tracing::info!("16 bits are not enough for this model; it computes in float32");
        }
        stayed
    }
}

fn is_near(a: &[f32], b: &[f32]) -> bool {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let norms = dot(a, a) * dot(b, b);
    // A vector of 0 has no direction.
    let one_way = norms == 0.0 || dot(a, b) >= MIN_COSINE * norms.sqrt();
    one_way && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= MAX_ABS)
}

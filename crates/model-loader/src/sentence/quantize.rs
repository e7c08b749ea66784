//! Vectors in fewer bits, as `sentence_transformers.quantize_embeddings` makes them.

use crate::LoadError;

/// What a vector's components become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// A byte each, −128 for the least and 127 for the largest value of that component.
    Int8,
    /// A byte each, 0 for the least and 255 for the largest value of that component.
    Uint8,
    /// A bit each, 1 where it is above 0: eight to a byte, the first in the highest bit, and 128 taken away.
    Binary,
    /// A bit each, 1 where it is above 0: eight to a byte, the first in the highest bit.
    Ubinary,
}

/// Vectors in fewer bits, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Quantized {
    /// Of [`Quantization::Int8`] and [`Quantization::Binary`].
    Signed(Vec<Vec<i8>>),
    /// Of [`Quantization::Uint8`] and [`Quantization::Ubinary`].
    Unsigned(Vec<Vec<u8>>),
}

/// The least and the largest value of each component, among vectors such as those to be quantised.
///
/// Vectors that are to be compared need the same ranges: take them once, from some thousand vectors of the kind, and
/// keep them.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranges {
    /// The least value of each component.
    pub min: Vec<f32>,
    /// The largest value of each component.
    pub max: Vec<f32>,
}

impl Ranges {
    /// The ranges of these vectors, which have one length. Of no vectors there are none.
    #[must_use]
    pub fn of(vectors: &[Vec<f32>]) -> Option<Self> {
        let first = vectors.first()?;
        let mut ranges = Self { min: first.clone(), max: first.clone() };
        for vector in vectors {
            for ((min, max), x) in ranges.min.iter_mut().zip(&mut ranges.max).zip(vector) {
                *min = min.min(*x);
                *max = max.max(*x);
            }
        }
        Some(ranges)
    }

    /// Where in its range each component lies: 0 to 255.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number from 0 to 255"
    )]
    fn steps(&self, vector: &[f32]) -> impl Iterator<Item = u8> {
        vector.iter().zip(self.min.iter().zip(&self.max)).map(|(x, (min, max))| {
            let step = (max - min) / 255.0;
            let step = if step == 0.0 { 1.0 } else { step };
            ((x - min) / step).floor().clamp(0.0, 255.0) as u8
        })
    }
}

/// Quantises vectors of one length.
///
/// The two byte precisions need [`Ranges`]. Without any, they are taken from the vectors themselves, as
/// sentence-transformers does: what comes out can then be compared with nothing else.
///
/// ```
/// use model_loader::{Quantization, Quantized, quantize};
///
/// let bits = quantize(&[vec![0.5, -0.5, 0.1]], Quantization::Ubinary, None)?;
/// assert_eq!(bits, Quantized::Unsigned(vec![vec![0b1010_0000]]));
/// # Ok::<(), model_loader::LoadError>(())
/// ```
pub fn quantize(
    vectors: &[Vec<f32>],
    precision: Quantization,
    ranges: Option<&Ranges>,
) -> Result<Quantized, LoadError> {
    let width = vectors.first().map_or(0, Vec::len);
    if let Some(index) = vectors.iter().position(|vector| vector.len() != width) {
        let found = vectors[index].len();
        return Err(LoadError::Asked(format!(
            "vectors of one length are quantised together: vector {index} has {found} components and the first {width}"
        )));
    }
    let own = match (precision, ranges) {
        (Quantization::Int8 | Quantization::Uint8, None) => {
            if vectors.len() < 100 {
                tracing::warn!(
                    vectors = vectors.len(),
                    "quantised by the ranges of few vectors; give ranges taken from more of them"
                );
            }
            Ranges::of(vectors)
        }
        _ => None,
    };
    let ranges = ranges.or(own.as_ref());
    if let Some(found) = ranges.map(|ranges| ranges.min.len().min(ranges.max.len()))
        && found != width
        && !vectors.is_empty()
    {
        return Err(LoadError::Asked(format!("ranges of {found} components for vectors of {width}")));
    }
    let bytes = |vector: &Vec<f32>| ranges.map(|ranges| ranges.steps(vector).collect()).unwrap_or_default();
    Ok(match precision {
        Quantization::Uint8 => Quantized::Unsigned(vectors.iter().map(bytes).collect()),
        Quantization::Int8 => {
            Quantized::Signed(vectors.iter().map(|vector| signed(&bytes(vector))).collect())
        }
        Quantization::Ubinary => Quantized::Unsigned(vectors.iter().map(|vector| bits(vector)).collect()),
        Quantization::Binary => {
            Quantized::Signed(vectors.iter().map(|vector| signed(&bits(vector))).collect())
        }
    })
}

/// Each byte less 128.
fn signed(bytes: &[u8]) -> Vec<i8> {
    bytes.iter().map(|byte| byte.wrapping_sub(128).cast_signed()).collect()
}

/// A bit for each component, the rest of the last byte 0.
fn bits(vector: &[f32]) -> Vec<u8> {
    let byte = |eight: &[f32]| {
        eight.iter().enumerate().fold(0, |byte, (index, x)| byte | (u8::from(*x > 0.0) << (7 - index)))
    };
    vector.chunks(8).map(byte).collect()
}

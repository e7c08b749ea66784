//! How alike two vectors are, as `similarity_fn_name` of `config_sentence_transformers.json` says.

use std::fmt;
use std::str::FromStr;

use cpu_kernels::dot;

use crate::LoadError;

/// A measure of likeness; larger is more alike, also for the distances, which are negated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Similarity {
    /// `cosine`: of the angle between them. A length below 1e-12 counts as 1e-12.
    #[default]
    Cosine,
    /// `dot`: their product.
    Dot,
    /// `euclidean`: the length of their difference, negated.
    Euclidean,
    /// `manhattan`: the sum of the differences of their components, negated.
    Manhattan,
}

impl Similarity {
    /// Of two vectors of one length.
    ///
    /// ```
    /// use model_loader::Similarity;
    ///
    /// assert_eq!(Similarity::Dot.of(&[1.0, 2.0], &[3.0, 4.0]), 11.0);
    /// assert_eq!(Similarity::Manhattan.of(&[1.0, 2.0], &[3.0, 0.0]), -4.0);
    /// ```
    ///
    /// # Panics
    /// If they are not of one length: vectors of two models, or cut to two dimensions, cannot be compared.
    #[must_use]
    pub fn of(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "vectors of one length");
        let differences = || a.iter().zip(b).map(|(a, b)| a - b);
        match self {
            Self::Cosine => dot(a, b) / (length(a) * length(b)),
            Self::Dot => dot(a, b),
            Self::Euclidean => -differences().map(|d| d * d).sum::<f32>().sqrt(),
            Self::Manhattan => -differences().map(f32::abs).sum::<f32>(),
        }
    }

    /// Of each of `left` with each of `right`: a row per left vector.
    #[must_use]
    pub fn matrix(self, left: &[Vec<f32>], right: &[Vec<f32>]) -> Vec<Vec<f32>> {
        left.iter().map(|a| right.iter().map(|b| self.of(a, b)).collect()).collect()
    }

    /// Its name in configurations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Dot => "dot",
            Self::Euclidean => "euclidean",
            Self::Manhattan => "manhattan",
        }
    }
}

impl fmt::Display for Similarity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Similarity {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let all = [Self::Cosine, Self::Dot, Self::Euclidean, Self::Manhattan];
        all.into_iter().find(|similarity| similarity.name() == text).ok_or_else(|| LoadError::Name {
            name: text.to_owned(),
            kind: "similarity",
            reason: "write `cosine`, `dot`, `euclidean` or `manhattan`",
        })
    }
}

fn length(vector: &[f32]) -> f32 {
    dot(vector, vector).sqrt().max(1e-12)
}

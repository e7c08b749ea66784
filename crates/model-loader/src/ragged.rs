//! Texts one after another without padding: what the encoder computes on, and what it gives.

/// A vector for each token of several texts, one text after another, none padded.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Ragged {
    /// Length of a token's vector.
    pub width: usize,
    /// Where each text's tokens start, counted in tokens; one more than there are texts.
    pub starts: Vec<usize>,
    /// `[tokens, width]`, row-major.
    pub values: Vec<f32>,
}

impl Ragged {
    /// The vectors of one text: `[its tokens, width]`.
    pub(crate) fn text(&self, index: usize) -> &[f32] {
        &self.values[self.starts[index] * self.width..self.starts[index + 1] * self.width]
    }

    /// How many texts there are.
    pub(crate) fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }
}

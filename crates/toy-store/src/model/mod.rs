//! Forward passes, with the parameters named as in Hugging Face checkpoints.

pub(crate) mod decoder;
pub(crate) mod encoder;

use std::ops::Range;
use std::rc::Rc;

/// Tokenized sentences one after the other, without padding.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) ids: Rc<[usize]>,
    /// The rows of each sentence.
    pub(crate) spans: Rc<[Range<usize>]>,
}

impl Batch {
    pub(crate) fn new<'a>(sentences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let (mut ids, mut spans) = (Vec::new(), Vec::new());
        for sentence in sentences {
            let start = ids.len();
            ids.extend(sentence.iter().map(|id| *id as usize));
            spans.push(start..ids.len());
        }
        Self { ids: ids.into(), spans: spans.into() }
    }

    /// Each token's place in its sentence.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> {
        self.spans.iter().flat_map(|span| 0..span.len())
    }

    /// The row of each sentence's first token.
    pub(crate) fn first_rows(&self) -> Rc<[usize]> {
        self.spans.iter().map(|span| span.start).collect()
    }
    /// The row of each sentence's last token.
    pub(crate) fn last_rows(&self) -> Rc<[usize]> {
        self.spans.iter().map(|span| span.end - 1).collect()
    }
}

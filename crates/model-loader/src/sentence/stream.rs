//! Texts without end, in memory that has one.

use super::SentenceEmbedder;
use super::settings::{EmbedOptions, Task};
use crate::LoadError;

/// A window ends at so many texts …
const WINDOW_TEXTS: usize = 1024;
/// … or so many bytes of them: long texts are all alike to a batch, so fewer are enough.
const WINDOW_BYTES: usize = 1 << 20;

/// The vectors of a stream of texts, from [`SentenceEmbedder::embed_iter`].
#[derive(Debug)]
#[must_use = "nothing is computed until it is iterated over"]
pub struct EmbedIter<'a, I> {
    embedder: &'a SentenceEmbedder,
    options: EmbedOptions,
    texts: I,
    ready: std::vec::IntoIter<Vec<f32>>,
    /// Texts of the windows before this one.
    before: usize,
    failed: bool,
}

impl<'a, I> EmbedIter<'a, I> {
    pub(super) fn new(embedder: &'a SentenceEmbedder, options: EmbedOptions, texts: I) -> Self {
        Self { embedder, options, texts, ready: Vec::new().into_iter(), before: 0, failed: false }
    }
}

impl<S: AsRef<str> + Sync, I: Iterator<Item = S>> Iterator for EmbedIter<'_, I> {
    type Item = Result<Vec<f32>, LoadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(vector) = self.ready.next() {
            return Some(Ok(vector));
        }
        if self.failed {
            return None;
        }
        let (mut window, mut bytes) = (Vec::new(), 0);
        while window.len() < WINDOW_TEXTS && bytes < WINDOW_BYTES {
            let Some(text) = self.texts.next() else { break };
            bytes += text.as_ref().len();
            window.push(text);
        }
        match self.embedder.embed_for(Task::Any, &window, &self.options) {
            Ok(vectors) => {
                self.before += vectors.len();
                self.ready = vectors.into_iter();
                self.ready.next().map(Ok)
            }
            Err(error) => {
                self.failed = true;
                Some(Err(match error {
                    LoadError::NotFinite { row } => LoadError::NotFinite { row: self.before + row },
                    other => other,
                }))
            }
        }
    }
}

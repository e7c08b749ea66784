//! A compiled or exported graph in the place of a folder's encoder, whatever runs it.

use std::fmt::Debug;
use std::path::Path;

use crate::{Backend, LoadError, Output, TokenBatch, Tokens};

/// What runs a graph on rectangles of tokens.
pub(crate) trait Runs: Debug + Send + Sync {
    /// What it is called.
    fn backend(&self) -> Backend;

    /// The file.
    fn path(&self) -> &Path;

    /// Runs a batch as it is; gives the output `name`.
    fn run(&self, batch: &TokenBatch, name: &str) -> Result<Output, LoadError>;

    /// Groups texts of these lengths for it: lists of indices, every index in one of them.
    fn groups(&self, lengths: &[usize]) -> Vec<Vec<usize>>;
}

/// A graph, loaded, that gives one of the things wanted of it.
#[derive(Debug)]
pub(crate) struct Graph {
    runner: Box<dyn Runs>,
    output: String,
    /// Axes of the output: 3 for a vector for each token, 2 for a row for each text.
    axes: usize,
    pad_id: u32,
}

impl Graph {
    /// A graph whose output `output` has so many axes.
    pub(crate) fn new(runner: Box<dyn Runs>, output: impl Into<String>, axes: usize, pad_id: u32) -> Self {
        Self { runner, output: output.into(), axes, pad_id }
    }

    /// What runs it.
    pub(crate) fn backend(&self) -> Backend {
        self.runner.backend()
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        self.runner.path()
    }

    /// Whether it gives a vector for each token, rather than a row for each text.
    pub(crate) fn gives_tokens(&self) -> bool {
        self.axes == 3
    }

    /// An error that says that this graph does not do.
    pub(crate) fn misfit(&self, reason: &str) -> LoadError {
        let reason = format!("{} {reason}", self.path().display());
        LoadError::Backend { backend: self.backend(), reason }
    }

    /// Runs a batch as it is.
    pub(crate) fn forward(&self, batch: &TokenBatch) -> Result<Output, LoadError> {
        let output = self.runner.run(batch, &self.output)?;
        let fits = output.shape.len() == self.axes
            && output.shape[0] == batch.rows()
            && (self.axes == 2 || output.shape[1] == batch.seq())
            && output.shape[self.axes - 1] > 0;
        if fits {
            return Ok(output);
        }
        let asked = [batch.rows(), batch.seq()];
        Err(self.misfit(&format!(
            "gave `{}` of shape {:?} for tokens of shape {asked:?}",
            self.output, output.shape
        )))
    }

    /// Runs each text and gives `f` its index, what the graph gave for it (the vectors of its tokens, or its one row) and
    /// the length of a vector. Texts of like length run together.
    pub(crate) fn map_texts<T>(
        &self,
        texts: &[Tokens],
        f: impl Fn(usize, &[f32], usize) -> Result<T, LoadError>,
    ) -> Result<Vec<T>, LoadError> {
        let lengths: Vec<usize> = texts.iter().map(Tokens::len).collect();
        let mut results: Vec<Option<T>> = texts.iter().map(|_| None).collect();
        for group in self.runner.groups(&lengths) {
            let batch = TokenBatch::pad(group.iter().map(|index| &texts[*index]), self.pad_id);
            let found = self.map_batch(&batch, |row, values, width| f(group[row], values, width))?;
            for (index, value) in group.into_iter().zip(found) {
                results[index] = Some(value);
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// [`map_texts`](Self::map_texts) for the rows of a batch as it is.
    pub(crate) fn map_batch<T>(
        &self,
        batch: &TokenBatch,
        f: impl Fn(usize, &[f32], usize) -> Result<T, LoadError>,
    ) -> Result<Vec<T>, LoadError> {
        let Output { shape, values } = self.forward(batch)?;
        let width = shape[self.axes - 1];
        if !self.gives_tokens() {
            let rows = values.chunks_exact(width).enumerate();
            return rows.map(|(index, row)| f(index, row, width)).collect();
        }
        let masks = batch.mask().chunks_exact(batch.seq());
        let rows = values.chunks_exact(batch.seq() * width).zip(masks).enumerate();
        rows.map(|(index, (row, mask))| {
            // Without the vectors of padding, which is on either side or nowhere.
            let tokens = row.chunks_exact(width).zip(mask).filter(|(_, mask)| **mask == 1);
            f(index, &tokens.flat_map(|(vector, _)| vector).copied().collect::<Vec<_>>(), width)
        })
        .collect()
    }
}

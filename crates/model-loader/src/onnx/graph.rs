//! A folder's `model.onnx` in the place of its encoder.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::value::{Outlet, TensorElementType, ValueType};

use super::{OnnxRuntime, OnnxSession, Places, SessionError};
use crate::batch::rectangles;
use crate::{Backend, LoadError, Output, TokenBatch, Tokens, files};

/// Where a folder's graph may be: where this workspace puts it, and where Hub repositories have it.
const FILES: [&str; 2] = ["model.onnx", "onnx/model.onnx"];
const INPUTS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

/// A graph, loaded, that gives one of the things wanted of it.
#[derive(Debug)]
pub(crate) struct Graph {
    /// A session runs one batch at a time, on every core.
    session: Mutex<OnnxSession>,
    path: PathBuf,
    output: String,
    /// Axes of the output: 3 for a vector for each token, 2 for a row for each text.
    axes: usize,
    pad_id: u32,
}

impl Graph {
    /// The folder's graph, where there is one.
    pub(crate) fn file(dir: &Path) -> Result<Option<PathBuf>, LoadError> {
        for name in FILES {
            let path = dir.join(name);
            // Opened first: what is no regular file is refused before another library tries to read it.
            if files::open(&path)?.is_some() {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Loads the graph of the first of these folders that has one, which has to fit.
    pub(crate) fn find(dirs: &[&Path], outputs: &[(&str, usize)], pad_id: u32) -> Result<Self, LoadError> {
        for dir in dirs {
            if let Some(path) = Self::file(dir)? {
                return Self::open(path, outputs, pad_id);
            }
        }
        let dir = dirs.first().map(|dir| dir.display().to_string()).unwrap_or_default();
        let reason = format!(
            "{dir} holds no {}; `build-engine` writes one, or take the backend `cpu`",
            FILES.join(" and no ")
        );
        Err(LoadError::Backend { backend: Backend::OnnxRuntime, reason })
    }

    /// Loads the graph in a file for the first of the outputs that it has: `(name, axes)`.
    pub(crate) fn open(path: PathBuf, outputs: &[(&str, usize)], pad_id: u32) -> Result<Self, LoadError> {
        let misfit = |reason: String| LoadError::Backend {
            backend: Backend::OnnxRuntime,
            reason: format!("{} does not fit: {reason}", path.display()),
        };
        let runtime = OnnxRuntime::open(&Places::from_env()).map_err(|error| failed(&error))?;
        let session = runtime.load_file(&path).map_err(|error| failed(&error))?;
        for input in session.session.inputs() {
            let dims = dims(input, TensorElementType::Int64);
            if !INPUTS.contains(&input.name())
                || dims.is_none_or(|dims| dims.len() != 2 || dims.iter().any(|d| *d >= 0))
            {
                let found = input.dtype();
                return Err(misfit(format!(
                    "its input `{}` is {found:?}; inputs are {} of int64 and any size",
                    input.name(),
                    INPUTS.join(", ")
                )));
            }
        }
        let has = |(name, axes): &&(&str, usize)| {
            let output = session.session.outputs().iter().find(|output| output.name() == *name);
            output
                .and_then(|output| dims(output, TensorElementType::Float32))
                .is_some_and(|dims| dims.len() == *axes)
        };
        let Some((output, axes)) = outputs.iter().find(has) else {
            let wanted: Vec<_> =
                outputs.iter().map(|(name, axes)| format!("`{name}` of {axes} axes")).collect();
            return Err(misfit(format!("it has no float32 output {}", wanted.join(" or "))));
        };
        tracing::debug!(path = %path.display(), output, version = runtime.version, "graph loaded in ONNX Runtime");
        Ok(Self { session: Mutex::new(session), output: (*output).to_owned(), axes: *axes, path, pad_id })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it gives a vector for each token, rather than a row for each text.
    pub(crate) fn gives_tokens(&self) -> bool {
        self.axes == 3
    }

    /// Runs a batch as it is.
    pub(crate) fn forward(&self, batch: &TokenBatch) -> Result<Output, LoadError> {
        // A run that panicked left nothing behind: every run has its own inputs and outputs.
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let output = session.run(batch, &self.output).map_err(|error| failed(&error))?;
        let fits = output.shape.len() == self.axes
            && output.shape[0] == batch.rows()
            && (self.axes == 2 || output.shape[1] == batch.seq())
            && output.shape[self.axes - 1] > 0;
        if fits {
            return Ok(output);
        }
        let asked = [batch.rows(), batch.seq()];
        Err(LoadError::Backend {
            backend: Backend::OnnxRuntime,
            reason: format!(
                "{} gave `{}` of shape {:?} for tokens of shape {asked:?}",
                self.path.display(),
                self.output,
                output.shape
            ),
        })
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
        for group in rectangles(&lengths) {
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

/// The axes of a tensor of this type: −1 where any size goes.
fn dims(outlet: &Outlet, wanted: TensorElementType) -> Option<Vec<i64>> {
    match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } if *ty == wanted => Some(shape.iter().copied().collect()),
        _ => None,
    }
}

fn failed(error: &SessionError) -> LoadError {
    LoadError::Backend { backend: Backend::OnnxRuntime, reason: error.to_string() }
}

//! A folder's `model.onnx` in ONNX Runtime.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::value::{Outlet, TensorElementType, ValueType};

use super::{OnnxRuntime, OnnxSession, Places, SessionError};
use crate::batch::{CPU_TOKENS, rectangles};
use crate::graph::{Graph, Runs};
use crate::{Backend, LoadError, Output, TokenBatch, files};

/// Where a folder's graph may be: where this workspace puts it, and where Hub repositories have it.
const FILES: [&str; 2] = ["model.onnx", "onnx/model.onnx"];
const INPUTS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

/// A graph in ONNX Runtime.
#[derive(Debug)]
struct InOnnxRuntime {
    /// A session runs one batch at a time, on every core.
    session: Mutex<OnnxSession>,
    path: PathBuf,
}

impl Runs for InOnnxRuntime {
    fn backend(&self) -> Backend {
        Backend::OnnxRuntime
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn run(&self, batch: &TokenBatch, name: &str) -> Result<Output, LoadError> {
        // A run that panicked left nothing behind: every run has its own inputs and outputs.
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        session.run(batch, name).map_err(|error| failed(&error))
    }

    fn groups(&self, lengths: &[usize]) -> Vec<Vec<usize>> {
        rectangles(lengths, CPU_TOKENS)
    }
}

/// The folder's graph, where there is one.
fn file(dir: &Path) -> Result<Option<PathBuf>, LoadError> {
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
pub(crate) fn find(dirs: &[&Path], outputs: &[(&str, usize)], pad_id: u32) -> Result<Graph, LoadError> {
    for dir in dirs {
        if let Some(path) = file(dir)? {
            return open(path, outputs, pad_id);
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
fn open(path: PathBuf, outputs: &[(&str, usize)], pad_id: u32) -> Result<Graph, LoadError> {
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
        let wanted: Vec<_> = outputs.iter().map(|(name, axes)| format!("`{name}` of {axes} axes")).collect();
        return Err(misfit(format!("it has no float32 output {}", wanted.join(" or "))));
    };
    tracing::debug!(path = %path.display(), output, version = runtime.version, "graph loaded in ONNX Runtime");
    let (output, axes) = (*output, *axes);
    Ok(Graph::new(Box::new(InOnnxRuntime { session: Mutex::new(session), path }), output, axes, pad_id))
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

//! ONNX Runtime: its library found and opened at run time, and graphs run in it.
//!
//! Nothing is linked: a program without the library works as long as it does not ask for this. [`Places`] says where
//! it is looked for; the first library opened serves the whole process.

mod graph;
mod native;
mod places;
mod tensor;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::Environment;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;

pub(crate) use graph::find;
pub use places::{
    DEFAULT_RUNTIMES, MAKE_RUNTIMES, MissingRuntime, ONNXRUNTIME_VARIABLE, Places, RUNTIMES_VARIABLE,
};
pub use tensor::OnnxTensor;

use crate::{Output, TokenBatch};

/// Lets a graph that is only in memory point at weights in a folder (`onnxruntime_session_options_config_keys.h`).
const WEIGHTS_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// Why a graph cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// ONNX Runtime is not installed.
    #[error(transparent)]
    Missing(#[from] MissingRuntime),
    /// There is a library, but it cannot be used.
    #[error("{} cannot be used as ONNX Runtime: {reason}; `make runtimes` installs one that can", path.display())]
    Unusable {
        /// The library.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// ONNX Runtime refused the graph or failed to run it.
    #[error("ONNX Runtime could not {doing}: {reason}")]
    Refused {
        /// What it was doing.
        doing: &'static str,
        /// What it said.
        reason: String,
    },
}

/// ONNX Runtime, opened once for the whole process.
#[derive(Clone, Debug)]
pub struct OnnxRuntime {
    /// The library.
    pub path: PathBuf,
    /// What it says its version is.
    pub version: String,
    environment: Environment,
}

impl OnnxRuntime {
    /// Opens the library that is found in `places`. The first one opened serves the whole process.
    pub fn open(places: &impl AsRef<Places>) -> Result<Self, SessionError> {
        static OPENED: OnceLock<OnnxRuntime> = OnceLock::new();
        if let Some(opened) = OPENED.get() {
            return Ok(opened.clone());
        }
        let path = places.as_ref().onnxruntime()?;
        native::forbid_telemetry();
        let unusable = |reason: String| SessionError::Unusable { path: path.clone(), reason };
        let version = native::version(&path).map_err(|error| unusable(error.to_string()))?;
        let environment = ort::init_from(&path).map_err(|error| unusable(error.to_string()))?;
        let environment = environment
            .with_name("model-store")
            .with_telemetry(false)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(OPENED.get_or_init(|| Self { path: path.clone(), version, environment }).clone())
    }

    /// Loads the graph `onnx`, whose weights lie in `weights`, to be looked into: for a few runs, in which each node computes
    /// what it is written to compute. Runs on every core of this host, and leaves those that it waits for to others.
    pub fn load(&self, onnx: &[u8], weights: &Path) -> Result<OnnxSession, SessionError> {
        let refused = |error: ort::Error| refused(LOAD, &error);
        let session = self
            .builder(GraphOptimizationLevel::Level1)?
            .with_intra_op_spinning(false)
            .map_err(|error| refused(error.into()))?
            // It would keep a plan for, and the memory of, each shape that comes by: half as much again.
            .with_memory_pattern(false)
            .map_err(|error| refused(error.into()))?
            .with_config_entry(WEIGHTS_FOLDER, &*weights.to_string_lossy())
            .map_err(|error| refused(error.into()))?
            .commit_from_memory(onnx)
            .map_err(refused)?;
        Ok(OnnxSession { session })
    }

    /// Loads the graph in a file, whose weights lie in it or beside it. Runs on every core of this host.
    pub fn load_file(&self, onnx: &Path) -> Result<OnnxSession, SessionError> {
        let session = self
            .builder(GraphOptimizationLevel::All)?
            .commit_from_file(onnx)
            .map_err(|error| refused(LOAD, &error))?;
        Ok(OnnxSession { session })
    }

    fn builder(&self, level: GraphOptimizationLevel) -> Result<SessionBuilder, SessionError> {
        Session::builder(&self.environment)
            .map_err(|error| refused(LOAD, &error))?
            .with_optimization_level(level)
            .map_err(|error| refused(LOAD, &error.into()))
    }
}

const LOAD: &str = "load the graph";
const RUN: &str = "run the graph";

fn refused(doing: &'static str, error: &ort::Error) -> SessionError {
    SessionError::Refused { doing, reason: error.to_string() }
}

/// A loaded graph.
#[derive(Debug)]
pub struct OnnxSession {
    session: Session,
}

impl OnnxSession {
    /// Runs one batch and returns the output `name` as fp32.
    pub fn run(&mut self, batch: &TokenBatch, name: &str) -> Result<Output, SessionError> {
        let mut found = None;
        self.run_each(batch, &[name], |_, output| found = Some(output))?;
        found.ok_or_else(|| no_output(name))
    }

    /// Runs one batch and shows each of the outputs `names` as fp32, with its place in `names`.
    pub fn run_each(
        &mut self,
        batch: &TokenBatch,
        names: &[&str],
        mut show: impl FnMut(usize, Output),
    ) -> Result<(), SessionError> {
        let refused = |error: ort::Error| refused(RUN, &error);
        let shape = [batch.rows(), batch.seq()];
        let mut feed: Vec<(String, SessionInputValue<'_>)> = Vec::new();
        for input in self.session.inputs() {
            let values = match input.name() {
                "input_ids" => batch.ids_i64(),
                "attention_mask" => batch.mask_i64(),
                "token_type_ids" => batch.type_ids_i64(),
                other => {
                    let reason = format!("it asks for an input {other:?} that a tokenizer does not give");
                    return Err(SessionError::Refused { doing: RUN, reason });
                }
            };
            feed.push((
                input.name().to_owned(),
                Tensor::from_array((shape, values)).map_err(refused)?.into(),
            ));
        }
        let outputs = self.session.run(feed).map_err(refused)?;
        for (place, name) in names.iter().enumerate() {
            let output = outputs.get(*name).ok_or_else(|| no_output(name))?;
            let (shape, values) = output.try_extract_tensor::<f32>().map_err(refused)?;
            let shape = shape.iter().map(|&size| usize::try_from(size).unwrap_or_default()).collect();
            show(place, Output { shape, values: values.to_vec() });
        }
        Ok(())
    }

    /// The names of its inputs, in order.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.session.inputs().iter().map(ort::value::Outlet::name)
    }

    /// Runs the graph with these inputs, which are all of its own, and returns all outputs by name, in order.
    pub fn run_named(
        &mut self,
        inputs: Vec<(String, OnnxTensor)>,
    ) -> Result<Vec<(String, OnnxTensor)>, SessionError> {
        let feed: Vec<(String, SessionInputValue<'_>)> =
            inputs.into_iter().map(|(name, tensor)| (name, tensor.into_value().into())).collect();
        let outputs = self.session.run(feed).map_err(|error| refused(RUN, &error))?;
        Ok(outputs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), OnnxTensor::from_value(value)))
            .collect())
    }
}

fn no_output(name: &str) -> SessionError {
    SessionError::Refused { doing: RUN, reason: format!("it has no output {name:?}") }
}

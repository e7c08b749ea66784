//! The graph as the builder of an engine gets it.
//!
//! A `Cast` on a weight costs nothing where the graph is stored, and much in TensorRT, which turns each number by itself
//! (22 million of them in half a second), and holds both forms. So the builder reads weights in the graph's own precision
//! out of a file that lives as long as it does. The numbers are those that the casts would have given.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use model_store::Staging;
use onnx_export::{Checkpoint, ExportError};

use super::Run;
use crate::engine::{EngineRequest, PlanTrait};
use crate::error::CompileError;
use crate::interrupt::Interrupted;
use crate::job::Plan;

/// Names of the graph and of its weights, beside the model's own, which is the only place that a graph can point at.
const FILES: [&str; 2] = ["building.onnx", "building.safetensors"];

/// What the builder is asked, and the files that are there for it alone: dropping this removes them.
pub(super) struct BuilderGraph {
    request: EngineRequest,
    files: Vec<PathBuf>,
}

impl BuilderGraph {
    pub(super) fn request(&self) -> &EngineRequest {
        &self.request
    }
}

impl Drop for BuilderGraph {
    fn drop(&mut self) {
        for file in &self.files {
            // Where it was not written there is nothing to remove; what cannot be removed goes with the staging, or is told
            // of when it is published.
            let _ = fs::remove_file(file);
        }
    }
}

impl Run<'_> {
    /// The graph for the builder: without casts of weights, where it has any and there is room on the disk.
    pub(super) fn graph_for_builder(
        &self,
        staging: &Staging,
        plan: &Plan,
        request: &EngineRequest,
    ) -> Result<BuilderGraph, CompileError> {
        let as_stored = BuilderGraph { request: request.clone(), files: Vec::new() };
        // Weights that an engine gets later go by the names that they are stored under.
        let stripped = request.options.traits.contains(&PlanTrait::Stripped);
        let taken = plan.files.iter().any(|file| FILES.contains(&file.as_str()));
        if stripped || taken || plan.given.is_some() {
            return Ok(as_stored);
        }
        let checkpoint = Checkpoint::open(staging.path())?;
        let (exported, weights) = onnx_export::materialise(&checkpoint, plan.exported.clone(), FILES[1])?;
        let Some(weights) = weights else { return Ok(as_stored) };
        let [graph, data] = FILES.map(|name| staging.path().join(name));
        let own = BuilderGraph {
            request: EngineRequest { onnx: graph.clone(), ..request.clone() },
            files: vec![graph.clone(), data.clone()],
        };
        let write = || {
            let io = |path: PathBuf| move |source| ExportError::Io { doing: "write", path, source };
            fs::write(&graph, &exported.onnx).map_err(io(graph.clone()))?;
            let mut file = File::create_new(&data).map_err(io(data.clone()))?;
            weights.write(&checkpoint, &mut file, &mut |_| {
                self.interrupt.check().map_err(|stopped| io::Error::new(io::ErrorKind::Interrupted, stopped))
            })
        };
        match write() {
            Ok(()) => Ok(own),
            Err(ExportError::Io { source, .. }) if source.kind() == io::ErrorKind::Interrupted => {
                Err(CompileError::Interrupted(Interrupted))
            }
            // A full disk: the builder casts by itself, and what is wrong else shows there.
            Err(_) => Ok(as_stored),
        }
    }
}

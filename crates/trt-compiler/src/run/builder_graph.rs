//! The graph as the builder of an engine gets it, and as it is checked then.
//!
//! A `Cast` on a weight costs nothing where the graph is stored, and much in TensorRT, which turns each number by itself
//! (22 million of them in half a second). So the builder reads weights in the graph's own precision out of a file that lives
//! as long as it does. The numbers are those that the casts would have given, and the gate sees it: what it runs is the graph
//! that the builder gets.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model_store::Staging;
use onnx_export::{Checkpoint, ConvertedWeights, ExportError};

use super::{GRAPH, Run};
use crate::engine::PlanTrait;
use crate::error::CompileError;
use crate::interrupt::Interrupted;
use crate::job::Plan;

/// Names of the graph and of its weights, beside the model's own, which is the only place that a graph can point at.
const BUILDING: &str = "building.onnx";
const WEIGHTS: &str = "building.safetensors";

/// A graph for a builder, and the files that are there for it alone: they go with the last who has this.
#[derive(Clone)]
pub(super) struct BuilderGraph {
    onnx: PathBuf,
    own: Option<Arc<Scratch>>,
}

struct Scratch {
    files: [PathBuf; 2],
    weights: ConvertedWeights,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for file in &self.files {
            // Where it was not written there is nothing to remove; what cannot be removed goes with the staging, or is told
            // of when it is published.
            let _ = fs::remove_file(file);
        }
    }
}

impl BuilderGraph {
    /// The graph of the version itself.
    pub(super) fn as_stored(staging: &Staging) -> Self {
        Self { onnx: staging.path().join(GRAPH), own: None }
    }

    pub(super) fn onnx(&self) -> &Path {
        &self.onnx
    }

    /// Another graph of the same model, with the weights that this one reads, if it casts them to the same.
    pub(super) fn with_its_weights(&self, staging: &Staging, onnx: Vec<u8>) -> Result<Vec<u8>, CompileError> {
        let Some(own) = &self.own else { return Ok(onnx) };
        let checkpoint = Checkpoint::open(staging.path())?;
        let alike = onnx_export::materialise_graph(&checkpoint, &onnx, WEIGHTS)?
            .filter(|(_, weights)| weights.same_file(&own.weights));
        Ok(alike.map_or(onnx, |(onnx, _)| onnx))
    }
}

impl Run<'_> {
    /// The graph for a builder: without casts of weights, where it has any and there is room on the disk.
    pub(super) fn graph_for_builder(
        &self,
        staging: &Staging,
        plan: &Plan,
    ) -> Result<BuilderGraph, CompileError> {
        let as_stored = BuilderGraph::as_stored(staging);
        // Weights that an engine gets later go by the names that they are stored under.
        let stripped = self.job.options.traits.contains(&PlanTrait::Stripped);
        let taken = plan.files.iter().any(|file| [BUILDING, WEIGHTS].contains(&file.as_str()));
        if stripped || taken || plan.given.is_some() {
            return Ok(as_stored);
        }
        let checkpoint = Checkpoint::open(staging.path())?;
        let Some((onnx, weights)) =
            onnx_export::materialise_graph(&checkpoint, &plan.exported.onnx, WEIGHTS)?
        else {
            return Ok(as_stored);
        };
        let [graph, data] = [BUILDING, WEIGHTS].map(|name| staging.path().join(name));
        let own = Arc::new(Scratch { files: [graph.clone(), data.clone()], weights });
        let write = || {
            let io = |path: &Path| {
                let path = path.to_owned();
                move |source| ExportError::Io { doing: "write", path, source }
            };
            fs::write(&graph, &onnx).map_err(io(&graph))?;
            let mut file = File::create_new(&data).map_err(io(&data))?;
            own.weights.write(&checkpoint, &mut file, &mut |_| {
                self.interrupt.check().map_err(|stopped| io::Error::new(io::ErrorKind::Interrupted, stopped))
            })
        };
        match write() {
            Ok(()) => Ok(BuilderGraph { onnx: graph.clone(), own: Some(Arc::clone(&own)) }),
            Err(ExportError::Io { source, .. }) if source.kind() == io::ErrorKind::Interrupted => {
                Err(CompileError::Interrupted(Interrupted))
            }
            // A full disk: the builder casts by itself, and what is wrong else shows there.
            Err(_) => Ok(as_stored),
        }
    }
}

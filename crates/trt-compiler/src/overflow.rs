//! Modules that fp16 is too narrow for: found in an fp32 run over texts, and in the weights.

use std::collections::BTreeMap;
use std::path::Path;

use model_loader::TokenBatch;
use onnx_export::{Checkpoint, ExportOptions, F16_MAX, Precision, RangeProbe};
use serde::Serialize;

use crate::calibrate::largest_magnitude;
use crate::error::CompileError;
use crate::interrupt::Interrupt;
use crate::session::OnnxRuntime;

/// What happens to modules whose values fp16 cannot hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// They are looked for, and compute in fp32.
    #[default]
    KeepInFp32,
    /// They are not looked for; the gate refuses what comes of them.
    LetBe,
}

/// What fp16 is trusted with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// The largest magnitude of an activation. A hundredth of what fp16 holds: texts to come may go further than those that
    /// were seen, and a sum of squares or a product gets far larger than what goes into it.
    pub activation: f32,
    /// The largest magnitude of a weight: what fp16 holds, since weights are all known.
    pub weight: f32,
}

impl Limits {
    /// The ones that are in force.
    pub const DEFAULT: Self = Self { activation: 512.0, weight: F16_MAX };
}

/// A module that computes in fp32 because fp16 is too narrow for it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Widened {
    /// Its name, as Hugging Face has it.
    pub module: String,
    /// The largest magnitude that it makes or takes, or of its weights.
    pub largest: f32,
    /// Of what: the node that makes it, or the tensor.
    pub of: String,
}

/// What was looked for, and found.
#[derive(Clone, Debug, Serialize)]
pub struct OverflowRecord {
    /// What counts as too large.
    pub limits: Limits,
    /// What the graph that was watched computed in: fp16 if it was the one that was checked, and nothing in it was too
    /// large.
    pub computed_in: Precision,
    /// Where the texts were from.
    pub source: String,
    /// Number of texts.
    pub texts: usize,
    /// SHA-256 of the texts, joined by line feeds.
    pub texts_sha256: String,
    /// Values of the graph that were watched.
    pub watched: usize,
    /// The largest magnitude of them.
    pub largest: f32,
    /// The modules that compute in fp32 for it, by name.
    pub modules: Vec<Widened>,
}

/// What is asked for.
pub(crate) struct Request<'a> {
    pub(crate) runtime: &'a OnnxRuntime,
    /// The model's files.
    pub(crate) folder: &'a Path,
    /// Those of the fp16 graph.
    pub(crate) options: &'a ExportOptions,
    pub(crate) limits: Limits,
    pub(crate) batches: &'a [TokenBatch],
    pub(crate) interrupt: &'a Interrupt,
}

/// What a look gives.
#[derive(Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) watched: usize,
    pub(crate) largest: f32,
    pub(crate) modules: Vec<Widened>,
}

/// The largest magnitude of each value that is watched, as a graph tells them beside what it is run for.
pub(crate) struct Watch {
    probe: RangeProbe,
    limits: Limits,
    seen: Vec<f32>,
}

impl Watch {
    /// Watches the graph of these options itself, in fp16.
    pub(crate) fn of_graph(
        folder: &Path,
        options: &ExportOptions,
        limits: Limits,
    ) -> Result<Self, CompileError> {
        Ok(Self::new(onnx_export::range_watch(&Checkpoint::open(folder)?, options)?, limits))
    }

    fn new(probe: RangeProbe, limits: Limits) -> Self {
        let seen = vec![0.0; probe.outputs.len()];
        Self { probe, limits, seen }
    }

    /// The graph that tells.
    pub(crate) fn onnx(&self) -> &[u8] {
        &self.probe.onnx
    }

    /// The outputs that tell.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = &str> {
        self.probe.outputs.iter().map(String::as_str)
    }

    /// Takes what the output at `place` gave.
    pub(crate) fn see(&mut self, place: usize, values: &[f32]) {
        // What is no number was infinite before.
        let magnitudes = values.iter().map(|x| if x.is_nan() { f32::INFINITY } else { *x });
        self.seen[place] = magnitudes.fold(self.seen[place], f32::max);
    }

    /// Whether anything was too large so far.
    pub(crate) fn is_over(&self) -> bool {
        self.seen.iter().any(|largest| *largest > self.limits.activation)
    }

    /// Weights that are too large, and the modules they belong to. `progress` hears how many of how many were read.
    pub(crate) fn weights(
        &self,
        folder: &Path,
        interrupt: &Interrupt,
        progress: impl Fn(usize, usize),
    ) -> Result<Vec<Widened>, CompileError> {
        let checkpoint = Checkpoint::open(folder)?;
        let mut found = Vec::new();
        for (done, (tensor, owners)) in self.probe.weights.iter().enumerate() {
            interrupt.check()?;
            progress(done, self.probe.weights.len());
            let largest = largest_magnitude(&checkpoint, tensor)?;
            if largest > self.limits.weight {
                let modules = owners.iter().filter(|module| !module.is_empty());
                found.extend(modules.map(|module| Widened {
                    module: module.clone(),
                    largest,
                    of: tensor.clone(),
                }));
            }
        }
        Ok(found)
    }

    /// What was found, given the weights that are too large.
    pub(crate) fn found(&self, weights: Vec<Widened>) -> Found {
        let mut modules = BTreeMap::new();
        for too_large in self.probe.over(&self.seen, self.limits.activation) {
            let onnx_export::TooLarge { module, largest, node } = too_large;
            modules.insert(module.clone(), Widened { module, largest, of: node });
        }
        for widened in weights {
            modules.entry(widened.module.clone()).or_insert(widened);
        }
        let largest = self.seen.iter().copied().fold(0.0, f32::max);
        Found { watched: self.seen.len(), largest, modules: modules.into_values().collect() }
    }
}

/// Runs the graph in fp32 over the batches, reads the weights, and names the modules that are over the limits.
///
/// `progress` hears how many of how many parts are done: batches, then weights.
pub(crate) fn look(request: &Request<'_>, progress: impl Fn(usize, usize)) -> Result<Found, CompileError> {
    let Request { runtime, folder, options, limits, batches, interrupt } = *request;
    let mut watch = Watch::new(onnx_export::range_probe(&Checkpoint::open(folder)?, options)?, limits);
    let parts = batches.len() + watch.probe.weights.len();
    let mut session = runtime.load(watch.onnx(), folder)?;
    let names = watch.probe.outputs.clone();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (done, batch) in batches.iter().enumerate() {
        interrupt.check()?;
        progress(done, parts);
        session.run_each(batch, &names, |place, output| watch.see(place, &output.values))?;
    }
    drop(session);
    let weights = watch.weights(folder, interrupt, |done, _| progress(batches.len() + done, parts))?;
    Ok(watch.found(weights))
}

impl Widened {
    /// Why it is in fp32, for the report of the graph.
    pub(crate) fn why(&self) -> String {
        format!("{} has magnitudes up to {:.3e}, too large for fp16", self.of, self.largest)
    }
}

//! Where a graph parts from the same graph in fp32: the first node whose value leaves the tolerance.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::Path;

use model_loader::{Output, TokenBatch};
use onnx_export::{Checkpoint, ExportOptions, Precision, Probe, Ranges};
use serde::Serialize;

use crate::error::CompileError;
use crate::gate::Thresholds;
use crate::interrupt::Interrupt;
use crate::session::OnnxRuntime;

/// Where two graphs part, on one text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explanation {
    /// The text, counted from 1.
    pub text: usize,
    /// Number of nodes that both graphs have, by name.
    pub nodes: usize,
    /// How many of them come before the first that is not within the tolerance.
    pub agree: usize,
    /// The first that is not.
    pub first: Option<Deviation>,
}

/// A node whose value is too far from that in fp32.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Deviation {
    /// The node: its module and its operator.
    pub node: String,
    /// The operator.
    pub operator: String,
    /// Largest absolute difference.
    pub max_abs: f32,
    /// Largest absolute difference that was allowed.
    pub allowed: f64,
    /// Largest absolute value in fp32.
    pub reference_max: f32,
    /// Values that are no numbers, or infinite, and are not so in fp32.
    pub not_finite: usize,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, nodes, agree, first } = self;
        let Some(Deviation { node, max_abs, allowed, reference_max, not_finite, .. }) = first else {
            return write!(
                f,
                "on text {text}, all {nodes} nodes are within the tolerance of the same graph in fp32: the difference is not one of precision"
            );
        };
        write!(
            f,
            "on text {text}, {agree} of {nodes} nodes agree with the same graph in fp32; the first that does not is\n    {node}: "
        )?;
        match not_finite {
            0 => write!(f, "max abs {max_abs:.2e} (allowed {allowed:.2e})")?,
            count => write!(f, "{count} values are infinite or no numbers")?,
        }
        write!(f, ", where fp32 has up to {reference_max:.2e}")?;
        match node.rsplit_once('/') {
            Some((module, _)) if !module.is_empty() => write!(f, "; try --keep-fp32 '{module}'"),
            _ => Ok(()),
        }
    }
}

/// Nodes whose values are held at a time, of both graphs. A value is at most a vector for each token of one text, or a
/// score for each pair of them, so some tens of megabytes for a BERT and a few hundred for a model of billions.
const WINDOW: usize = 64;

/// What is compared.
pub(crate) struct Request<'a> {
    pub(crate) runtime: &'a OnnxRuntime,
    /// The model's files.
    pub(crate) folder: &'a Path,
    /// How the graph that was judged was written. What a cache changes is left out: its graph computes whole texts here.
    pub(crate) options: &'a ExportOptions,
    pub(crate) thresholds: Thresholds,
    /// The number of the text and its tokens, without padding.
    pub(crate) text: (usize, &'a TokenBatch),
    pub(crate) interrupt: &'a Interrupt,
}

/// Runs both graphs on one text and compares what their nodes make, in the order in which they are computed, a window of
/// them at a time.
pub(crate) fn explain(request: &Request<'_>) -> Result<Explanation, CompileError> {
    let Request { options, thresholds, text: (text, _), .. } = *request;
    let judged = ExportOptions { head: options.head.without_cache(), ..options.clone() };
    let exact = ExportOptions {
        precision: Precision::Fp32,
        keep_fp32: Vec::new(),
        too_large: BTreeMap::new(),
        ranges: Ranges::new(),
        ..judged.clone()
    };
    let checkpoint = Checkpoint::open(request.folder)?;
    let judged = onnx_export::export(&checkpoint, &judged)?.onnx;
    let exact = onnx_export::export(&checkpoint, &exact)?.onnx;
    let unreadable = |error| unreadable(request, error);
    let known = onnx_export::node_names(&exact).map_err(unreadable)?;
    let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
    let names = onnx_export::node_names(&judged).map_err(unreadable)?;
    let common: Vec<&str> = names.iter().map(String::as_str).filter(|node| known.contains(node)).collect();
    let mut explanation = Explanation { text, nodes: common.len(), agree: 0, first: None };
    for window in common.chunks(WINDOW) {
        let window: BTreeSet<&str> = window.iter().copied().collect();
        let expected: HashMap<String, Output> = values(request, &exact, &window)?
            .into_iter()
            .map(|(probe, output)| (probe.node, output))
            .collect();
        for (probe, found) in values(request, &judged, &window)? {
            // Where attention is one operator in one graph and written out in the other, names may meet by chance.
            let expected = expected.get(&probe.node).filter(|expected| expected.shape == found.shape);
            explanation.first = expected.and_then(|expected| deviation(&probe, expected, &found, thresholds));
            if explanation.first.is_some() {
                return Ok(explanation);
            }
            explanation.agree += 1;
        }
    }
    Ok(explanation)
}

fn unreadable(request: &Request<'_>, error: prost::DecodeError) -> CompileError {
    CompileError::Io {
        doing: "read the graph of",
        path: request.folder.to_owned(),
        source: std::io::Error::other(error),
    }
}

fn values(
    request: &Request<'_>,
    onnx: &[u8],
    nodes: &BTreeSet<&str>,
) -> Result<Vec<(Probe, Output)>, CompileError> {
    request.interrupt.check()?;
    let (onnx, probes) = onnx_export::probe(onnx, nodes).map_err(|error| unreadable(request, error))?;
    let mut session = request.runtime.load(&onnx, request.folder)?;
    let names: Vec<&str> = probes.iter().map(|probe| probe.output.as_str()).collect();
    let mut outputs = Vec::with_capacity(names.len());
    session.run_each(request.text.1, &names, |_, output| outputs.push(output))?;
    Ok(probes.into_iter().zip(outputs).collect())
}

fn deviation(probe: &Probe, expected: &Output, found: &Output, thresholds: Thresholds) -> Option<Deviation> {
    let pairs = || expected.values.iter().zip(&found.values);
    let reference_max =
        expected.values.iter().filter(|x| x.is_finite()).fold(0.0_f32, |max, x| max.max(x.abs()));
    let not_finite = pairs().filter(|(a, b)| a.is_finite() && !b.is_finite()).count();
    let max_abs = pairs().map(|(a, b)| (a - b).abs()).filter(|x| x.is_finite()).fold(0.0, f32::max);
    let allowed = thresholds.max_abs * f64::from(reference_max.max(1.0));
    (not_finite > 0 || f64::from(max_abs) > allowed).then(|| Deviation {
        node: probe.node.clone(),
        operator: probe.operator.clone(),
        max_abs,
        allowed,
        reference_max,
        not_finite,
    })
}

//! What the activations of a model are like: the ranges of its 8-bit products, from real text.

mod histogram;
mod search;
mod weights;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use model_loader::TokenBatch;
use onnx_export::{Checkpoint, ExportOptions, LinearRange, Precision, Ranges, Tap};
use serde::Serialize;

use self::histogram::Histogram;
use self::search::Sample;
pub(crate) use self::weights::{each_row, largest_magnitude};
use crate::error::CompileError;
use crate::interrupt::Interrupt;
use crate::session::OnnxRuntime;

/// How the range of an activation is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The range, and the smoothing, with which the layer's products on a sample are nearest to those in fp32.
    #[default]
    Error,
    /// The largest magnitude that was seen.
    Max,
    /// The magnitude that all but 1 of 10,000 values stay below.
    Percentile,
    /// The one that loses the least information (Migacz, "8-bit Inference with TensorRT", 2017).
    Entropy,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Error, Self::Max, Self::Percentile, Self::Entropy];
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Max => "max",
            Self::Percentile => "percentile",
            Self::Entropy => "entropy",
        })
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|method| method.to_string() == word)
            .ok_or_else(|| format!("{word:?} is no method; one of error, max, percentile, entropy"))
    }
}

/// What is asked for.
pub(crate) struct Request<'a> {
    pub(crate) runtime: &'a OnnxRuntime,
    /// The model's files.
    pub(crate) folder: &'a Path,
    /// Those of the 8-bit graph.
    pub(crate) options: &'a ExportOptions,
    pub(crate) method: Method,
    pub(crate) batches: &'a [TokenBatch],
    pub(crate) interrupt: &'a Interrupt,
}

/// Finds the ranges of every linear layer: of its input from an fp32 run over the batches, of its weight from the file.
///
/// `progress` hears how many of how many parts are done: batches, then layers.
pub(crate) fn ranges(request: &Request<'_>, progress: impl Fn(usize, usize)) -> Result<Ranges, CompileError> {
    let Request { runtime, folder, options, method, batches, interrupt } = *request;
    let checkpoint = Checkpoint::open(folder)?;
    let tapped = ExportOptions {
        head: options.head.without_cache(),
        precision: Precision::Fp32,
        taps: true,
        keep_fp32: Vec::new(),
        ranges: Ranges::new(),
        ..options.clone()
    };
    let exported = onnx_export::export(&checkpoint, &tapped)?;
    let mut session = runtime.load(&exported.onnx, folder)?;
    let names: Vec<&str> = exported.taps.iter().map(|tap| tap.output.as_str()).collect();
    let (mut groups, group_of) = grouped(&exported.taps, &checkpoint, method)?;
    let parts = batches.len() + groups.len();
    for (done, batch) in batches.iter().enumerate() {
        interrupt.check()?;
        progress(done, parts);
        session.run_each(batch, &names, |place, output| {
            let group = &mut groups[group_of[place]];
            let rows = output.values.chunks(group.width);
            if rows.len() == batch.mask().len() {
                // What padding gives nobody reads.
                let kept = rows.zip(batch.mask()).filter(|(_, mask)| **mask == 1);
                kept.for_each(|(row, _)| group.seen.add(row));
            } else {
                // Not of the text's tokens: DeBERTa's places, or a row for each text.
                rows.for_each(|row| group.seen.add(row));
            }
        })?;
    }
    drop(session);
    let mut ranges = Ranges::new();
    for (done, group) in groups.into_iter().enumerate() {
        interrupt.check()?;
        progress(batches.len() + done, parts);
        ranges.extend(group.seen.ranges(&checkpoint, &group.layers, method, options.precision)?);
    }
    Ok(ranges)
}

/// Layers whose inputs have one range and one smoothing, and what was seen of these inputs.
struct Group {
    layers: Vec<String>,
    /// Elements of an input row.
    width: usize,
    seen: Seen,
}

/// Taps with a layer in common belong together: query, key and value have one input, and ALBERT's layers, or those that
/// `DeBERTa`'s places go through, have several. Also gives the group of each tap.
fn grouped(
    taps: &[Tap],
    checkpoint: &Checkpoint,
    method: Method,
) -> Result<(Vec<Group>, Vec<usize>), CompileError> {
    let mut sets: Vec<BTreeSet<&String>> = Vec::new();
    for tap in taps {
        let mut set: BTreeSet<&String> = tap.layers.iter().collect();
        sets.retain(|known| {
            let apart = known.is_disjoint(&set);
            if !apart {
                set.extend(known);
            }
            apart
        });
        sets.push(set);
    }
    let group_of = |tap: &Tap| sets.iter().position(|set| tap.layers.iter().any(|layer| set.contains(layer)));
    let places = taps.iter().map(|tap| group_of(tap).unwrap_or_default()).collect();
    let group = |set: BTreeSet<&String>| {
        let layers: Vec<String> = set.into_iter().cloned().collect();
        let weight = layers.first().map(|layer| checkpoint.tensor(&format!("{layer}.weight"))).transpose()?;
        let width = weight.and_then(|weight| weight.shape.get(1).copied()).unwrap_or_default().max(1);
        Ok(Group { layers, width, seen: Seen::new(method) })
    };
    let groups = sets.clone().into_iter().map(group).collect::<Result<_, CompileError>>()?;
    Ok((groups, places))
}

/// What was seen at one tap.
enum Seen {
    Sample(Sample),
    Histogram(Histogram),
}

impl Seen {
    fn new(method: Method) -> Self {
        match method {
            Method::Error => Self::Sample(Sample::default()),
            Method::Max | Method::Percentile | Method::Entropy => Self::Histogram(Histogram::default()),
        }
    }

    fn add(&mut self, row: &[f32]) {
        match self {
            Self::Sample(sample) => sample.add(row),
            Self::Histogram(histogram) => histogram.add(row),
        }
    }

    /// The ranges of the layers that this goes into.
    fn ranges(
        self,
        checkpoint: &Checkpoint,
        layers: &[String],
        method: Method,
        precision: Precision,
    ) -> Result<Vec<(String, LinearRange)>, CompileError> {
        let (input, smoothing) = match self {
            Self::Sample(sample) => {
                let weights: Vec<Vec<f32>> =
                    layers.iter().map(|layer| weights::read(checkpoint, layer)).collect::<Result<_, _>>()?;
                sample.search(&weights, precision)
            }
            Self::Histogram(histogram) => (histogram.range(method), Vec::new()),
        };
        let of_layer = |layer: &String| {
            let mut weight = Vec::new();
            weights::each_row(checkpoint, layer, |row| weight.push(search::largest(row, &smoothing)))?;
            Ok((layer.clone(), LinearRange { input, weight, smoothing: smoothing.clone() }))
        };
        layers.iter().map(of_layer).collect()
    }
}

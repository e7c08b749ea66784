//! What a graph in fp16 could not hold: values of the same graph in fp32, and the modules that make and take them.
//!
//! fp16 ends at 65504, and what is larger becomes infinite. So the graph is written twice: in the precision that is wanted,
//! which says what would be held in fp16 and where it goes, and in fp32, which says how large it gets.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost::Message;

use crate::export::{self, Written};
use crate::probe;
use crate::proto::{AttributeProto, ModelProto, NodeProto};
use crate::{Checkpoint, DataType, ExportError, ExportOptions, Precision, Ranges};

/// The largest number of fp16.
pub const F16_MAX: f32 = 65_504.0;

/// A node of the graph under construction: what `range` and the report know it by.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) node: String,
    /// The module it was written in; empty for what is shared.
    pub(crate) module: String,
    pub(crate) dtype: DataType,
}

/// A graph that gives the largest magnitude of every value which the graph that was asked for holds in fp16.
#[derive(Clone, Debug)]
pub struct RangeProbe {
    /// The graph.
    pub onnx: Vec<u8>,
    /// Names of those of its outputs that are the largest magnitudes, each one number in fp32.
    pub outputs: Vec<String>,
    /// Weights that would be turned into fp16, by tensor name, and the modules that they belong to.
    pub weights: BTreeMap<String, BTreeSet<String>>,
    /// The node behind each output.
    nodes: Vec<String>,
    /// The modules that make or take the value of each.
    touched: Vec<BTreeSet<String>>,
}

/// A module that fp16 is too narrow for.
#[derive(Clone, Debug, PartialEq)]
pub struct TooLarge {
    /// Its name, as [`ExportOptions::too_large`] wants it.
    pub module: String,
    /// The largest magnitude that it makes or takes.
    pub largest: f32,
    /// The node that makes it.
    pub node: String,
}

impl RangeProbe {
    /// The modules that make or take a value over `limit`, given the largest magnitude that was seen at each of
    /// [`outputs`](Self::outputs); by name.
    #[must_use]
    pub fn over(&self, seen: &[f32], limit: f32) -> Vec<TooLarge> {
        let mut found: BTreeMap<&str, TooLarge> = BTreeMap::new();
        let large = self.touched.iter().zip(&self.nodes).zip(seen).filter(|(_, largest)| **largest > limit);
        for ((modules, node), &largest) in large {
            for module in modules {
                let entry = TooLarge { module: module.clone(), largest, node: node.clone() };
                let known = found.entry(module).or_insert_with(|| entry.clone());
                if known.largest < largest {
                    *known = entry;
                }
            }
        }
        found.into_values().collect()
    }
}

/// The probe for a graph of these options, whose precision computes in fp16: a graph in fp32, which knows how large each
/// value gets. It has the inputs of a graph without a cache, and no other outputs.
pub fn range_probe(checkpoint: &Checkpoint, options: &ExportOptions) -> Result<RangeProbe, ExportError> {
    let short = ExportOptions { head: options.head.without_cache(), taps: false, ..options.clone() };
    let exact = ExportOptions {
        precision: Precision::Fp32,
        keep_fp32: Vec::new(),
        too_large: BTreeMap::new(),
        ranges: Ranges::new(),
        ..short.clone()
    };
    let short = export::written(checkpoint, &short)?;
    let exact = export::written(checkpoint, &exact)?;
    let held = Held::of(&short);
    let mut model = exact.model;
    if let Some(graph) = model.graph.as_mut() {
        graph.output.clear();
    }
    Ok(watched(model, &exact.made, DataType::F32, &held, short.narrowed))
}

/// The graph of these options itself, with the magnitudes beside its own outputs: it tells that fp16 is too narrow, since
/// what it cannot hold becomes infinite, though not how large things would have become.
pub fn range_watch(checkpoint: &Checkpoint, options: &ExportOptions) -> Result<RangeProbe, ExportError> {
    let written = export::written(checkpoint, options)?;
    let held = Held::of(&written);
    Ok(watched(written.model, &written.made, DataType::F16, &held, written.narrowed))
}

/// The graph, with the largest magnitudes of what it makes in `dtype` and the other holds in fp16.
fn watched(
    mut model: ModelProto,
    made: &[Made],
    dtype: DataType,
    held: &Held,
    weights: BTreeMap<String, BTreeSet<String>>,
) -> RangeProbe {
    let made: BTreeSet<&str> =
        made.iter().filter(|it| it.dtype == dtype).map(|it| it.node.as_str()).collect();
    let (mut nodes, mut touched, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    if let Some(graph) = model.graph.as_mut() {
        let mut added = Vec::new();
        for node in &graph.node {
            let (Some(name), Some(value)) = (&node.name, node.output.first()) else { continue };
            let Some(modules) = held.touching(name).filter(|_| made.contains(name.as_str())) else {
                continue;
            };
            let output = format!("largest/{name}");
            added.extend(largest_magnitude(value, &output));
            nodes.push(name.clone());
            touched.push(modules.clone());
            outputs.push(output);
        }
        graph.node.extend(added);
        graph.output.extend(outputs.iter().map(|name| probe::output(name)));
    }
    RangeProbe { onnx: model.encode_to_vec(), outputs, weights, nodes, touched }
}

/// max(maximum, −minimum) in fp32: no second tensor of the size of the first is made.
fn largest_magnitude(value: &str, output: &str) -> [NodeProto; 5] {
    let node = |operator: &str, inputs: &[&str], output: String| {
        let attribute = match operator {
            "ReduceMax" | "ReduceMin" => Some(("keepdims", 0)),
            "Cast" => Some(("to", i64::from(DataType::F32.onnx()))),
            _ => None,
        };
        NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            name: Some(output.clone()),
            output: vec![output],
            op_type: Some(operator.to_owned()),
            attribute: attribute
                .map(|(name, value)| AttributeProto {
                    name: Some(name.to_owned()),
                    i: Some(value),
                    r#type: Some(2),
                    ..AttributeProto::default()
                })
                .into_iter()
                .collect(),
        }
    };
    let [high, low, below, either] =
        ["high", "low", "below", "either"].map(|part| format!("{output}/{part}"));
    [
        node("ReduceMax", &[value], high.clone()),
        node("ReduceMin", &[value], low.clone()),
        node("Neg", &[&low], below.clone()),
        node("Max", &[&high, &below], either.clone()),
        node("Cast", &[&either], output.to_owned()),
    ]
}

/// Which modules make or take in fp16 what a node makes.
struct Held(HashMap<String, BTreeSet<String>>);

impl Held {
    /// Follows every value that a node takes in fp16 back to the node that computed it.
    fn of(written: &Written) -> Self {
        let made: HashMap<&str, &Made> = written.made.iter().map(|it| (it.node.as_str(), it)).collect();
        let Some(graph) = &written.model.graph else { return Self(HashMap::new()) };
        let makers: HashMap<&str, &NodeProto> = graph
            .node
            .iter()
            .flat_map(|node| node.output.iter().map(move |value| (value.as_str(), node)))
            .collect();
        let mut held: HashMap<String, BTreeSet<String>> = HashMap::new();
        for node in &graph.node {
            let Some(Made { module, dtype: DataType::F16, node: name }) = made.get(node.name()).copied()
            else {
                continue;
            };
            if module.is_empty() {
                // Masks and positions: nothing that a model computes, and no module that could be kept.
                continue;
            }
            let mut touch = |node: &str| {
                held.entry(node.to_owned()).or_default().insert(module.clone());
            };
            if carried(node).is_none() {
                touch(name);
            }
            let mut stack: Vec<&str> = values_of(node).iter().map(String::as_str).collect();
            while let Some(value) = stack.pop() {
                // Weights and inputs have no maker.
                let Some(maker) = makers.get(value) else { continue };
                match carried(maker) {
                    Some(values) => stack.extend(values.iter().map(String::as_str)),
                    None => touch(maker.name()),
                }
            }
        }
        Self(held)
    }

    fn touching(&self, node: &str) -> Option<&BTreeSet<String>> {
        self.0.get(node)
    }
}

/// The inputs that are values to be held, not a mask: of attention, queries, keys and values.
fn values_of(node: &NodeProto) -> &[String] {
    let count = if node.op_type() == "Attention" { 3 } else { node.input.len() };
    node.input.get(..count).unwrap_or(&node.input)
}

/// The inputs that an operator hands on as they are; `None` if it computes something new. Attention gives means of its
/// values (its scores are fp32 in every fused kernel), and a dequantised number is as large as it was.
fn carried(node: &NodeProto) -> Option<&[String]> {
    match node.op_type() {
        "Attention" => node.input.get(2..3),
        "Concat" => Some(&node.input),
        "Cast" | "Reshape" | "Transpose" | "Unsqueeze" | "Squeeze" | "Slice" | "Expand" | "Identity"
        | "QuantizeLinear" | "DequantizeLinear" => node.input.get(..1),
        _ => None,
    }
}

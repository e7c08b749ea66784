//! A graph that also gives what some of its nodes make, to find where two graphs part.

use std::collections::BTreeSet;

use prost::{DecodeError, Message};

use crate::DataType;
use crate::proto::{AttributeProto, ModelProto, NodeProto, TensorTypeProto, TypeProto, ValueInfoProto};

/// A node whose value a probed graph gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The output: the value as fp32.
    pub output: String,
    /// The node, by its name.
    pub node: String,
    /// Its operator.
    pub operator: String,
}

/// The names of a graph's nodes, in the order in which they are computed.
///
/// # Errors
/// If the bytes are no ONNX graph.
pub fn node_names(onnx: &[u8]) -> Result<Vec<String>, DecodeError> {
    let nodes = ModelProto::decode(onnx)?.graph.unwrap_or_default().node;
    Ok(nodes.into_iter().filter_map(|node| node.name).collect())
}

/// The graph up to the last of these nodes, with what they make as its outputs, and these in the order in which they are
/// computed.
///
/// # Errors
/// If the bytes are no ONNX graph.
pub fn probe(onnx: &[u8], nodes: &BTreeSet<&str>) -> Result<(Vec<u8>, Vec<Probe>), DecodeError> {
    let mut model = ModelProto::decode(onnx)?;
    let Some(graph) = model.graph.as_mut() else { return Ok((onnx.to_vec(), Vec::new())) };
    let watched = |node: &NodeProto| nodes.contains(node.name());
    let end = graph.node.iter().rposition(watched).map_or(0, |last| last + 1);
    graph.node.truncate(end);
    let mut probes = Vec::new();
    let mut casts = Vec::new();
    for node in graph.node.iter().filter(|node| watched(node)) {
        for value in node.output.iter().filter(|value| !value.is_empty()) {
            let output = format!("probe/{value}");
            casts.push(NodeProto {
                input: vec![value.clone()],
                output: vec![output.clone()],
                name: Some(output.clone()),
                op_type: Some("Cast".to_owned()),
                attribute: vec![AttributeProto {
                    name: Some("to".to_owned()),
                    i: Some(DataType::F32.onnx().into()),
                    r#type: Some(2),
                    ..AttributeProto::default()
                }],
            });
            probes.push(Probe {
                output,
                node: node.name.clone().unwrap_or_default(),
                operator: node.op_type.clone().unwrap_or_default(),
            });
        }
    }
    graph.node.extend(casts);
    graph.output = probes.iter().map(|probe| output(&probe.output)).collect();
    Ok((model.encode_to_vec(), probes))
}

/// An output in fp32, of any shape.
pub(crate) fn output(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto { elem_type: Some(DataType::F32.onnx()), shape: None }),
        }),
    }
}

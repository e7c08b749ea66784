//! A graph that also gives what its nodes make, to find where two graphs part.

use prost::Message;

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

/// The graph with an output more for every node, and these in the order in which they are computed.
///
/// # Errors
/// If the bytes are no ONNX graph.
pub fn probe(onnx: &[u8]) -> Result<(Vec<u8>, Vec<Probe>), prost::DecodeError> {
    let mut model = ModelProto::decode(onnx)?;
    let Some(graph) = model.graph.as_mut() else { return Ok((onnx.to_vec(), Vec::new())) };
    let mut probes = Vec::new();
    let mut casts = Vec::new();
    for node in &graph.node {
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
    graph.output.extend(probes.iter().map(|probe| ValueInfoProto {
        name: Some(probe.output.clone()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto { elem_type: Some(DataType::F32.onnx()), shape: None }),
        }),
    }));
    Ok((model.encode_to_vec(), probes))
}

//! ONNX's protocol-buffer messages as a foreign file may have them, down to every tensor that could lie in another file;
//! without the bytes of any. What is not named here is passed over.

use onnx_export::proto::{OperatorSetIdProto, StringStringEntryProto, ValueInfoProto};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Model {
    #[prost(int64, optional, tag = "1")]
    pub(super) ir_version: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub(super) producer_name: Option<String>,
    #[prost(string, optional, tag = "3")]
    pub(super) producer_version: Option<String>,
    #[prost(message, optional, tag = "7")]
    pub(super) graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub(super) opset_import: Vec<OperatorSetIdProto>,
    #[prost(message, repeated, tag = "14")]
    pub(super) metadata_props: Vec<StringStringEntryProto>,
    #[prost(message, repeated, tag = "20")]
    pub(super) training_info: Vec<Training>,
    #[prost(message, repeated, tag = "25")]
    pub(super) functions: Vec<Function>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Training {
    #[prost(message, optional, tag = "1")]
    pub(super) initialization: Option<Graph>,
    #[prost(message, optional, tag = "2")]
    pub(super) algorithm: Option<Graph>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Function {
    #[prost(message, repeated, tag = "7")]
    pub(super) node: Vec<Node>,
    #[prost(message, repeated, tag = "11")]
    pub(super) attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub(super) node: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    pub(super) initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub(super) input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub(super) output: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "15")]
    pub(super) sparse_initializer: Vec<SparseTensor>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(string, optional, tag = "4")]
    pub(super) op_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    pub(super) attribute: Vec<Attribute>,
    #[prost(string, optional, tag = "7")]
    pub(super) domain: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Attribute {
    #[prost(message, optional, tag = "5")]
    pub(super) t: Option<Tensor>,
    #[prost(message, optional, boxed, tag = "6")]
    pub(super) g: Option<Box<Graph>>,
    #[prost(message, repeated, tag = "10")]
    pub(super) tensors: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub(super) graphs: Vec<Graph>,
    #[prost(message, optional, tag = "22")]
    pub(super) sparse_tensor: Option<SparseTensor>,
    #[prost(message, repeated, tag = "23")]
    pub(super) sparse_tensors: Vec<SparseTensor>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SparseTensor {
    #[prost(message, optional, tag = "1")]
    pub(super) values: Option<Tensor>,
    #[prost(message, optional, tag = "2")]
    pub(super) indices: Option<Tensor>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Tensor {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub(super) dims: Vec<i64>,
    #[prost(int32, optional, tag = "2")]
    pub(super) data_type: Option<i32>,
    #[prost(string, optional, tag = "8")]
    pub(super) name: Option<String>,
    #[prost(message, repeated, tag = "13")]
    pub(super) external_data: Vec<StringStringEntryProto>,
    #[prost(int32, optional, tag = "14")]
    pub(super) data_location: Option<i32>,
}

impl Model {
    /// Every tensor of the file, wherever in it.
    pub(super) fn tensors(&self) -> Vec<&Tensor> {
        let mut found = Vec::new();
        let trained = self.training_info.iter().flat_map(|it| [&it.initialization, &it.algorithm]);
        for graph in self.graph.iter().chain(trained.flatten()) {
            graph.collect(&mut found);
        }
        for function in &self.functions {
            function.node.iter().for_each(|node| node.collect(&mut found));
            function.attribute.iter().for_each(|attribute| attribute.collect(&mut found));
        }
        found
    }

    /// Every node of the file: of the graph, of graphs within its nodes, and of functions.
    pub(super) fn nodes(&self) -> Vec<&Node> {
        let mut found = Vec::new();
        self.graph.iter().for_each(|graph| graph.nodes(&mut found));
        for node in self.functions.iter().flat_map(|function| &function.node) {
            node.nodes(&mut found);
        }
        found
    }
}

impl Graph {
    fn collect<'a>(&'a self, found: &mut Vec<&'a Tensor>) {
        found.extend(&self.initializer);
        self.sparse_initializer.iter().for_each(|sparse| sparse.collect(found));
        self.node.iter().for_each(|node| node.collect(found));
    }

    fn nodes<'a>(&'a self, found: &mut Vec<&'a Node>) {
        self.node.iter().for_each(|node| node.nodes(found));
    }
}

impl Node {
    fn collect<'a>(&'a self, found: &mut Vec<&'a Tensor>) {
        self.attribute.iter().for_each(|attribute| attribute.collect(found));
    }

    fn nodes<'a>(&'a self, found: &mut Vec<&'a Node>) {
        found.push(self);
        for attribute in &self.attribute {
            attribute.g.iter().for_each(|graph| graph.nodes(found));
            attribute.graphs.iter().for_each(|graph| graph.nodes(found));
        }
    }

    /// The operator, with its domain where that is not ONNX's own.
    pub(super) fn operator(&self) -> String {
        let operator = self.op_type.as_deref().unwrap_or_default();
        match self.domain.as_deref() {
            None | Some("" | "ai.onnx") => operator.to_owned(),
            Some(domain) => format!("{domain}.{operator}"),
        }
    }
}

impl Attribute {
    fn collect<'a>(&'a self, found: &mut Vec<&'a Tensor>) {
        found.extend(self.t.iter().chain(&self.tensors));
        self.g.iter().for_each(|graph| graph.collect(found));
        self.graphs.iter().for_each(|graph| graph.collect(found));
        self.sparse_tensor.iter().chain(&self.sparse_tensors).for_each(|sparse| sparse.collect(found));
    }
}

impl SparseTensor {
    fn collect<'a>(&'a self, found: &mut Vec<&'a Tensor>) {
        found.extend(self.values.iter().chain(&self.indices));
    }
}

impl Tensor {
    /// Number of bits of an element by ONNX's number of its type; `None` for text and for what is not known here.
    fn element_bits(&self) -> Option<u64> {
        Some(match self.data_type? {
            2 | 3 | 9 | 17..=20 | 24 => 8,
            4 | 5 | 10 | 16 => 16,
            1 | 6 | 12 => 32,
            7 | 11 | 13 | 14 => 64,
            15 => 128,
            21..=23 => 4,
            25 | 26 => 2,
            _ => return None,
        })
    }

    /// Bytes that its elements take; `None` where that is not known or no number holds it.
    pub(super) fn bytes(&self) -> Option<u64> {
        let elements = self.dims.iter().try_fold(1_u64, |product, size| {
            u64::try_from(*size).ok().and_then(|size| product.checked_mul(size))
        })?;
        Some(elements.checked_mul(self.element_bits()?)?.div_ceil(8))
    }

    /// What `external_data` says of `key`.
    pub(super) fn external(&self, key: &str) -> Option<&str> {
        let entry = self.external_data.iter().find(|entry| entry.key.as_deref() == Some(key))?;
        entry.value.as_deref()
    }

    pub(super) fn is_external(&self) -> bool {
        self.data_location == Some(1) || !self.external_data.is_empty()
    }
}

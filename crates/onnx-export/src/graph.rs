//! The graph under construction: values with their element types, named nodes, weights that stay where they are.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::checkpoint::{Checkpoint, Tensor};
use crate::ledger::Ledger;
use crate::packed::{PackedLayer, external_data};
use crate::proto::{
    AttributeProto, DimensionProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};
use crate::range::Made;
use crate::{Bf16, DataType, ExportError, ExportOptions, Lowering, Precision, Ranges, Tap};

/// A value of the graph. Its type is tracked so that every cast is made once and on purpose.
#[derive(Clone, Debug)]
pub(crate) struct Value {
    pub(crate) name: String,
    pub(crate) dtype: DataType,
}

/// A dimension of an input or output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dim {
    Batch,
    Sequence,
    /// Tokens that a decoder's cache holds already.
    Past,
    /// Those and the ones that come in.
    Total,
    Fixed(usize),
}

/// A size as ONNX holds it. No tensor that fits a disk has a dimension past `i64`.
pub(crate) fn dim(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

/// An attribute of a node.
pub(crate) enum Attribute {
    Int(&'static str, i64),
    Float(&'static str, f32),
    Ints(&'static str, Vec<i64>),
    Text(&'static str, &'static str),
}

/// Builds one graph. Families call the operations of `ops`, `attention` and `heads`; these call [`Graph::node`].
pub(crate) struct Graph<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    options: &'a ExportOptions,
    proto: GraphProto,
    /// The module that is being written, as Hugging Face names it: `encoder.layer.0.attention.self`.
    scope: Vec<String>,
    /// Weights, constants, casts and other values that may be asked for again.
    known: HashMap<String, Value>,
    names: HashMap<String, usize>,
    weight_bytes: u64,
    weight_casts: usize,
    ledger: Ledger,
    /// Which patterns of `keep_fp32` named a module, by index.
    kept: RefCell<BTreeSet<usize>>,
    pub(crate) taps: Vec<Tap>,
    /// Every node, in order.
    made: Vec<Made>,
    /// Weights that are turned into fp16, and the modules that asked for them.
    narrowed: BTreeMap<String, BTreeSet<String>>,
    /// Layers whose weights are read from a second file.
    pub(crate) packed: Vec<PackedLayer>,
}

/// What is left of a graph once it is written.
pub(crate) struct Finished {
    pub(crate) proto: GraphProto,
    pub(crate) taps: Vec<Tap>,
    /// Bytes of weights that it points at.
    pub(crate) weight_bytes: u64,
    pub(crate) weight_casts: usize,
    pub(crate) ledger: Ledger,
    pub(crate) made: Vec<Made>,
    pub(crate) narrowed: BTreeMap<String, BTreeSet<String>>,
    pub(crate) packed: Vec<PackedLayer>,
}

impl<'a> Graph<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, options: &'a ExportOptions) -> Self {
        let proto = GraphProto { name: Some(checkpoint.model_type().to_owned()), ..GraphProto::default() };
        Self {
            checkpoint,
            options,
            proto,
            scope: Vec::new(),
            known: HashMap::new(),
            names: HashMap::new(),
            weight_bytes: 0,
            weight_casts: 0,
            ledger: Ledger::default(),
            kept: RefCell::default(),
            taps: Vec::new(),
            made: Vec::new(),
            narrowed: BTreeMap::new(),
            packed: Vec::new(),
        }
    }

    pub(crate) fn precision(&self) -> Precision {
        self.options.precision
    }

    /// What 8-bit products tell apart.
    pub(crate) fn ranges(&self) -> &Ranges {
        &self.options.ranges
    }

    /// Whether the inputs of linear layers are to be shown.
    pub(crate) fn is_tapped(&self) -> bool {
        self.options.taps
    }

    /// Which of the two ways of writing an operation applies.
    pub(crate) fn lowering(&self) -> Lowering {
        self.options.lowering
    }

    /// Version of the standard operator set.
    pub(crate) fn opset(&self) -> i64 {
        self.options.lowering.opset()
    }

    /// The element type that the current module computes in: the precision's, or `F32` where `keep_fp32` names the module or
    /// its values are too large.
    pub(crate) fn compute_type(&self) -> DataType {
        let module = self.scope.join(".");
        if let Some(why) = self.options.too_large.get(&module) {
            self.ledger.keep(module, why);
            return DataType::F32;
        }
        let kept = self.options.keeps_fp32(&module);
        if let Some(pattern) = kept {
            self.kept.borrow_mut().insert(pattern);
            if self.options.precision.compute_type() != DataType::F32 {
                let asked = format!("asked for by {:?}", self.options.keep_fp32[pattern].as_str());
                self.ledger.keep(module, &asked);
            }
        }
        if kept.is_some() { DataType::F32 } else { self.options.precision.compute_type() }
    }

    /// Runs `write` inside the module `name` (which may contain dots).
    pub(crate) fn within<T>(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut Self) -> Result<T, ExportError>,
    ) -> Result<T, ExportError> {
        self.scope.push(name.to_owned());
        let result = write(self);
        self.scope.pop();
        result
    }

    /// The value known by `key`, made by `make` the first time.
    pub(crate) fn once(
        &mut self,
        key: &str,
        make: impl FnOnce(&mut Self) -> Result<Value, ExportError>,
    ) -> Result<Value, ExportError> {
        if let Some(value) = self.known.get(key) {
            return Ok(value.clone());
        }
        // What is shared belongs to no module.
        let scope = std::mem::take(&mut self.scope);
        let value = make(self);
        self.scope = scope;
        let value = value?;
        self.known.insert(key.to_owned(), value.clone());
        Ok(value)
    }

    /// Says in the report that the current module does something in fp32 whatever the precision, and why.
    pub(crate) fn in_fp32(&self, why: &str) {
        if self.options.precision.compute_type() != DataType::F32 {
            // One line for all layers: they do the same.
            let scope = self.scope.join(".");
            let alike =
                |part: &str| if part.parse::<usize>().is_ok() { "*".to_owned() } else { part.to_owned() };
            self.ledger.keep(scope.split('.').map(alike).collect::<Vec<_>>().join("."), why);
        }
    }

    /// Declares an input of shape [batch, sequence] and type `I64`.
    pub(crate) fn input(&mut self, name: &str) -> Value {
        self.input_of(name, DataType::I64, &[Dim::Batch, Dim::Sequence])
    }

    /// Declares an input. A bfloat16 that is emulated comes in as fp32.
    pub(crate) fn input_of(&mut self, name: &str, dtype: DataType, shape: &[Dim]) -> Value {
        self.proto.input.push(value_info(name, self.held_as(dtype), shape));
        Value { name: name.to_owned(), dtype }
    }

    /// Declares `value` as the output `name`. It goes by that name from then on.
    pub(crate) fn output(&mut self, name: &str, value: &Value, shape: &[Dim]) {
        for node in &mut self.proto.node {
            for known in node.output.iter_mut().chain(&mut node.input).filter(|known| **known == value.name) {
                name.clone_into(known);
            }
        }
        self.proto.output.push(value_info(name, self.held_as(value.dtype), shape));
    }

    /// The element type that values of this type have in the graph.
    fn held_as(&self, dtype: DataType) -> DataType {
        if self.emulates(dtype) { DataType::F32 } else { dtype }
    }

    /// Declares the value of the last node as the output `name`, of any shape.
    pub(crate) fn show(&mut self, name: &str, value: &Value) {
        self.output(name, value, &[]);
        for output in self.proto.output.iter_mut().filter(|output| output.name.as_deref() == Some(name)) {
            if let Some(tensor) = output.r#type.as_mut().and_then(|kind| kind.tensor_type.as_mut()) {
                tensor.shape = None;
            }
        }
    }

    /// Adds a node with one output of type `dtype`. Its name is the module's path and the operator.
    pub(crate) fn node(
        &mut self,
        operator: &str,
        inputs: &[&Value],
        attributes: Vec<Attribute>,
        dtype: DataType,
    ) -> Value {
        let value = self.plain_node(operator, inputs, attributes, dtype);
        if self.emulates(dtype) { self.round_to_bf16(&value) } else { value }
    }

    /// Whether values of this type are kept in fp32 and rounded.
    fn emulates(&self, dtype: DataType) -> bool {
        dtype == DataType::Bf16 && self.options.bf16 == Bf16::Emulated
    }

    /// `value`, which is kept in fp32, with the precision of a bfloat16.
    fn round_to_bf16(&mut self, value: &Value) -> Value {
        let to = |dtype: DataType| vec![Attribute::Int("to", dtype.onnx().into())];
        let short = self.plain_node("Cast", &[value], to(DataType::Bf16), DataType::Bf16);
        let long = self.plain_node("Cast", &[&short], to(DataType::F32), DataType::F32);
        Value { dtype: DataType::Bf16, ..long }
    }

    fn plain_node(
        &mut self,
        operator: &str,
        inputs: &[&Value],
        attributes: Vec<Attribute>,
        dtype: DataType,
    ) -> Value {
        let name = self.unique(operator);
        self.made.push(Made { node: name.clone(), module: self.scope.join("."), dtype });
        self.proto.node.push(NodeProto {
            input: inputs.iter().map(|value| value.name.clone()).collect(),
            output: vec![name.clone()],
            name: Some(name.clone()),
            op_type: Some(operator.to_owned()),
            attribute: attributes.into_iter().map(Attribute::into_proto).collect(),
        });
        Value { name, dtype }
    }

    /// `value` as `dtype`; nothing is added where it already is.
    pub(crate) fn cast(&mut self, value: &Value, dtype: DataType) -> Value {
        if value.dtype == dtype {
            return value.clone();
        }
        let key = format!("cast:{}:{}", value.name, dtype.onnx());
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        self.ledger.cast(value.dtype, dtype);
        let cast = if self.emulates(value.dtype) && dtype == DataType::F32 {
            Value { dtype, ..value.clone() }
        } else if self.emulates(dtype) {
            self.round_to_bf16(value)
        } else {
            self.plain_node("Cast", &[value], vec![Attribute::Int("to", dtype.onnx().into())], dtype)
        };
        self.known.insert(key, cast.clone());
        cast
    }

    /// The tensor `name`, which has to be of that shape.
    pub(crate) fn checked(&self, name: &str, shape: &[usize]) -> Result<&'a Tensor, ExportError> {
        let tensor = self.checkpoint.tensor(name)?;
        if tensor.shape == shape {
            return Ok(tensor);
        }
        Err(ExportError::Shape {
            file: self.checkpoint.folder().join(&tensor.file),
            tensor: name.to_owned(),
            found: tensor.shape.clone(),
            expected: shape.to_vec(),
        })
    }

    /// An initializer whose bytes get their place once the graph is written.
    pub(crate) fn packed_initializer(&mut self, name: String, dtype: DataType, shape: &[usize]) -> Value {
        self.proto.initializer.push(TensorProto {
            dims: shape.iter().map(|&size| dim(size)).collect(),
            data_type: Some(dtype.onnx()),
            name: Some(name.clone()),
            ..TensorProto::default()
        });
        Value { name, dtype }
    }

    /// Counts bytes of a weight that the graph points at.
    pub(crate) fn count_weight(&mut self, bytes: u64) {
        self.weight_bytes += bytes;
    }

    /// Notes that the current module holds the weight `name` in fp16.
    pub(crate) fn narrow(&mut self, name: &str) {
        self.narrowed.entry(name.to_owned()).or_default().insert(self.scope.join("."));
    }

    /// The weight `name` as it is stored: an initializer that points into the safetensors file.
    pub(crate) fn stored_weight(&mut self, name: &str, shape: &[usize]) -> Result<Value, ExportError> {
        let key = format!("weight:{name}");
        if let Some(value) = self.known.get(&key) {
            return Ok(value.clone());
        }
        let tensor = self.checked(name, shape)?;
        self.proto.initializer.push(TensorProto {
            dims: tensor.shape.iter().map(|&size| dim(size)).collect(),
            data_type: Some(tensor.dtype.onnx()),
            name: Some(name.to_owned()),
            external_data: external_data(&tensor.file, tensor.offset_bytes, tensor.length_bytes),
            data_location: Some(1),
            ..TensorProto::default()
        });
        self.weight_bytes += tensor.length_bytes;
        let value = Value { name: name.to_owned(), dtype: tensor.dtype };
        self.known.insert(key, value.clone());
        Ok(value)
    }

    /// The weight `name` as `dtype`. The cast stands in the graph; engines fold it when they are built.
    pub(crate) fn weight(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DataType,
    ) -> Result<Value, ExportError> {
        let mut stored = self.stored_weight(name, shape)?;
        if self.emulates(stored.dtype) {
            stored = self.once(&format!("weight:{name}:long"), |graph| {
                let to = vec![Attribute::Int("to", DataType::F32.onnx().into())];
                Ok(Value { dtype: DataType::Bf16, ..graph.plain_node("Cast", &[&stored], to, DataType::F32) })
            })?;
        }
        if stored.dtype == dtype {
            return Ok(stored);
        }
        if dtype == DataType::F16 {
            self.narrow(name);
        }
        let key = format!("weight:{name}:{}", dtype.onnx());
        self.once(&key, |graph| {
            graph.weight_casts += 1;
            graph.within(name, |graph| Ok(graph.cast(&stored, dtype)))
        })
    }

    /// A constant list of integers.
    pub(crate) fn integers(&mut self, values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(&format!("{values:?}"), DataType::I64, vec![dim(values.len())], bytes)
    }

    /// A constant table of integers, [n], that has a name of its own.
    pub(crate) fn integer_table(&mut self, name: &str, values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, DataType::I64, vec![dim(values.len())], bytes)
    }

    /// A constant table of fp32 numbers, [n], that has a name of its own.
    pub(crate) fn number_table(&mut self, name: &str, values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, DataType::F32, vec![dim(values.len())], bytes)
    }

    /// A constant integer without dimensions.
    pub(crate) fn integer(&mut self, value: i64) -> Value {
        self.constant(&value.to_string(), DataType::I64, Vec::new(), value.to_le_bytes().to_vec())
    }

    /// A constant number without dimensions, as `dtype` (`F32`, `F16` or `Bf16`).
    pub(crate) fn scalar(&mut self, value: f32, dtype: DataType) -> Value {
        if self.emulates(dtype) {
            let rounded = half::bf16::from_f32(value).to_f32();
            return Value { dtype, ..self.scalar(rounded, DataType::F32) };
        }
        let bytes = match dtype {
            DataType::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            DataType::Bf16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        let dtype = if matches!(dtype, DataType::F16 | DataType::Bf16) { dtype } else { DataType::F32 };
        self.constant(&format!("{value:e}"), dtype, Vec::new(), bytes)
    }

    /// Numbers as `dtype`, in one dimension or, of one number, in none.
    pub(crate) fn floats(&mut self, name: &str, values: &[f32], is_list: bool, dtype: DataType) -> Value {
        let bytes = match dtype {
            DataType::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
            DataType::Bf16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        let dims = if is_list { vec![dim(values.len())] } else { Vec::new() };
        self.constant(name, dtype, dims, bytes)
    }

    /// So many zeros of an 8-bit type.
    pub(crate) fn zeros(&mut self, count: usize, is_list: bool, dtype: DataType) -> Value {
        let dims = if is_list { vec![dim(count)] } else { Vec::new() };
        let text = if is_list { format!("zeros_{count}") } else { "zero".to_owned() };
        self.constant(&text, dtype, dims, vec![0; count])
    }

    fn constant(&mut self, text: &str, dtype: DataType, dims: Vec<i64>, bytes: Vec<u8>) -> Value {
        let name = format!("constant/{text}/{}", dtype.onnx());
        if !self.known.contains_key(&name) {
            self.proto.initializer.push(TensorProto {
                dims,
                data_type: Some(dtype.onnx()),
                name: Some(name.clone()),
                raw_data: Some(bytes),
                ..TensorProto::default()
            });
            self.known.insert(name.clone(), Value { name: name.clone(), dtype });
        }
        Value { name, dtype }
    }

    fn unique(&mut self, operator: &str) -> String {
        let mut name = self.scope.join(".");
        if !name.is_empty() {
            name.push('/');
        }
        name.push_str(operator);
        let count = self.names.entry(name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            name = format!("{name}_{count}");
        }
        name
    }

    /// The first pattern of `keep_fp32` that named no module.
    pub(crate) fn idle_pattern(&self) -> Option<&str> {
        let kept = self.kept.borrow();
        let idle = self.options.keep_fp32.iter().enumerate().find(|(index, _)| !kept.contains(index));
        idle.map(|(_, pattern)| pattern.as_str())
    }

    /// The finished graph, and what is known of it.
    pub(crate) fn finish(self) -> Finished {
        let Self { proto, taps, weight_bytes, weight_casts, ledger, made, narrowed, packed, .. } = self;
        Finished { proto, taps, weight_bytes, weight_casts, ledger, made, narrowed, packed }
    }
}

impl Attribute {
    fn into_proto(self) -> AttributeProto {
        let named = |name: &str, kind| AttributeProto {
            name: Some(name.to_owned()),
            r#type: Some(kind),
            ..AttributeProto::default()
        };
        match self {
            Self::Float(name, value) => AttributeProto { f: Some(value), ..named(name, 1) },
            Self::Int(name, value) => AttributeProto { i: Some(value), ..named(name, 2) },
            Self::Text(name, value) => AttributeProto { s: Some(value.into()), ..named(name, 3) },
            Self::Ints(name, values) => AttributeProto { ints: values, ..named(name, 7) },
        }
    }
}

fn value_info(name: &str, dtype: DataType, shape: &[Dim]) -> ValueInfoProto {
    let dimension = |size: &Dim| match size {
        Dim::Batch => DimensionProto { dim_param: Some("batch".to_owned()), ..DimensionProto::default() },
        Dim::Sequence => {
            DimensionProto { dim_param: Some("sequence".to_owned()), ..DimensionProto::default() }
        }
        Dim::Past => {
            DimensionProto { dim_param: Some("past_sequence".to_owned()), ..DimensionProto::default() }
        }
        Dim::Total => {
            DimensionProto { dim_param: Some("total_sequence".to_owned()), ..DimensionProto::default() }
        }
        Dim::Fixed(size) => DimensionProto { dim_value: Some(dim(*size)), ..DimensionProto::default() },
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dimension).collect() };
    let tensor_type = TensorTypeProto { elem_type: Some(dtype.onnx()), shape: Some(shape) };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

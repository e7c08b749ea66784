//! Operations on values, each written in the way the lowering asks for.

use crate::graph::{Attribute, Graph, Value, dim};
use crate::{DataType, ExportError, Lowering};

/// The function between the two products of a feed-forward block, by the names `config.json` uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// Exact, with the error function.
    Gelu,
    /// The tanh approximation.
    GeluTanh,
    Relu,
    Silu,
    Tanh,
}

impl Activation {
    pub(crate) const SUPPORTED: &'static str =
        "gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu, swish, tanh";

    /// The function that `hidden_act` names.
    pub(crate) fn from_config(name: &str) -> Option<Self> {
        match name {
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            "silu" | "swish" => Some(Self::Silu),
            "tanh" => Some(Self::Tanh),
            _ => None,
        }
    }
}

/// Whether a product has a bias in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    Own,
    None,
}

impl From<bool> for Bias {
    fn from(has: bool) -> Self {
        if has { Self::Own } else { Self::None }
    }
}

/// Whether a product, or its weight, may be in few bits.
#[derive(Clone, Copy)]
enum Bits {
    /// Where the precision says so.
    AsThePrecision,
    /// Never: it computes in the type that it is given.
    AsTheType,
}

impl Graph<'_> {
    /// An operation of one type on two values, which it casts to that type.
    fn binary(&mut self, operator: &str, a: &Value, b: &Value, dtype: DataType) -> Value {
        let (a, b) = (self.cast(a, dtype), self.cast(b, dtype));
        self.node(operator, &[&a, &b], Vec::new(), dtype)
    }

    /// `a + b` in the type the current module computes in.
    pub(crate) fn add(&mut self, a: &Value, b: &Value) -> Value {
        let dtype = self.compute_type();
        self.binary("Add", a, b, dtype)
    }

    /// `a - b`, `a * b`, … in the type of `a`.
    pub(crate) fn arithmetic(&mut self, operator: &str, a: &Value, b: &Value) -> Value {
        self.binary(operator, a, b, a.dtype)
    }

    /// An operation of one value that keeps its type.
    pub(crate) fn unary(&mut self, operator: &str, x: &Value) -> Value {
        self.node(operator, &[x], Vec::new(), x.dtype)
    }

    /// The elements `start..end` of the last dimension.
    pub(crate) fn columns(&mut self, x: &Value, start: usize, end: usize) -> Value {
        let (start, end, last) =
            (self.integers(&[dim(start)]), self.integers(&[dim(end)]), self.integers(&[-1]));
        self.node("Slice", &[x, &start, &end, &last], Vec::new(), x.dtype)
    }

    /// Reshape to constant sizes; 0 keeps a dimension, -1 is what is left.
    pub(crate) fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let shape = self.integers(shape);
        self.node("Reshape", &[x, &shape], Vec::new(), x.dtype)
    }

    /// Reshape to sizes that are themselves a value.
    pub(crate) fn reshape_to(&mut self, x: &Value, shape: &Value) -> Value {
        self.node("Reshape", &[x, shape], Vec::new(), x.dtype)
    }

    /// Permutation of dimensions.
    pub(crate) fn transpose(&mut self, x: &Value, permutation: &[i64]) -> Value {
        let perm = vec![Attribute::Ints("perm", permutation.to_vec())];
        self.node("Transpose", &[x], perm, x.dtype)
    }

    /// New dimensions of size one.
    pub(crate) fn unsqueeze(&mut self, x: &Value, axes: &[i64]) -> Value {
        let axes = self.integers(axes);
        self.node("Unsqueeze", &[x, &axes], Vec::new(), x.dtype)
    }

    /// Rows of `table` picked by `indices`.
    pub(crate) fn gather(&mut self, table: &Value, indices: &Value, axis: i64) -> Value {
        self.node("Gather", &[table, indices], vec![Attribute::Int("axis", axis)], table.dtype)
    }

    /// Joins along dimension 0.
    pub(crate) fn concat(&mut self, values: &[&Value]) -> Value {
        let dtype = values.first().map_or(DataType::I64, |value| value.dtype);
        self.node("Concat", values, vec![Attribute::Int("axis", 0)], dtype)
    }

    /// Sum over `axis`, which is kept with size one.
    pub(crate) fn reduce_sum(&mut self, x: &Value, axis: i64) -> Value {
        let axes = self.integers(&[axis]);
        self.node("ReduceSum", &[x, &axes], vec![Attribute::Int("keepdims", 1)], x.dtype)
    }

    /// Maximum over `axis`, which is kept with size one. Its axes became an input in opset 18.
    pub(crate) fn reduce_max(&mut self, x: &Value, axis: i64) -> Value {
        let keep = Attribute::Int("keepdims", 1);
        if self.opset() < 18 {
            return self.node("ReduceMax", &[x], vec![Attribute::Ints("axes", vec![axis]), keep], x.dtype);
        }
        let axes = self.integers(&[axis]);
        self.node("ReduceMax", &[x, &axes], vec![keep], x.dtype)
    }

    /// The larger of `x` and a number, element by element.
    pub(crate) fn at_least(&mut self, x: &Value, floor: f32) -> Value {
        let floor = self.scalar(floor, x.dtype);
        self.node("Max", &[x, &floor], Vec::new(), x.dtype)
    }

    /// `torch.nn.Linear`: `x · Wᵀ + b` for `x` of shape [rows, inputs] and `W` as stored, [outputs, inputs].
    ///
    /// `dtype` is what it computes in. `Gemm(transB=1)` reads the weight as it lies, so nothing is transposed.
    pub(crate) fn linear(
        &mut self,
        x: &Value,
        tensor: &str,
        sizes: (usize, usize),
        dtype: DataType,
    ) -> Result<Value, ExportError> {
        self.tap(x, tensor);
        self.gemm(x, tensor, sizes, dtype, (Bias::Own, Bits::AsThePrecision))
    }

    /// [`linear`](Self::linear) without a bias.
    pub(crate) fn product(
        &mut self,
        x: &Value,
        tensor: &str,
        sizes: (usize, usize),
        dtype: DataType,
    ) -> Result<Value, ExportError> {
        self.tap(x, tensor);
        self.gemm(x, tensor, sizes, dtype, (Bias::None, Bits::AsThePrecision))
    }

    /// [`product`](Self::product) that is never in 8 bits: choices among many words turn on small differences.
    pub(crate) fn fine_product(
        &mut self,
        x: &Value,
        tensor: &str,
        sizes: (usize, usize),
        dtype: DataType,
    ) -> Result<Value, ExportError> {
        self.gemm(x, tensor, sizes, dtype, (Bias::None, Bits::AsTheType))
    }

    fn gemm(
        &mut self,
        x: &Value,
        tensor: &str,
        (inputs, outputs): (usize, usize),
        dtype: DataType,
        (bias, bits): (Bias, Bits),
    ) -> Result<Value, ExportError> {
        let x = self.cast(x, dtype);
        let packed = match bits {
            Bits::AsThePrecision => self.packed_weight(tensor, (inputs, outputs), dtype)?,
            Bits::AsTheType => None,
        };
        let weight = match packed {
            Some(weight) => weight,
            None => self.weight(&format!("{tensor}.weight"), &[outputs, inputs], dtype)?,
        };
        let (x, weight) = match bits {
            Bits::AsThePrecision => self.in_8_bits(x, weight, tensor, (inputs, outputs), dtype)?,
            Bits::AsTheType => (x, weight),
        };
        let bias = match bias {
            Bias::Own => Some(self.weight(&format!("{tensor}.bias"), &[outputs], dtype)?),
            Bias::None => None,
        };
        let inputs: Vec<&Value> = [&x, &weight].into_iter().chain(&bias).collect();
        Ok(self.node("Gemm", &inputs, vec![Attribute::Int("transB", 1)], dtype))
    }

    /// The module `module` below the tensor name `parent`, a product with or without a bias, in a scope of its own.
    pub(crate) fn module(
        &mut self,
        x: &Value,
        (parent, module): (&str, &str),
        sizes: (usize, usize),
        bias: Bias,
    ) -> Result<Value, ExportError> {
        self.within(module, |graph| {
            let dtype = graph.compute_type();
            let tensor = format!("{parent}.{module}");
            match bias {
                Bias::Own => graph.linear(x, &tensor, sizes, dtype),
                Bias::None => graph.product(x, &tensor, sizes, dtype),
            }
        })
    }

    /// Layer normalisation over the last dimension. `stash_type` 1: mean and variance are taken in fp32.
    ///
    /// Old checkpoints call scale and shift `gamma` and `beta`.
    pub(crate) fn layer_norm(
        &mut self,
        x: &Value,
        tensor: &str,
        size: usize,
        epsilon: f32,
    ) -> Result<Value, ExportError> {
        let dtype = self.compute_type();
        let old_names = self.checkpoint.has(&format!("{tensor}.gamma"));
        let (scale, shift) = if old_names { ("gamma", "beta") } else { ("weight", "bias") };
        let x = self.cast(x, dtype);
        let scale = self.weight(&format!("{tensor}.{scale}"), &[size], dtype)?;
        let shift = self.weight(&format!("{tensor}.{shift}"), &[size], dtype)?;
        let attributes = vec![
            Attribute::Int("axis", -1),
            Attribute::Float("epsilon", epsilon),
            Attribute::Int("stash_type", 1),
        ];
        Ok(self.node("LayerNormalization", &[&x, &scale, &shift], attributes, dtype))
    }

    /// The activation function of a feed-forward block.
    pub(crate) fn activation(&mut self, x: &Value, activation: Activation) -> Value {
        match activation {
            Activation::Relu => self.unary("Relu", x),
            Activation::Tanh => self.unary("Tanh", x),
            Activation::Silu => {
                let gate = self.unary("Sigmoid", x);
                self.arithmetic("Mul", x, &gate)
            }
            Activation::Gelu | Activation::GeluTanh if self.lowering() == Lowering::TensorRt => {
                let approximate = if activation == Activation::Gelu { "none" } else { "tanh" };
                self.node("Gelu", &[x], vec![Attribute::Text("approximate", approximate)], x.dtype)
            }
            Activation::Gelu => {
                // x/2 · (1 + erf(x/√2))
                let root = self.scalar(std::f32::consts::FRAC_1_SQRT_2, x.dtype);
                let inner = self.arithmetic("Mul", x, &root);
                let erf = self.unary("Erf", &inner);
                self.half_x_times_one_plus(x, &erf)
            }
            Activation::GeluTanh => {
                // x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), Hendrycks and Gimpel 2016, eq. 2
                let cubic = self.scalar(0.044_715, x.dtype);
                let root = self.scalar((2.0 / std::f32::consts::PI).sqrt(), x.dtype);
                let square = self.arithmetic("Mul", x, x);
                let cube = self.arithmetic("Mul", &square, x);
                let cube = self.arithmetic("Mul", &cube, &cubic);
                let sum = self.arithmetic("Add", x, &cube);
                let inner = self.arithmetic("Mul", &sum, &root);
                let tanh = self.unary("Tanh", &inner);
                self.half_x_times_one_plus(x, &tanh)
            }
        }
    }

    fn half_x_times_one_plus(&mut self, x: &Value, y: &Value) -> Value {
        let (one, half) = (self.scalar(1.0, x.dtype), self.scalar(0.5, x.dtype));
        let sum = self.arithmetic("Add", y, &one);
        let product = self.arithmetic("Mul", x, &sum);
        self.arithmetic("Mul", &product, &half)
    }
}

//! Norms beside BERT's: without a shift, and by the root of the mean square.

use crate::graph::{Attribute, Graph, Value};
use crate::ops::Bias;
use crate::{DataType, ExportError, Lowering};

impl Graph<'_> {
    /// Layer normalisation over the last dimension with a scale, and a shift where there is one, in `dtype`; statistics in
    /// fp32.
    pub(crate) fn layer_norm_as(
        &mut self,
        x: &Value,
        tensor: &str,
        (size, epsilon): (usize, f32),
        shift: Bias,
        dtype: DataType,
    ) -> Result<Value, ExportError> {
        let x = self.cast(x, dtype);
        let scale = self.weight(&format!("{tensor}.weight"), &[size], dtype)?;
        let attributes = vec![
            Attribute::Int("axis", -1),
            Attribute::Float("epsilon", epsilon),
            Attribute::Int("stash_type", 1),
        ];
        Ok(match shift {
            Bias::None => self.node("LayerNormalization", &[&x, &scale], attributes, dtype),
            Bias::Own => {
                let shift = self.weight(&format!("{tensor}.bias"), &[size], dtype)?;
                self.node("LayerNormalization", &[&x, &scale, &shift], attributes, dtype)
            }
        })
    }

    /// RMS normalisation over the last dimension (Zhang and Sennrich 2019); the mean square is taken in fp32.
    ///
    /// One node where the operator set has it, which is opset 23: ONNX Runtime 1.32 and TensorRT-RTX 1.7 take it in
    /// every float type.
    pub(crate) fn rms_norm(
        &mut self,
        x: &Value,
        tensor: &str,
        size: usize,
        epsilon: f32,
    ) -> Result<Value, ExportError> {
        let dtype = self.compute_type();
        let x = self.cast(x, dtype);
        let scale = self.weight(&format!("{tensor}.weight"), &[size], dtype)?;
        self.in_fp32("the mean square of the norm");
        if self.lowering() == Lowering::TensorRt {
            let attributes = vec![
                Attribute::Int("axis", -1),
                Attribute::Float("epsilon", epsilon),
                Attribute::Int("stash_type", 1),
            ];
            return Ok(self.node("RMSNormalization", &[&x, &scale], attributes, dtype));
        }
        let long = self.cast(&x, DataType::F32);
        let square = self.arithmetic("Mul", &long, &long);
        let mean = self.reduce_mean(&square, -1);
        let epsilon = self.scalar(epsilon, DataType::F32);
        let mean = self.arithmetic("Add", &mean, &epsilon);
        let root = self.unary("Sqrt", &mean);
        let unit = self.arithmetic("Div", &long, &root);
        let unit = self.cast(&unit, dtype);
        Ok(self.arithmetic("Mul", &unit, &scale))
    }

    /// Mean over `axis`, which is kept with size one. Its axes became an input in opset 18.
    pub(crate) fn reduce_mean(&mut self, x: &Value, axis: i64) -> Value {
        let keep = Attribute::Int("keepdims", 1);
        if self.opset() < 18 {
            return self.node("ReduceMean", &[x], vec![Attribute::Ints("axes", vec![axis]), keep], x.dtype);
        }
        let axes = self.integers(&[axis]);
        self.node("ReduceMean", &[x, &axes], vec![keep], x.dtype)
    }
}

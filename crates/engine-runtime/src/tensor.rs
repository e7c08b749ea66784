//! What goes into an engine and comes out of it.

use half::{bf16, f16};
use onnx_export::DataType;

use crate::RuntimeError;

/// An input: its name in the graph, its shape, and its values, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// Name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// As many values as the dimensions say.
    pub values: Values,
}

/// The values of an input. They are converted to the type that the engine takes.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Tokens, masks and the like.
    I64(Vec<i64>),
    /// Numbers.
    F32(Vec<f32>),
}

/// An output: its name in the graph, its shape, and its values as fp32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The values, whatever type the engine computes them in.
    pub values: Vec<f32>,
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Self::I64(values) => values.len(),
            Self::F32(values) => values.len(),
        }
    }
}

impl Input {
    /// The values as the engine takes them.
    pub(crate) fn bytes(&self, dtype: DataType) -> Result<Vec<u8>, RuntimeError> {
        let (name, shape) = (&self.name, &self.shape);
        let expected = volume(shape);
        if expected != Some(self.values.len()) {
            let found = self.values.len();
            return Err(RuntimeError::Batch(format!("`{name}` of shape {shape:?} holds {found} values")));
        }
        let small = |value: &i64| {
            i32::try_from(*value)
                .map_err(|_| RuntimeError::Batch(format!("`{name}` holds {value}, and is of 32 bits")))
        };
        Ok(match (&self.values, dtype) {
            (Values::I64(values), DataType::I64) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (Values::I64(values), DataType::I32) => {
                let values: Result<Vec<i32>, _> = values.iter().map(small).collect();
                values?.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
            (Values::I64(values), DataType::Bool) => values.iter().map(|x| u8::from(*x != 0)).collect(),
            (Values::F32(values), DataType::F32) => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            (Values::F32(values), DataType::F16) => {
                values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
            }
            (Values::F32(values), DataType::Bf16) => {
                values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
            }
            (values, dtype) => {
                let given = if matches!(values, Values::I64(_)) { "integers" } else { "floats" };
                return Err(RuntimeError::Batch(format!("`{name}` is of {dtype:?}, and {given} were given")));
            }
        })
    }
}

/// Bytes of an engine as fp32; `None` for a type that is no number of it.
pub(crate) fn floats(bytes: &[u8], dtype: DataType) -> Option<Vec<f32>> {
    Some(match dtype {
        DataType::F32 => words(bytes).map(f32::from_le_bytes).collect(),
        DataType::F16 => words(bytes).map(|word| f16::from_le_bytes(word).to_f32()).collect(),
        DataType::Bf16 => words(bytes).map(|word| bf16::from_le_bytes(word).to_f32()).collect(),
        _ => return None,
    })
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// The number of values of a shape; `None` where no memory could hold it.
pub(crate) fn volume(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size))
}

/// The size of a value in bytes. No engine has 4-bit integers as an input or output, only as weights.
pub(crate) fn width(dtype: DataType) -> usize {
    match dtype {
        DataType::F64 | DataType::I64 => 8,
        DataType::F32 | DataType::I32 => 4,
        DataType::F16 | DataType::Bf16 => 2,
        DataType::Bool | DataType::I8 | DataType::I4 | DataType::F8E4m3 => 1,
    }
}

/// The same weights in another type, as a `Cast` of the graph gives them; `None` for types it does not go between.
pub(crate) fn cast(bytes: Vec<u8>, from: DataType, to: DataType) -> Option<Vec<u8>> {
    if from == to {
        return Some(bytes);
    }
    let values = floats(&bytes, from)?;
    Some(match to {
        DataType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DataType::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        DataType::Bf16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_become_the_bytes_that_the_engine_takes() {
        let check = |row: &str, shape: &[usize], values: Values, dtype, expected: Result<&[u8], &str>| {
            let input = Input { name: "x".to_owned(), shape: shape.to_vec(), values };
            match (input.bytes(dtype), expected) {
                (Ok(bytes), Ok(expected)) => assert_eq!(bytes, expected, "{row}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{row}: {error}"),
                (found, _) => panic!("{row}: {found:?}"),
            }
        };
        let ids = || Values::I64(vec![1, -2]);
        let wide = [1, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255, 255, 255, 255, 255];
        check("64 bits", &[1, 2], ids(), DataType::I64, Ok(&wide));
        check("32 bits", &[2], ids(), DataType::I32, Ok(&[1, 0, 0, 0, 254, 255, 255, 255]));
        check("truth", &[2], ids(), DataType::Bool, Ok(&[1, 1]));
        check("fp32", &[1], Values::F32(vec![1.0]), DataType::F32, Ok(&[0, 0, 128, 63]));
        check("fp16", &[1], Values::F32(vec![1.0]), DataType::F16, Ok(&[0, 60]));
        check("bf16", &[1], Values::F32(vec![1.0]), DataType::Bf16, Ok(&[128, 63]));
        check("an empty cache", &[1, 0, 4], Values::F32(Vec::new()), DataType::F32, Ok(&[]));
        check("too few", &[3], ids(), DataType::I64, Err("holds 2 values"));
        check("too large", &[usize::MAX, 2], ids(), DataType::I64, Err("holds 2 values"));
        check("too wide", &[1], Values::I64(vec![1 << 40]), DataType::I32, Err("of 32 bits"));
        check("floats for ids", &[1], Values::F32(vec![1.0]), DataType::I64, Err("floats were given"));
    }

    #[test]
    fn every_type_of_number_comes_back_as_fp32() {
        let values = [0.5_f32, -3.0, 1024.0];
        for dtype in [DataType::F32, DataType::F16, DataType::Bf16] {
            let input = Input { name: "x".to_owned(), shape: vec![3], values: Values::F32(values.to_vec()) };
            let bytes = input.bytes(dtype).unwrap_or_default();
            assert_eq!(bytes.len(), 3 * width(dtype), "{dtype:?}");
            assert_eq!(floats(&bytes, dtype).as_deref(), Some(&values[..]), "{dtype:?}");
        }
        assert_eq!(floats(&[1], DataType::Bool), None);
    }

    #[test]
    fn weights_are_cast_as_the_graph_casts_them() {
        let stored = 1.000_1_f32.to_le_bytes().to_vec();
        assert_eq!(cast(stored.clone(), DataType::F32, DataType::F32), Some(stored.clone()));
        assert_eq!(cast(stored.clone(), DataType::F32, DataType::F16), Some(vec![0, 60]));
        assert_eq!(cast(vec![0, 60], DataType::F16, DataType::Bf16), Some(vec![128, 63]));
        assert_eq!(cast(stored, DataType::F32, DataType::I8), None);
    }
}

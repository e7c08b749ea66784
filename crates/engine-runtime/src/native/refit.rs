//! A stripped plan gets its weights.

use trtx::trtx_sys::nvinfer1;
use trtx::{CudaEngine, Logger, Refitter};

use super::glue::{dtype_of, refused};
use crate::RuntimeError;
use crate::tensor::{cast, width};
use crate::weights::Weights;

/// More weights than any model has tensors.
const MOST: i32 = 1 << 20;

/// Gives the engine each weight that it asks for, in the type that it asks for.
pub(super) fn refit(engine: &CudaEngine<'_>, logger: &Logger, weights: &Weights) -> Result<(), RuntimeError> {
    let doing = "take its weights";
    let mut refitter = Refitter::new(engine, logger).map_err(refused(doing))?;
    // TensorRT reads them when it refits, not when it is told of them.
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for name in refitter.all_weights(MOST).map_err(refused(doing))? {
        // A constant of the graph has no weight; if TensorRT misses it, it says so below.
        let Some((stored, bytes)) = weights.get(&name)? else { continue };
        let wanted = refitter.weights_prototype(&name);
        let type_ = wanted.type_.clone();
        let dtype = dtype_of(type_.clone().into()).unwrap_or(stored);
        let bytes = cast(bytes.to_vec(), stored, dtype).ok_or_else(|| RuntimeError::Weight {
            name: name.clone(),
            reason: format!("it is stored as {stored:?}, and the plan wants {dtype:?}"),
        })?;
        let count = i64::try_from(bytes.len() / width(dtype)).unwrap_or_default();
        if count != wanted.count {
            let reason = format!("it holds {count} values, and the plan wants {}", wanted.count);
            return Err(RuntimeError::Weight { name, reason });
        }
        let given = nvinfer1::Weights { type_, values: bytes.as_ptr().cast(), count };
        kept.push(bytes);
        // SAFETY: the pointer is to `count` values of the type, on the heap, which `kept` holds until the plan has them.
        unsafe { refitter.set_named_weights_with_location(&name, given, nvinfer1::TensorLocation::kHOST) }
            .map_err(refused(doing))?;
    }
    if let Some(name) = refitter.missing_weights(MOST).map_err(refused(doing))?.into_iter().next() {
        let reason = "none of the version's safetensors has it".to_owned();
        return Err(RuntimeError::Weight { name, reason });
    }
    refitter.refit_cuda_engine().map_err(refused(doing))?;
    tracing::debug!(weights = kept.len(), "a stripped plan has its weights");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_export::DataType;

    #[test]
    fn types_of_weights_are_known_by_both_names() {
        assert_eq!(dtype_of(trtx::DataType::kHALF), Some(DataType::F16));
        assert_eq!(dtype_of(trtx::DataType::kINT64), Some(DataType::I64));
        assert_eq!(dtype_of(trtx::DataType::kINT4), None);
    }
}

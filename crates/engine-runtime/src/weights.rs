//! The weights of a stripped plan: the version's own safetensors, which its graph was built from.

use std::path::Path;

use onnx_export::DataType;
use safetensors::SafeTensors;

use crate::description::EngineRecord;
use crate::{RuntimeError, plan};

/// The weight files that an engine was built from, read whole.
#[derive(Debug)]
pub(crate) struct Weights(Vec<Vec<u8>>);

impl Weights {
    /// Reads each file that `engine.json` names from the folder of the version. Bytes other than those are refused.
    pub(crate) fn read(version: &Path, record: &EngineRecord) -> Result<Self, RuntimeError> {
        let read = |(name, sha256): (&String, &String)| plan::checked(&version.join(name), sha256, None);
        record.weights_sha256.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// A weight by the name that the graph and the safetensors have in common.
    pub(crate) fn get(&self, name: &str) -> Result<Option<(DataType, &[u8])>, RuntimeError> {
        let bad = |reason: String| RuntimeError::Weight { name: name.to_owned(), reason };
        for file in &self.0 {
            let tensors = SafeTensors::deserialize(file).map_err(|error| bad(error.to_string()))?;
            let Ok(view) = tensors.tensor(name) else { continue };
            let dtype = DataType::from_safetensors(view.dtype())
                .ok_or_else(|| bad(format!("it is of {:?}, which no graph holds", view.dtype())))?;
            // The view's bytes are the file's, only its borrow is shorter.
            let place = view.data().as_ptr() as usize - file.as_ptr() as usize;
            return Ok(Some((dtype, &file[place..place + view.data().len()])));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_store::Digest;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    #[test]
    fn weights_come_from_the_files_that_the_engine_was_built_from() -> Result<(), Box<dyn std::error::Error>>
    {
        let root = tempfile::tempdir()?;
        let half = 1.5_f32.to_le_bytes();
        let files = [("a.safetensors", "x", &half[..]), ("b.safetensors", "y", &half[..2])];
        let mut digests = serde_json::Map::new();
        for (file, tensor, bytes) in files {
            let dtype = if bytes.len() == 4 { Dtype::F32 } else { Dtype::F16 };
            let view = TensorView::new(dtype, vec![1], bytes)?;
            let bytes = safetensors::serialize([(tensor, view)], None)?;
            std::fs::write(root.path().join(file), &bytes)?;
            digests.insert(file.to_owned(), Digest::of(&bytes).to_string().into());
        }
        let record: EngineRecord = serde_json::from_value(serde_json::json!({
            "flavour": "tensorrt-rtx", "version": "1", "plan_bytes": 1, "parse_seconds": 0.1, "build_seconds": 1.0,
            "peak_memory_bytes": 5, "plan_sha256": "0", "targets": [89], "precision": "fp16", "inputs": [],
            "outputs": [], "onnx_sha256": "0", "weights_sha256": digests
        }))?;
        let weights = Weights::read(root.path(), &record)?;
        assert_eq!(weights.get("x")?, Some((DataType::F32, &half[..])));
        assert_eq!(weights.get("y")?, Some((DataType::F16, &half[..2])));
        assert_eq!(weights.get("z")?, None);
        std::fs::write(root.path().join("b.safetensors"), b"other bytes")?;
        let refused = Weights::read(root.path(), &record);
        assert!(matches!(refused, Err(RuntimeError::Digest { .. })), "{refused:?}");
        Ok(())
    }
}

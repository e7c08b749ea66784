//! How TensorRT runs a plan: CUDA graphs of its own, and what it compiled for this GPU, kept between processes.

use std::rc::Rc;

use trtx::{CudaEngine, RuntimeConfig};

use super::glue::refused;
use crate::RuntimeError;
use crate::engine::CudaGraphs;

#[cfg(not(feature = "tensorrt-enterprise"))]
pub(super) use rtx::{Compiled, configure};

/// This TensorRT compiles nothing when it runs: there is nothing to keep.
#[cfg(feature = "tensorrt-enterprise")]
pub(super) struct Compiled;

#[cfg(feature = "tensorrt-enterprise")]
#[expect(clippy::unused_self, reason = "the other kind, which has these methods too, uses it")]
impl Compiled {
    pub(super) fn ran(&mut self, _is_new: bool) {}

    pub(super) fn keep(&mut self) {}
}

#[cfg(feature = "tensorrt-enterprise")]
pub(super) fn configure(
    engine: &mut CudaEngine<'static>,
    _graphs: CudaGraphs,
) -> Result<(Rc<RuntimeConfig<'static>>, Compiled), RuntimeError> {
    let config = engine.create_runtime_config().map_err(refused("configure itself"))?;
    Ok((Rc::new(config), Compiled))
}

#[cfg(not(feature = "tensorrt-enterprise"))]
mod rtx {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use trtx::{
        CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy as Specialization, RuntimeCache,
    };

    use super::{CudaEngine, CudaGraphs, Rc, RuntimeConfig, RuntimeError, refused};
    use crate::cache::CacheFile;

    /// What was compiled is kept no more often than this while batches run; at the end it always is.
    const KEEP_EVERY: Duration = Duration::from_mins(1);

    /// What TensorRT-RTX compiled, and where it is kept; nothing where nothing is kept.
    pub(crate) struct Compiled(Option<Kept>);

    struct Kept {
        cache: Arc<RuntimeCache>,
        file: CacheFile,
        /// Bytes as last read or written, by their number: what has not grown holds nothing new.
        bytes: usize,
        at: Instant,
        /// Whether a shape ran since that had not run before.
        has_news: bool,
    }

    impl Compiled {
        /// A batch ran, of a shape that was new or not.
        pub(crate) fn ran(&mut self, is_new: bool) {
            let Some(kept) = &mut self.0 else { return };
            kept.has_news |= is_new;
            if kept.has_news && kept.at.elapsed() > KEEP_EVERY {
                self.keep();
            }
        }

        /// Keeps what was compiled, if that is more than was kept. Failing to costs the next process time only.
        pub(crate) fn keep(&mut self) {
            let Some(Kept { cache, file, bytes, at, has_news }) = &mut self.0 else { return };
            (*at, *has_news) = (Instant::now(), false);
            let Ok(compiled) = cache.serialize() else {
                tracing::warn!("TensorRT-RTX does not say what it compiled, so nothing of it is kept");
                return;
            };
            if compiled.len() == *bytes {
                return;
            }
            match file.save(&compiled) {
                Ok(()) => *bytes = compiled.len(),
                Err(error) => {
                    tracing::warn!(path = %file.path().display(), cause = %error, "compiled kernels could not be kept");
                }
            }
        }
    }

    pub(crate) fn configure(
        engine: &mut CudaEngine<'static>,
        graphs: CudaGraphs,
        file: Option<CacheFile>,
    ) -> Result<(Rc<RuntimeConfig<'static>>, Compiled), RuntimeError> {
        let doing = "configure itself";
        let mut config = engine.create_runtime_config().map_err(refused(doing))?;
        match graphs {
            CudaGraphs::Off => {}
            // What is recorded is recorded with the kernels of that moment: they should be the ones made for the shape.
            CudaGraphs::Recorded => {
                config.set_dynamic_shapes_kernel_specialization_strategy(Specialization::kEAGER);
            }
            CudaGraphs::BuiltIn => config
                .set_cuda_graph_strategy(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)
                .map_err(refused(doing))?,
        }
        let kept = match file {
            None => None,
            Some(file) => {
                let cache = Arc::new(config.create_runtime_cache().map_err(refused(doing))?);
                let mut bytes = 0;
                if let Some(found) = file.load() {
                    match cache.deserialize(&found) {
                        Ok(()) => bytes = found.len(),
                        Err(error) => {
                            tracing::warn!(path = %file.path().display(), cause = %error, "kept kernels are of no use");
                        }
                    }
                }
                config.set_runtime_cache(Arc::clone(&cache)).map_err(refused(doing))?;
                Some(Kept { cache, file, bytes, at: Instant::now(), has_news: false })
            }
        };
        Ok((Rc::new(config), Compiled(kept)))
    }
}

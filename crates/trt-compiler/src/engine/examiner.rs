//! The child process, asked about a plan that is there already.

use trtx::trtx_sys::LayerInformationFormat;
#[cfg(not(feature = "tensorrt-enterprise"))]
use trtx::{EngineInvalidityDiagnostics, EngineValidity};
use trtx::{Logger, Runtime};

use super::worker::{At, Channel, Failure, LOADING, Reporter};
use super::{Depth, ExamineRequest, Examined};

/// What TensorRT-RTX's bits mean (`NvInferRuntime.h`, `EngineInvalidityDiagnostics`).
#[cfg(not(feature = "tensorrt-enterprise"))]
const MEANINGS: [(EngineInvalidityDiagnostics, &str); 7] = [
    (EngineInvalidityDiagnostics::VERSION_MISMATCH, "another version of TensorRT-RTX built it"),
    (EngineInvalidityDiagnostics::UNSUPPORTED_CC, "it was built for other GPU generations"),
    (EngineInvalidityDiagnostics::OLD_CUDA_DRIVER, "the CUDA driver is too old"),
    (EngineInvalidityDiagnostics::OLD_CUDA_RUNTIME, "the CUDA runtime is too old"),
    (EngineInvalidityDiagnostics::INSUFFICIENT_GPU_MEMORY, "the GPU has too little memory for its weights"),
    (EngineInvalidityDiagnostics::MALFORMED_ENGINE, "it is no plan of TensorRT-RTX, or a damaged one"),
    (EngineInvalidityDiagnostics::CUDA_ERROR, "the CUDA driver or runtime is not installed as it should be"),
];

/// Opens the plan with the libraries that would run it.
pub(super) fn examine(request: &ExamineRequest, channel: &Channel) -> Result<Examined, Failure> {
    trtx::dynamically_load_tensorrt(Some(&request.libraries.core)).at(LOADING)?;
    let logger = Logger::new(Reporter::new(channel.clone())).at("create the logger")?;
    let plan = std::fs::read(&request.plan).at("read the plan")?;
    let mut runtime = Runtime::new(&logger).at("create the runtime")?;
    let problems = problems(&runtime, &plan)?;
    if request.depth == Depth::Header || !problems.is_empty() {
        return Ok(Examined { problems, inspected: None });
    }
    let engine = runtime.deserialize_cuda_engine(&plan).at("load the plan")?;
    let inspector = engine.create_engine_inspector().at("inspect the engine")?;
    let inspected = inspector.engine_information(LayerInformationFormat::kJSON).at("inspect the engine")?;
    Ok(Examined { problems, inspected: Some(inspected) })
}

/// What TensorRT-RTX says of the plan's header, a line each.
#[cfg(not(feature = "tensorrt-enterprise"))]
fn problems(runtime: &Runtime<'_>, plan: &[u8]) -> Result<Vec<String>, Failure> {
    let (validity, bits) = runtime.engine_validity(plan).at("read the plan's header")?;
    let mut problems: Vec<String> = MEANINGS
        .into_iter()
        .filter(|(bit, _)| bits.contains(*bit))
        .map(|(_, meaning)| meaning.to_owned())
        .collect();
    if validity == EngineValidity::kINVALID && problems.is_empty() {
        // Without a usable driver it cannot tell, and its log says so.
        problems.push("it cannot read the properties of a GPU on this host".to_owned());
    }
    Ok(problems)
}

/// The other one says nothing of a plan before it loads it.
#[cfg(feature = "tensorrt-enterprise")]
#[expect(clippy::unnecessary_wraps, reason = "the other kind can fail to look")]
fn problems(_runtime: &Runtime<'_>, _plan: &[u8]) -> Result<Vec<String>, Failure> {
    Ok(Vec::new())
}

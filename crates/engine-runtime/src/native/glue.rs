//! What every part of running a plan needs of TensorRT: the library opened once, its log, its errors, its types.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use onnx_export::DataType;
use trtx::Logger;
use trtx::logger::{LogHandler, Severity};
use trtx::trtx_sys::Dims64;

use crate::RuntimeError;
use crate::library::Flavour;

/// Opens TensorRT's library, once for the process.
pub(super) fn open_library(path: &Path) -> Result<(), RuntimeError> {
    static OPENED: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(opened) = opened.as_ref() {
        return if opened == path {
            Ok(())
        } else {
            Err(RuntimeError::OtherLibrary { opened: opened.clone(), asked: path.to_owned() })
        };
    }
    trtx::dynamically_load_tensorrt(Some(path)).map_err(|error| RuntimeError::Library {
        path: path.to_owned(),
        runtime: Flavour::HERE.title(),
        reason: error.to_string(),
    })?;
    *opened = Some(path.to_owned());
    Ok(())
}

/// The errors that TensorRT logged last, for the error that follows them.
static SAID: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
/// As many of them as an error repeats.
const LAST_WORDS: usize = 8;

struct Logs;

impl LogHandler for Logs {
    fn log(&self, severity: Severity, message: &str) {
        let message = message.trim();
        match severity {
            Severity::InternalError | Severity::Error => {
                tracing::error!(target: "tensorrt", "{message}");
                let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
                if said.len() == LAST_WORDS {
                    said.pop_front();
                }
                said.push_back(message.to_owned());
            }
            Severity::Warning => tracing::warn!(target: "tensorrt", "{message}"),
            Severity::Info | Severity::Verbose => tracing::trace!(target: "tensorrt", "{message}"),
        }
    }
}

/// The logger of the process: it must outlive everything that TensorRT makes.
pub(super) fn logger() -> Result<&'static Logger, RuntimeError> {
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    if let Some(logger) = LOGGER.get() {
        return Ok(logger);
    }
    let logger = Logger::new(Logs).map_err(refused("start"))?;
    Ok(LOGGER.get_or_init(|| logger))
}

pub(super) fn refused(doing: &'static str) -> impl FnOnce(trtx::Error) -> RuntimeError {
    move |error| RuntimeError::Refused {
        runtime: Flavour::HERE.title(),
        doing,
        reason: error.to_string(),
        log: SAID.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect(),
    }
}

pub(super) fn misdescribed(what: &str) -> RuntimeError {
    RuntimeError::Refused {
        runtime: Flavour::HERE.title(),
        doing: "run the plan as engine.json describes it",
        reason: format!("it has {what}; build it again: build-engine --agent AGENT --rebuild"),
        log: Vec::new(),
    }
}

pub(super) fn dims(shape: &[usize]) -> Dims64 {
    let sizes: Vec<i64> = shape.iter().map(|size| i64::try_from(*size).unwrap_or(i64::MAX)).collect();
    Dims64::from_slice(&sizes)
}

/// TensorRT's dimensions; `None` if one is unknown.
pub(super) fn sizes(dims: &Dims64) -> Option<Vec<usize>> {
    let count = usize::try_from(dims.nbDims).ok()?;
    dims.d.get(..count)?.iter().map(|size| usize::try_from(*size).ok()).collect()
}

/// TensorRT's types under their names in graphs; `None` for those that no graph of ours has.
pub(super) fn dtype_of(dtype: trtx::DataType) -> Option<DataType> {
    Some(match dtype {
        trtx::DataType::kFLOAT => DataType::F32,
        trtx::DataType::kHALF => DataType::F16,
        trtx::DataType::kBF16 => DataType::Bf16,
        trtx::DataType::kINT64 => DataType::I64,
        trtx::DataType::kINT32 => DataType::I32,
        trtx::DataType::kINT8 => DataType::I8,
        trtx::DataType::kBOOL => DataType::Bool,
        trtx::DataType::kFP8 => DataType::F8E4m3,
        _ => return None,
    })
}

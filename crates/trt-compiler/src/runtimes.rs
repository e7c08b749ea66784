//! Where the native libraries are: ONNX Runtime and TensorRT-RTX, found by path and opened at run time.

use std::env;
use std::path::{Path, PathBuf};

use engine_runtime::Flavour;
pub use model_loader::onnx::{DEFAULT_RUNTIMES, MissingRuntime, ONNXRUNTIME_VARIABLE, RUNTIMES_VARIABLE};
use model_loader::onnx::{MAKE_RUNTIMES, Places};
use serde::{Deserialize, Serialize};

/// Names the folder of TensorRT's two libraries: `TENSORRT_RTX_LIB_DIR`, or `TENSORRT_ENTERPRISE_LIB_DIR` where this is built
/// for that one.
pub const TENSORRT_RTX_VARIABLE: &str = Flavour::HERE.variable();

const RTX_CORE: &str = Flavour::HERE.core();
const RTX_PARSER: &str = Flavour::HERE.parser();

/// The two libraries of TensorRT-RTX.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtxLibraries {
    /// The builder and runtime.
    pub core: PathBuf,
    /// The ONNX parser, which needs `core` beside it.
    pub parser: PathBuf,
}

/// The places to search for native libraries.
#[derive(Clone, Debug)]
pub struct Runtimes {
    places: Places,
    tensorrt_rtx: Option<PathBuf>,
}

impl AsRef<Places> for Runtimes {
    fn as_ref(&self) -> &Places {
        &self.places
    }
}

impl Runtimes {
    /// The places that the environment names, then the default folder, then the system's.
    #[must_use]
    pub fn from_env() -> Self {
        let named = env::var_os(TENSORRT_RTX_VARIABLE).filter(|value| !value.is_empty());
        Self { places: Places::from_env(), tensorrt_rtx: named.map(PathBuf::from) }
    }

    /// The folder of native runtimes that is searched first.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.places.folder()
    }

    /// ONNX Runtime's library.
    pub fn onnxruntime(&self) -> Result<PathBuf, MissingRuntime> {
        self.places.onnxruntime()
    }

    /// TensorRT-RTX's libraries.
    pub fn tensorrt_rtx(&self) -> Result<RtxLibraries, MissingRuntime> {
        let folders = self
            .tensorrt_rtx
            .as_ref()
            .map_or_else(|| self.places.folders(Flavour::HERE.name()), |named| vec![named.clone()]);
        for file in [RTX_CORE, RTX_PARSER] {
            if !folders.iter().any(|folder| folder.join(file).is_file()) {
                return Err(MissingRuntime {
                    runtime: Flavour::HERE.title(),
                    file,
                    searched: folders,
                    variable: TENSORRT_RTX_VARIABLE,
                    named: self.tensorrt_rtx.is_some(),
                    install: match Flavour::HERE {
                        Flavour::Rtx => MAKE_RUNTIMES,
                        Flavour::Enterprise => {
                            "install NVIDIA's TensorRT 11, which is in no package registry"
                        }
                    },
                });
            }
        }
        let find = |file| folders.iter().map(|folder| folder.join(file)).find(|path| path.is_file());
        Ok(RtxLibraries {
            core: find(RTX_CORE).unwrap_or_default(),
            parser: find(RTX_PARSER).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_runtime_names_the_file_the_places_and_the_command() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let runtimes = Runtimes { places: Places::only(root.path()), tensorrt_rtx: None };
        let Err(error) = runtimes.tensorrt_rtx() else {
            return Err(std::io::Error::other("an empty folder has no TensorRT-RTX"));
        };
        let text = error.to_string();
        for part in [RTX_CORE, "make runtimes", TENSORRT_RTX_VARIABLE, &*root.path().to_string_lossy()] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        Ok(())
    }
}

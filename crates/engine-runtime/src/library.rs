//! TensorRT's library: which kinds there are, and where one is found on this host.

use std::env;
use std::path::{Path, PathBuf};

use crate::RuntimeError;

/// Names the folder of native runtimes. Under cargo it is set to `.runtimes` in the checkout.
const RUNTIMES_VARIABLE: &str = "MODEL_RUNTIMES";
/// The folder of native runtimes where [`RUNTIMES_VARIABLE`] is not set.
const DEFAULT_RUNTIMES: &str = "/opt/justnews/runtimes";
/// Where a distribution or a vendor's package would put native libraries.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"];

/// A kind of TensorRT. Plans of one do not run on the other, and a program is built for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// TensorRT-RTX: compiles for a GPU when the plan is loaded, so that plans are built without one.
    Rtx,
    /// The TensorRT of data-centre GPUs.
    Enterprise,
}

impl Flavour {
    /// What this program was built for.
    pub const HERE: Self = if cfg!(feature = "tensorrt-enterprise") { Self::Enterprise } else { Self::Rtx };

    /// Its name in `engine.json` and in paths.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rtx => "tensorrt-rtx",
            Self::Enterprise => "tensorrt",
        }
    }

    /// Its name for people.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Rtx => "TensorRT-RTX",
            Self::Enterprise => "TensorRT",
        }
    }

    /// File name of the library that builds and runs plans.
    #[must_use]
    pub const fn core(self) -> &'static str {
        match self {
            Self::Rtx => "libtensorrt_rtx.so.1",
            Self::Enterprise => "libnvinfer.so.11",
        }
    }

    /// File name of the ONNX parser, which needs the other beside it.
    #[must_use]
    pub const fn parser(self) -> &'static str {
        match self {
            Self::Rtx => "libtensorrt_onnxparser_rtx.so.1",
            Self::Enterprise => "libnvonnxparser.so.11",
        }
    }

    /// The variable that names the folder of its libraries.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Rtx => "TENSORRT_RTX_LIB_DIR",
            // Not TENSORRT_LIB_DIR, which the bindings read when they are compiled.
            Self::Enterprise => "TENSORRT_ENTERPRISE_LIB_DIR",
        }
    }

    /// An error for a plan of the other kind.
    pub fn check(self, engine: &str) -> Result<(), RuntimeError> {
        if engine == self.name() {
            return Ok(());
        }
        let next = match self {
            Self::Rtx => "build it again for this one: build-engine --agent AGENT --rebuild",
            Self::Enterprise => {
                "build it again with a build-engine that has the feature `tensorrt-enterprise`, or run it with a program without that feature"
            }
        };
        Err(RuntimeError::Flavour { engine: engine.to_owned(), here: self.name(), next })
    }

    /// The library that runs plans, from where the environment names it, the folder of runtimes or the system's folders.
    pub fn find(self) -> Result<PathBuf, RuntimeError> {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let runtimes = variable(RUNTIMES_VARIABLE).unwrap_or_else(|| DEFAULT_RUNTIMES.into());
        self.find_in(variable(self.variable()), &runtimes, &SYSTEM_FOLDERS.map(PathBuf::from))
    }

    fn install(self) -> String {
        let variable = self.variable();
        match self {
            Self::Rtx => {
                format!("in a checkout `make runtimes` installs it, elsewhere set {variable} to its folder")
            }
            Self::Enterprise => format!(
                "install NVIDIA's TensorRT 11 on this host (it is in no package registry), and set {variable} to the folder of its libraries"
            ),
        }
    }

    fn find_in(
        self,
        named: Option<PathBuf>,
        runtimes: &Path,
        system: &[PathBuf],
    ) -> Result<PathBuf, RuntimeError> {
        let variable = self.variable();
        // What is named is meant: no silent fallback to another copy.
        let (searched, next) = if let Some(folder) = named {
            (vec![folder], format!("{variable} names that place: correct it or unset it"))
        } else {
            let own = std::iter::once(runtimes.join(self.name()));
            (own.chain(system.iter().cloned()).collect(), self.install())
        };
        let found = searched.iter().map(|folder| folder.join(self.core())).find(|path| path.is_file());
        found.ok_or(RuntimeError::NoLibrary { runtime: self.title(), file: self.core(), searched, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_where_it_is_named_or_the_error_says_where_it_was_sought() {
        let root = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let runtimes = root.path().join("runtimes");
        let folder = runtimes.join("tensorrt-rtx");
        std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{error}"));
        let check = |row: &str, flavour: Flavour, named: Option<&Path>, parts: &[&str]| {
            let found = flavour.find_in(named.map(Path::to_owned), &runtimes, &[]);
            match found {
                Ok(path) => assert!(parts.is_empty() && path.ends_with(flavour.core()), "{row}: {path:?}"),
                Err(error) => {
                    assert!(!parts.is_empty() && error.is_the_host(), "{row}: {error}");
                    for part in parts {
                        assert!(error.to_string().contains(part), "{row}: {part} is not in {error}");
                    }
                }
            }
        };
        let parts =
            ["libtensorrt_rtx.so.1", "make runtimes", "TENSORRT_RTX_LIB_DIR", "runtimes/tensorrt-rtx"];
        check("nothing there", Flavour::Rtx, None, &parts);
        check("named in vain", Flavour::Rtx, Some(root.path()), &["correct it or unset it"]);
        std::fs::write(folder.join(Flavour::Rtx.core()), "").unwrap_or_else(|error| panic!("{error}"));
        check("there", Flavour::Rtx, None, &[]);
        check("named", Flavour::Rtx, Some(&folder), &[]);
        check("named elsewhere", Flavour::Rtx, Some(root.path()), &["TENSORRT_RTX_LIB_DIR"]);
        check(
            "the other kind",
            Flavour::Enterprise,
            None,
            &["libnvinfer.so.11", "TENSORRT_ENTERPRISE_LIB_DIR", "TensorRT 11"],
        );
    }
}

//! Where ONNX Runtime's library is: found by path, opened at run time.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Names the folder of native runtimes. Under cargo it is set to `.runtimes` in the checkout.
pub const RUNTIMES_VARIABLE: &str = "MODEL_RUNTIMES";
/// The folder of native runtimes where [`RUNTIMES_VARIABLE`] is not set.
pub const DEFAULT_RUNTIMES: &str = "/opt/justnews/runtimes";
/// Names ONNX Runtime's library itself; the variable that the `ort` crate reads too.
pub const ONNXRUNTIME_VARIABLE: &str = "ORT_DYLIB_PATH";

/// How the runtimes that registries have are installed.
pub const MAKE_RUNTIMES: &str = "in a checkout `make runtimes` installs it";

const LIBRARY: &str = "libonnxruntime.so";
/// Where a distribution or a vendor's package would put native libraries.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/local/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"];

/// A native library that was looked for and not found.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{runtime} is missing: no {file} in {}; {}", list(searched), self.next())]
pub struct MissingRuntime {
    /// Which runtime.
    pub runtime: &'static str,
    /// The file looked for.
    pub file: &'static str,
    /// The places searched, in order.
    pub searched: Vec<PathBuf>,
    /// The variable that can name its place.
    pub variable: &'static str,
    /// Whether that variable did name it, so that nothing else was searched.
    pub named: bool,
    /// How it is installed.
    pub install: &'static str,
}

impl MissingRuntime {
    /// What to do about it.
    #[must_use]
    pub fn next(&self) -> String {
        let variable = self.variable;
        if self.named {
            return format!("{variable} names that place: correct it or unset it");
        }
        format!("{}, elsewhere set {variable} to where it is", self.install)
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The places to search for native libraries.
#[derive(Clone, Debug)]
pub struct Places {
    folder: PathBuf,
    onnxruntime: Option<PathBuf>,
    system: Vec<PathBuf>,
}

impl Places {
    /// The places that the environment names, then the default folder, then the system's.
    #[must_use]
    pub fn from_env() -> Self {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            folder: variable(RUNTIMES_VARIABLE).unwrap_or_else(|| DEFAULT_RUNTIMES.into()),
            onnxruntime: variable(ONNXRUNTIME_VARIABLE),
            system: SYSTEM_FOLDERS.map(PathBuf::from).into(),
        }
    }

    /// This folder of native runtimes and no other place.
    #[must_use]
    pub fn only(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), onnxruntime: None, system: Vec::new() }
    }

    /// The folder of native runtimes that is searched first.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folders where a runtime's libraries may be, in order: its own in the folder of runtimes, then the system's.
    #[must_use]
    pub fn folders(&self, runtime: &str) -> Vec<PathBuf> {
        std::iter::once(self.folder.join(runtime)).chain(self.system.iter().cloned()).collect()
    }

    /// ONNX Runtime's library.
    pub fn onnxruntime(&self) -> Result<PathBuf, MissingRuntime> {
        let missing = |searched| MissingRuntime {
            runtime: "ONNX Runtime",
            file: LIBRARY,
            searched,
            variable: ONNXRUNTIME_VARIABLE,
            named: self.onnxruntime.is_some(),
            install: MAKE_RUNTIMES,
        };
        if let Some(named) = &self.onnxruntime {
            // What is named is meant: no silent fallback to another copy.
            return if named.is_file() { Ok(named.clone()) } else { Err(missing(vec![named.clone()])) };
        }
        let folders = self.folders("onnxruntime");
        folders.iter().find_map(|folder| newest(folder, LIBRARY)).ok_or_else(|| missing(folders))
    }
}

impl AsRef<Places> for Places {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// `folder/name`, else the `folder/name.<version>` with the highest version.
fn newest(folder: &Path, name: &str) -> Option<PathBuf> {
    let plain = folder.join(name);
    if plain.is_file() {
        return Some(plain);
    }
    let version = |file: &str| -> Option<Vec<u32>> {
        file.strip_prefix(name)?.strip_prefix('.')?.split('.').map(|part| part.parse().ok()).collect()
    };
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| Some((version(&file)?, file)))
        .max()
        .map(|(_, file)| folder.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_wins_by_number_not_by_letter() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("onnxruntime");
        fs::create_dir(&folder)?;
        for version in ["1.9.1", "1.32.0", "1.4.2", "x"] {
            fs::write(folder.join(format!("{LIBRARY}.{version}")), "")?;
        }
        let found = Places::only(root.path()).onnxruntime().map_err(std::io::Error::other)?;
        assert_eq!(found.file_name().and_then(|name| name.to_str()), Some("libonnxruntime.so.1.32.0"));
        Ok(())
    }

    #[test]
    fn a_missing_library_names_the_file_the_places_and_the_command() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let Err(error) = Places::only(root.path()).onnxruntime() else {
            return Err(std::io::Error::other("an empty folder has no ONNX Runtime"));
        };
        let text = error.to_string();
        for part in [LIBRARY, "make runtimes", ONNXRUNTIME_VARIABLE, &*root.path().to_string_lossy()] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        Ok(())
    }
}

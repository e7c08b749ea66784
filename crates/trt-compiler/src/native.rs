//! What a native library says its version is.
#![expect(unsafe_code, reason = "calling a function of a library that is opened at run time")]

use std::path::Path;

use libloading::Library;

/// The version of the TensorRT-RTX library at `core`: major.minor.patch.build. Also opens the parser beside it, if one is
/// given, which fails where the two do not belong together.
pub fn tensorrt_version(core: &Path, parser: Option<&Path>) -> Result<String, libloading::Error> {
    // SAFETY: the libraries' initialisers have no preconditions (the parser's is that its core is open, which it is), and
    // the four functions take nothing and return a number (`NvInferRuntime.h`).
    unsafe {
        let library = Library::new(core)?;
        let _parser = parser.map(|path| Library::new(path)).transpose()?;
        let mut parts = Vec::new();
        for part in ["Major", "Minor", "Patch", "Build"] {
            let name = format!("getInferLib{part}Version\0");
            parts.push(library.get::<unsafe extern "C" fn() -> i32>(name.as_bytes())?().to_string());
        }
        Ok(parts.join("."))
    }
}

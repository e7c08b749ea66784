//! What a native library says its version is.
#![expect(unsafe_code, reason = "calling a function of a library that is opened at run time")]

use std::ffi::{CStr, c_char};
use std::path::Path;

use libloading::Library;

/// The first member of ONNX Runtime's `OrtApiBase` is `GetApi`, the second `GetVersionString`
/// (`onnxruntime_c_api.h`; fixed, since it is how every later member is found).
#[repr(C)]
struct OrtApiBase {
    get_api: *const (),
    get_version: unsafe extern "C" fn() -> *const c_char,
}

/// The version of the ONNX Runtime library at `path`.
pub(crate) fn onnxruntime_version(path: &Path) -> Result<String, libloading::Error> {
    // SAFETY: ONNX Runtime's initialisers have no preconditions; the symbol has this type since version 1.0, its
    // result is a static object, and the string lives as long as the library, which is held until it is copied.
    unsafe {
        let library = Library::new(path)?;
        let base = library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0")?();
        let text = ((*base).get_version)();
        Ok(CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

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

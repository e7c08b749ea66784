//! What the library says its version is.
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
pub(super) fn version(path: &Path) -> Result<String, libloading::Error> {
    // SAFETY: ONNX Runtime's initialisers have no preconditions; the symbol has this type since version 1.0, its
    // result is a static object, and the string lives as long as the library, which is held until it is copied.
    unsafe {
        let library = Library::new(path)?;
        let base = library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0")?();
        let text = ((*base).get_version)();
        Ok(CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

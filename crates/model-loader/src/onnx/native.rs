//! What the library says its version is, and that it is to report nothing.
#![expect(
    unsafe_code,
    reason = "calling a function of a library that is opened at run time, and preparing for it"
)]

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

/// From 1.29 on the library, as its makers publish it, tells them of the host and of each model that it loads, and keeps a
/// number of the host in the home directory, unless this is set before it is initialised. Nothing in its interface comes
/// early enough (<https://github.com/microsoft/onnxruntime/pull/27379>).
const NO_TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";

/// Forbids the library to report to its makers, for the whole process, unless somebody has decided otherwise.
pub(super) fn forbid_telemetry() {
    if std::env::var_os(NO_TELEMETRY).is_none() {
        // SAFETY: Rust's own readers of the environment are held off meanwhile. Native code in another thread that reads it
        // right now could see it move, so this is done once, before the library that it is for is opened; a service that
        // sets the variable itself spares even that.
        unsafe { std::env::set_var(NO_TELEMETRY, "1") }
    }
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

//! TensorRT's builder, by its C++ interface.
//!
//! The safe bindings hand a plan over in memory, where it lies beside the weights that it was made of, which takes twice as
//! much as either. TensorRT can also write it as it goes ([`Builder::build_to`]), a piece at a time.
//!
//! Names of methods and flags are those of `NvInfer.h`.
#![expect(unsafe_code, reason = "calling functions of libraries that are opened at run time")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::Pin;

use cxx::UniquePtr;
use libloading::Library;
use trtx::OptProfileSelector;
use trtx::logger::Severity;
use trtx::trtx_sys::nvinfer1::{
    APILanguage, IBuilder, IBuilderConfig, INetworkDefinition, IProgressMonitor, IStreamWriter,
};
use trtx::trtx_sys::nvonnxparser::IParser;
use trtx::trtx_sys::{self, DataType, Dims64, LayerType, RustLoggerBridge};

#[cfg(feature = "tensorrt-enterprise")]
use super::timing_cache::TimingCache;
use super::{InputShape, Layer};
use crate::profile::Span;
use crate::runtimes::RtxLibraries;

/// Why the builder could not do something.
#[derive(Debug, thiserror::Error)]
pub(super) enum BuilderError {
    #[error(transparent)]
    Library(#[from] libloading::Error),
    #[error("the name {0:?} has a zero byte")]
    Name(String),
    /// What TensorRT returns nothing more about; the reason is in what it logged.
    #[error("TensorRT refused")]
    Refused,
    /// The plan could not be written.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Who hears what TensorRT has to say, in whichever of its threads.
pub(super) trait Listener: Send + Sync {
    fn log(&self, severity: Severity, message: &str);
    fn phase_start(&self, phase: &str, steps: i32);
    fn step_complete(&self, phase: &str, step: i32) -> ControlFlow<()>;
    fn phase_finish(&self, phase: &str);
}

/// What the C++ side is given to find its listener by: a thin pointer to a wide one.
type Heard = Box<dyn Listener>;

/// A builder with one network and one configuration. Each is destroyed before what it was made by.
pub(super) struct Builder {
    /// Holds the weights that the network points at.
    parser: UniquePtr<IParser>,
    config: UniquePtr<IBuilderConfig>,
    network: UniquePtr<INetworkDefinition>,
    interface: UniquePtr<IBuilder>,
    #[cfg(feature = "tensorrt-enterprise")]
    timings: Option<TimingCache>,
    _monitor: UniquePtr<IProgressMonitor>,
    _logger: Bridge,
    _listener: Box<Heard>,
    _libraries: [Library; 2],
}

/// TensorRT's logger, which hands on to a [`Listener`].
struct Bridge(*mut RustLoggerBridge);

impl Drop for Bridge {
    fn drop(&mut self) {
        // SAFETY: it was made by `create_rust_logger_bridge`, and nothing that logs is left.
        unsafe { trtx_sys::destroy_rust_logger_bridge(self.0) }
    }
}

/// Opens one of TensorRT's libraries; a second time costs nothing.
pub(super) fn open(path: &Path) -> Result<Library, libloading::Error> {
    // SAFETY: the initialisers of these libraries have no preconditions.
    unsafe { Library::new(path) }
}

impl Builder {
    /// Opens the libraries and makes a builder with an empty network.
    pub(super) fn open(libraries: &RtxLibraries, listener: Heard) -> Result<Self, BuilderError> {
        let listener = Box::new(listener);
        let heard = std::ptr::from_ref::<Heard>(&listener).cast_mut().cast::<c_void>();
        let libraries = [open(&libraries.core)?, open(&libraries.parser)?];
        // SAFETY: `heard` points into a box that outlives the bridge (fields are dropped in their order).
        let logger = Bridge(unsafe { trtx_sys::create_rust_logger_bridge(log, heard) });
        if logger.0.is_null() {
            return Err(BuilderError::Refused);
        }
        // SAFETY: both symbols have these types in every version since 8.0 (their last argument, the headers' version, is an
        // `int32_t` that is never negative), and check the version they are given; what they return is owned by the caller.
        let (mut builder, network, parser) = unsafe {
            let interface = trtx_sys::get_logger_interface(logger.0);
            let create = libraries[0].get::<unsafe extern "C" fn(*mut c_void, u32) -> *mut IBuilder>(
                b"createInferBuilder_INTERNAL\0",
            )?;
            let mut builder = owned(create(interface, trtx_sys::get_tensorrt_version()))?;
            let mut network = owned(builder.pin_mut().createNetworkV2(0))?;
            let create = libraries[1]
                .get::<unsafe extern "C" fn(*mut c_void, *mut c_void, u32) -> *mut IParser>(
                    b"createNvOnnxParser_INTERNAL\0",
                )?;
            let target = std::ptr::from_mut(network.pin_mut().get_unchecked_mut()).cast();
            let parser = owned(create(target, interface, trtx_sys::get_nvonnxparser_version()))?;
            (builder, network, parser)
        };
        // SAFETY: what it returns is owned by the caller.
        let mut config = unsafe { owned(builder.pin_mut().createBuilderConfig()) }?;
        // SAFETY: as for the logger; the monitor is destroyed after the configuration that uses it.
        let monitor = unsafe {
            let monitor = owned(trtx_sys::trtx_create_progress_monitor(
                heard,
                phase_start,
                step_complete,
                phase_finish,
            ))?;
            config.pin_mut().setProgressMonitor(monitor.as_mut_ptr());
            monitor
        };
        Ok(Self {
            parser,
            config,
            network,
            interface: builder,
            #[cfg(feature = "tensorrt-enterprise")]
            timings: None,
            _monitor: monitor,
            _logger: logger,
            _listener: listener,
            _libraries: libraries,
        })
    }

    /// The configuration, for whatever is a number or a flag.
    pub(super) fn config(&mut self) -> Pin<&mut IBuilderConfig> {
        self.config.pin_mut()
    }

    /// Begins with the times of kernels that were kept of another build.
    #[cfg(feature = "tensorrt-enterprise")]
    pub(super) fn begin_with_timings(&mut self, kept: &[u8]) -> Result<(), BuilderError> {
        self.timings = Some(TimingCache::begin(self.config.pin_mut(), kept)?);
        Ok(())
    }

    /// The times of kernels after a build, to be kept for another one.
    #[cfg(feature = "tensorrt-enterprise")]
    pub(super) fn timings(&self) -> Result<Vec<u8>, BuilderError> {
        self.timings.as_ref().ok_or(BuilderError::Refused)?.serialised()
    }

    /// Reads a graph into the network; weights that lie beside it are looked at in place.
    pub(super) fn parse(&mut self, onnx: &str) -> Result<(), BuilderError> {
        let path = c_string(onnx)?;
        // SAFETY: the string lives through the call.
        let read = unsafe { self.parser.pin_mut().parseFromFile(path.as_ptr(), 0.into()) };
        read.then_some(()).ok_or(BuilderError::Refused)
    }

    pub(super) fn nb_outputs(&self) -> i32 {
        self.network.getNbOutputs()
    }

    /// The layers as parsed. What TensorRT makes of them shows only where a GPU can load the plan.
    pub(super) fn layers(&self) -> Vec<Layer> {
        (0..self.network.getNbLayers()).filter_map(|index| self.layer(index)).collect()
    }

    fn layer(&self, index: i32) -> Option<Layer> {
        // SAFETY: both pointers are the network's, which is there and does not change meanwhile; the name is a string of its
        // own or null.
        unsafe {
            let layer = self.network.getLayer(index).as_ref()?;
            let output = layer.getOutput(0).as_ref()?;
            let dims = output.getDimensions();
            let rank = usize::try_from(dims.nbDims).unwrap_or_default();
            Some(Layer {
                name: text(layer.getName()),
                kind: plain(&format!("{:?}", LayerType::from(layer.getType()))),
                dtype: plain(&format!("{:?}", DataType::from(output.getType()))),
                shape: dims.d.get(..rank).unwrap_or_default().to_vec(),
            })
        }
    }

    /// Adds a profile: for each input the shapes that it may have.
    pub(super) fn add_profile(&mut self, inputs: &[InputShape]) -> Result<(), BuilderError> {
        let profile = self.interface.pin_mut().createOptimizationProfile();
        for input in inputs {
            let name = c_string(&input.name)?;
            for selector in [OptProfileSelector::kMIN, OptProfileSelector::kOPT, OptProfileSelector::kMAX] {
                let dims: Vec<i64> = input.dims.iter().map(|span| i64::from(size(span, selector))).collect();
                // SAFETY: a profile is the builder's, which is there; the name lives through the call.
                let set = unsafe {
                    let profile = Pin::new_unchecked(profile.as_mut().ok_or(BuilderError::Refused)?);
                    profile.setDimensions(name.as_ptr(), selector.into(), &Dims64::from_slice(&dims))
                };
                set.then_some(()).ok_or(BuilderError::Refused)?;
            }
        }
        // SAFETY: as before.
        let index = unsafe { self.config.pin_mut().addOptimizationProfile(profile) };
        if index < 0 { Err(BuilderError::Refused) } else { Ok(()) }
    }

    /// Builds the plan into the file, as it is made, and gives its length in bytes.
    pub(super) fn build_to(&mut self, file: File) -> Result<u64, BuilderError> {
        let mut writer =
            StreamWriter { vtable: &raw const STREAM_WRITER.methods, file, written: 0, failed: None };
        // SAFETY: the writer begins with a pointer to the table of the methods that an `IStreamWriter` has, and outlives the
        // call; nobody moves it meanwhile.
        let built = unsafe {
            let writer = Pin::new_unchecked(&mut *std::ptr::from_mut(&mut writer).cast::<IStreamWriter>());
            let (network, config) = (self.network.pin_mut(), self.config.pin_mut());
            self.interface.pin_mut().buildSerializedNetworkToStream(network, config, writer)
        };
        match writer.failed {
            Some(error) => Err(error.into()),
            None if built => Ok(writer.written),
            None => Err(BuilderError::Refused),
        }
    }
}

/// What was given to the caller, unless it is nothing.
///
/// # Safety
///
/// The pointer is null or of an object that the caller owns.
pub(super) unsafe fn owned<T: cxx::memory::UniquePtrTarget>(
    pointer: *mut T,
) -> Result<UniquePtr<T>, BuilderError> {
    if pointer.is_null() {
        return Err(BuilderError::Refused);
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { UniquePtr::from_raw(pointer) })
}

fn c_string(text: &str) -> Result<CString, BuilderError> {
    CString::new(text).map_err(|_| BuilderError::Name(text.to_owned()))
}

/// # Safety
///
/// The pointer is null or of a string that ends with a zero byte.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// `kMATRIX_MULTIPLY` without its first letter and its shouting.
fn plain(constant: &str) -> String {
    constant.strip_prefix('k').unwrap_or(constant).to_lowercase()
}

fn size(span: &Span, selector: OptProfileSelector) -> u32 {
    match selector {
        OptProfileSelector::kMIN => span.min,
        OptProfileSelector::kOPT => span.opt,
        OptProfileSelector::kMAX => span.max,
    }
}

/// # Safety
///
/// It is the pointer that the bridge and the monitor were given.
unsafe fn listener<'a>(heard: *mut c_void) -> &'a dyn Listener {
    // SAFETY: the caller's promise; the box is there as long as they are.
    unsafe { &**heard.cast::<Heard>() }
}

unsafe extern "C" fn log(heard: *mut c_void, severity: c_int, message: *const c_char) {
    let severity = match severity {
        0 => Severity::InternalError,
        1 => Severity::Error,
        2 => Severity::Warning,
        3 => Severity::Info,
        _ => Severity::Verbose,
    };
    // SAFETY: TensorRT calls it with what it was given, and a string.
    unsafe { listener(heard).log(severity, &text(message)) }
}

unsafe extern "system" fn phase_start(
    heard: *mut c_void,
    phase: *const c_char,
    _parent: *const c_char,
    steps: i32,
) {
    // SAFETY: as above.
    unsafe { listener(heard).phase_start(&text(phase), steps) }
}

unsafe extern "system" fn step_complete(heard: *mut c_void, phase: *const c_char, step: i32) -> bool {
    // SAFETY: as above.
    unsafe { listener(heard).step_complete(&text(phase), step).is_continue() }
}

unsafe extern "system" fn phase_finish(heard: *mut c_void, phase: *const c_char) {
    // SAFETY: as above.
    unsafe { listener(heard).phase_finish(&text(phase)) }
}

/// An object of a class that derives from `IStreamWriter` (`NvInferRuntime.h`), laid out as the Itanium C++ ABI says, which
/// is that of every Linux: first the pointer to its virtual methods, in the order of their declaration, a destructor being
/// two.
#[repr(C)]
struct StreamWriter {
    vtable: *const Methods,
    file: File,
    written: u64,
    failed: Option<io::Error>,
}

#[repr(C)]
struct Methods {
    api_language: unsafe extern "C" fn(*const StreamWriter) -> APILanguage,
    interface_info: unsafe extern "C" fn(*const StreamWriter) -> InterfaceInfo,
    /// Of an object on the stack, and of one that is deleted: TensorRT calls neither, as the header says.
    destroy: [unsafe extern "C" fn(*mut StreamWriter); 2],
    write: unsafe extern "C" fn(*mut StreamWriter, *const c_void, i64) -> i64,
}

/// What lies before the methods belongs to the table: where the object begins, and what `typeid` would say.
#[repr(C)]
struct Table {
    offset_to_top: isize,
    type_info: *const c_void,
    methods: Methods,
}

// SAFETY: nothing in it is ever written.
unsafe impl Sync for Table {}

static STREAM_WRITER: Table = Table {
    offset_to_top: 0,
    type_info: std::ptr::null(),
    methods: Methods { api_language, interface_info, destroy: [destroy; 2], write },
};

/// `InterfaceInfo` of the header.
#[repr(C)]
struct InterfaceInfo {
    kind: *const c_char,
    major: i32,
    minor: i32,
}

unsafe extern "C" fn api_language(_this: *const StreamWriter) -> APILanguage {
    APILanguage::kCPP
}

unsafe extern "C" fn interface_info(_this: *const StreamWriter) -> InterfaceInfo {
    InterfaceInfo { kind: c"IStreamWriter".as_ptr(), major: 1, minor: 0 }
}

unsafe extern "C" fn destroy(_this: *mut StreamWriter) {}

unsafe extern "C" fn write(this: *mut StreamWriter, data: *const c_void, length: i64) -> i64 {
    // SAFETY: the object is the one of `build_to`, which nothing else uses during the build, and the bytes are TensorRT's.
    let (writer, bytes) = unsafe {
        let length = usize::try_from(length).unwrap_or_default();
        let bytes: &[u8] = if data.is_null() { &[] } else { std::slice::from_raw_parts(data.cast(), length) };
        (&mut *this, bytes)
    };
    match writer.file.write_all(bytes) {
        Ok(()) => {
            writer.written += bytes.len() as u64;
            // The disk may begin: the plan is to be durable soon. It promises nothing, so nothing is asked of it.
            // SAFETY: the call takes numbers only, and the descriptor is open.
            let _ =
                unsafe { libc::sync_file_range(writer.file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
            length
        }
        Err(error) => {
            writer.failed.get_or_insert(error);
            -1
        }
    }
}

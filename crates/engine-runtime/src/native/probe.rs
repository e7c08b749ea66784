//! What native libraries say: TensorRT's version, and the GPUs that the CUDA driver sees.

use std::ffi::{c_char, c_int, c_uint};
use std::fmt;
use std::path::Path;

use libloading::Library;
use serde::Serialize;

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

/// The CUDA driver's library, which comes with the driver and with nothing else.
const CUDA_DRIVER: &str = "libcuda.so.1";
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR` (`cuda.h`).
const CAPABILITY: [c_int; 2] = [75, 76];

/// A function of the driver that gives one number.
type NumberOf = unsafe extern "C" fn(*mut c_int) -> c_int;

/// A GPU, as the CUDA driver describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its compute capability, times ten.
    pub sm: u16,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
    /// The CUDA version that the driver is good for, times a thousand: 13020 is 13.2.
    pub driver_cuda: u32,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GPU {} ({})", self.index, self.name)
    }
}

/// The GPUs of this host, or in one line why none can be used.
pub fn gpus() -> Result<Vec<Gpu>, String> {
    // SAFETY: the driver's initialiser has no preconditions.
    let library = unsafe { Library::new(CUDA_DRIVER) }
        .map_err(|_| format!("no NVIDIA driver on this host: {CUDA_DRIVER} cannot be opened"))?;
    // SAFETY: names and signatures are those of `cuda.h`; every pointer is to a local that outlives its call, and the
    // buffer's length goes with it. `cuInit` comes first, as it must.
    unsafe {
        let call = |name: &'static str, code: c_int| match code {
            0 => Ok(()),
            100 => Err("the NVIDIA driver sees no GPU".to_owned()),
            code => Err(format!("the NVIDIA driver does not work: {name} gave error {code}")),
        };
        let missing = |error: libloading::Error| format!("{CUDA_DRIVER} is no CUDA driver: {error}");
        let init = library.get::<unsafe extern "C" fn(c_uint) -> c_int>(b"cuInit\0").map_err(missing)?;
        call("cuInit", init(0))?;
        let version = library.get::<NumberOf>(b"cuDriverGetVersion\0").map_err(missing)?;
        let count = library.get::<NumberOf>(b"cuDeviceGetCount\0").map_err(missing)?;
        let get = library
            .get::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(b"cuDeviceGet\0")
            .map_err(missing)?;
        let name_of = library
            .get::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(b"cuDeviceGetName\0")
            .map_err(missing)?;
        let attribute = library
            .get::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int>(b"cuDeviceGetAttribute\0")
            .map_err(missing)?;
        let memory = library
            .get::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>(b"cuDeviceTotalMem_v2\0")
            .map_err(missing)?;
        let (mut driver_cuda, mut devices) = (0, 0);
        call("cuDriverGetVersion", version(&raw mut driver_cuda))?;
        call("cuDeviceGetCount", count(&raw mut devices))?;
        let mut found = Vec::new();
        for index in 0..devices {
            let (mut device, mut bytes, mut numbers) = (0, 0_usize, [0; 2]);
            let mut name = [0_u8; 256];
            call("cuDeviceGet", get(&raw mut device, index))?;
            call("cuDeviceGetName", name_of(name.as_mut_ptr().cast(), 255, device))?;
            for (number, which) in numbers.iter_mut().zip(CAPABILITY) {
                call("cuDeviceGetAttribute", attribute(&raw mut *number, which, device))?;
            }
            call("cuDeviceTotalMem", memory(&raw mut bytes, device))?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            found.push(Gpu {
                index: u32::try_from(index).unwrap_or_default(),
                name: String::from_utf8_lossy(name).into_owned(),
                sm: u16::try_from(numbers[0] * 10 + numbers[1]).unwrap_or_default(),
                memory_bytes: bytes as u64,
                driver_cuda: u32::try_from(driver_cuda).unwrap_or_default(),
            });
        }
        if found.is_empty() {
            return Err("the NVIDIA driver sees no GPU".to_owned());
        }
        Ok(found)
    }
}

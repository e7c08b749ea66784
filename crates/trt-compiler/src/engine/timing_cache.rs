//! The times of kernels that the data-centre TensorRT measures while it builds, which the next build need not measure again.
#![expect(unsafe_code, reason = "calling functions of libraries that are opened at run time")]

use std::ffi::c_void;
use std::pin::Pin;

use cxx::UniquePtr;
use trtx::trtx_sys::nvinfer1::{IBuilderConfig, IHostMemory, ITimingCache};

use super::builder::{BuilderError, owned};

/// A cache that a configuration uses; it must be there for longer than the builder.
pub(super) struct TimingCache(UniquePtr<ITimingCache>);

impl TimingCache {
    /// Has the configuration use what was kept, or nothing where TensorRT does not take that: it is of another version, or of
    /// another GPU.
    pub(super) fn begin(mut config: Pin<&mut IBuilderConfig>, kept: &[u8]) -> Result<Self, BuilderError> {
        let mut create = |bytes: &[u8]| {
            // SAFETY: the bytes live through the call, which copies them; what it returns is owned by the caller.
            let cache = unsafe { owned(config.createTimingCache(bytes.as_ptr().cast(), bytes.len())) }?;
            let used = cache.as_ref().is_some_and(|cache| config.as_mut().setTimingCache(cache, false));
            used.then_some(Self(cache)).ok_or(BuilderError::Refused)
        };
        create(kept).or_else(|_| create(&[]))
    }

    /// What is to be kept.
    pub(super) fn serialised(&self) -> Result<Vec<u8>, BuilderError> {
        // SAFETY: the cache is there, and what is serialised belongs to the caller.
        unsafe {
            let memory = owned(serialize(self.0.as_ptr()))?;
            let bytes = std::slice::from_raw_parts(memory.data().cast::<u8>(), memory.size());
            Ok(bytes.to_vec())
        }
    }
}

/// An `ITimingCache` of `NvInfer.h`: a table of virtual methods, and what it hands on to.
#[repr(C)]
struct Interface {
    _methods: *const c_void,
    implementation: *const Implementation,
}

/// Its `apiv::VTimingCache` of `NvInferImpl.h`.
#[repr(C)]
struct Implementation {
    methods: *const Methods,
}

/// The first virtual methods of that, as the Itanium C++ ABI lays them out: a destructor is two.
#[repr(C)]
struct Methods {
    _destroy: [*const c_void; 2],
    serialize: unsafe extern "C" fn(*const Implementation) -> *mut IHostMemory,
}

/// `ITimingCache::serialize`, for which the bindings have no function. It is inline in the header, so no library has one either:
/// this is what a compiler makes of it (g++ 12: `mov 0x8(%rdi),%rdi; mov (%rdi),%rax; call *0x10(%rax)`).
///
/// # Safety
///
/// The pointer is of a timing cache that TensorRT made.
unsafe fn serialize(cache: *const ITimingCache) -> *mut IHostMemory {
    // SAFETY: the caller's promise, and the layout above.
    unsafe {
        let implementation = (*cache.cast::<Interface>()).implementation;
        ((*(*implementation).methods).serialize)(implementation)
    }
}

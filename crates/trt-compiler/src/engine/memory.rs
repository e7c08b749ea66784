//! The heap of the process that builds: it is given back as soon as a phase has no more use for it.
#![expect(unsafe_code, reason = "no safe bindings of mallopt and malloc_trim exist")]

/// Allocations from this size on come from the kernel one by one, and go back to it as soon as they are freed. glibc's own
/// first value; it would raise it to the size of the largest weight that was freed (`mallopt(3)`).
#[cfg(target_env = "gnu")]
const OWN_MAPPING_BYTES: libc::c_int = 128 << 10;

/// Has large allocations come from the kernel, for the whole life of the process.
pub(super) fn keep_nothing() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
    }
}

/// Gives memory that nothing uses any more back to the kernel, also from the middle of the heap (`malloc_trim(3)`). TensorRT
/// frees what it knew of one phase before the next one asks for as much as the weights; glibc would keep it.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions; other threads may use the heap meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}

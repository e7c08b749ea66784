//! The heap of the process that builds: it is given back as soon as a phase has no more use for it.
#![expect(unsafe_code, reason = "no safe binding of malloc_trim exists")]

/// Gives memory that nothing uses any more back to the kernel, also from the middle of the heap (`malloc_trim(3)`). TensorRT
/// frees what it knew of one phase before the next one asks for as much as the weights; glibc would keep it.
pub(super) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no preconditions; other threads may use the heap meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}

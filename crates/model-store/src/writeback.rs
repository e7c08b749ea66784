//! Telling the kernel to write what is written already, so that the disk works while we hash.
#![expect(unsafe_code, reason = "no safe binding of sync_file_range exists")]

use std::fs::File;
use std::os::fd::AsRawFd;

/// Starts writing a part of a file to the disk and does not wait for it. This makes nothing durable, so it
/// cannot fail in a way that matters: the `fsync` at the end finds what went wrong.
pub(crate) fn start(file: &File, offset_bytes: u64, length_bytes: u64) {
    let (Ok(offset), Ok(length)) = (offset_bytes.try_into(), length_bytes.try_into()) else { return };
    // SAFETY: the call takes numbers only, and the descriptor is open for as long as `file` is borrowed.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

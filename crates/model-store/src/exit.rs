//! The exit codes that every binary of this workspace uses.

/// Everything asked for was done.
pub const OK: u8 = 0;
/// It failed for a reason that has no code of its own.
pub const FAILURE: u8 = 1;
/// The arguments make no sense: an unknown flag, a name that no agent may have.
pub const USAGE: u8 = 2;
/// The store, agent, version or file asked for does not exist.
pub const NOT_FOUND: u8 = 3;
/// The bytes on disk are not the ones that were published.
pub const CORRUPT: u8 = 4;
/// Somebody else holds the lock; the same command may work in a moment.
pub const BUSY: u8 = 5;
/// A rule said no: a gate, the strict mode, a version that exists already.
pub const REFUSED: u8 = 6;
/// The host is not able to: no space, no permission, a runtime or a GPU missing.
pub const ENVIRONMENT: u8 = 7;
/// An object store or the Hub did not answer, or not as it should.
pub const REMOTE: u8 = 8;
/// Stopped by Ctrl-C, as a shell reports it: 128 + SIGINT.
pub const INTERRUPTED: u8 = 130;

//! Word of long work, and the way to stop it.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

/// What a long operation calls with the number of bytes it has just hashed or copied.
///
/// Returning [`ControlFlow::Break`] stops the operation at once with
/// [`StoreError::Interrupted`](crate::StoreError): its guards roll back, so nothing is published and nothing
/// is left behind. From the rename that makes a version exist nothing is asked any more. Calls come from
/// several threads.
///
/// ```
/// use std::{ops::ControlFlow, sync::atomic::{AtomicU64, Ordering}, sync::Arc};
/// let done_bytes = Arc::new(AtomicU64::new(0));
/// let counter = done_bytes.clone();
/// let progress = model_store::Progress::new(move |bytes| {
///     counter.fetch_add(bytes, Ordering::Relaxed);
///     ControlFlow::Continue(())
/// });
/// # let _ = progress;
/// ```
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Observer>>);

type Observer = dyn Fn(u64) -> ControlFlow<()> + Send + Sync;

impl Progress {
    /// Calls `observe` with the bytes done since its last call.
    pub fn new(observe: impl Fn(u64) -> ControlFlow<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }

    /// Tells nobody and never stops.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Reports `bytes`; an error of [`Stopped`] when the observer wants an end.
    pub(crate) fn advance(&self, bytes: u64) -> io::Result<()> {
        match self.0.as_ref().map(|observe| observe(bytes)) {
            Some(ControlFlow::Break(())) => Err(io::Error::other(Stopped)),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Progress(observed)" } else { "Progress(none)" })
    }
}

/// The observer said stop. It travels inside an `io::Error`; `StoreError::io` turns it into `Interrupted`.
#[derive(Debug, thiserror::Error)]
#[error("stopped on request")]
pub(crate) struct Stopped;

impl Stopped {
    /// Whether this error is a stop on request and not a failure.
    pub(crate) fn is_in(error: &io::Error) -> bool {
        error.get_ref().and_then(|inner| inner.downcast_ref::<Self>()).is_some()
    }
}

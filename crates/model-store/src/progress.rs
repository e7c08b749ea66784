//! Word of long work, and the way to stop it.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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

    /// As this one, and holds the work up so that it does no more than so many bytes a second. Time in which
    /// nothing was done is not caught up with.
    ///
    /// ```
    /// // A scrub that leaves the disk to others: 200 MB a second.
    /// let progress = model_store::Progress::none().with_budget(200_000_000);
    /// # let _ = progress;
    /// ```
    #[must_use]
    pub fn with_budget(self, bytes_per_second: u64) -> Self {
        /// How long a stop on request may take to be heard.
        const SLICE: Duration = Duration::from_millis(50);
        // When the bytes done so far are paid for.
        let paid_at = Mutex::new(Instant::now());
        Self::new(move |bytes| {
            let cost = bytes as f64 / bytes_per_second.max(1) as f64;
            let due = {
                let mut paid_at = paid_at.lock().unwrap_or_else(PoisonError::into_inner);
                let cost = Duration::try_from_secs_f64(cost).unwrap_or(Duration::MAX);
                let begin = Instant::now().max(*paid_at);
                *paid_at = begin.checked_add(cost).unwrap_or(begin);
                *paid_at
            };
            let mut news = bytes;
            loop {
                if self.0.as_ref().is_some_and(|observe| observe(news).is_break()) {
                    return ControlFlow::Break(());
                }
                news = 0;
                let early = due.saturating_duration_since(Instant::now());
                if early.is_zero() {
                    return ControlFlow::Continue(());
                }
                std::thread::sleep(early.min(SLICE));
            }
        })
    }

    /// Tells nobody and never stops.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// For work whose bytes are counted elsewhere: it can be stopped, and nobody is told of it.
    pub(crate) fn uncounted(&self) -> Self {
        let counted = self.clone();
        Self::new(move |_| match counted.advance(0) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
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

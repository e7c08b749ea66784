//! Stopping a run from another thread, such as a signal handler's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A wish to stop, shared between whoever has it and whoever heeds it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    flag: Arc<AtomicBool>,
    /// Of what this is a part.
    whole: Option<Arc<AtomicBool>>,
}

/// The run was stopped on request; nothing was published.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("stopped; nothing was published")]
pub struct Interrupted;

impl Interrupt {
    /// Asks for a stop.
    pub fn raise(&self) {
        self.flag.store(true, Ordering::SeqCst);
    }

    /// Whether a stop was asked for.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        let is_set = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        is_set(&self.flag) || self.whole.as_deref().is_some_and(is_set)
    }

    /// An error if a stop was asked for.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_raised() { Err(Interrupted) } else { Ok(()) }
    }

    /// The flag itself, for a signal handler that can only set one.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }

    /// One for a part of the run: it can be raised by itself, and is raised with the whole.
    pub(crate) fn of_a_part(&self) -> Self {
        Self { flag: Arc::default(), whole: Some(self.flag()) }
    }
}

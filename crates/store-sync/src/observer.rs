//! Word of long work, and the way to stop it.

use std::ops::ControlFlow;
use std::sync::Arc;

use model_store::Progress;

/// Who is told of long work. Calls come from several threads.
pub trait Observer: Send + Sync {
    /// So many bytes are to be sent or received.
    fn expect(&self, _bytes: u64) {}

    /// So many bytes were sent or received.
    fn advance(&self, _bytes: u64) {}

    /// Whether the work is to end; asked every few milliseconds.
    fn is_stopped(&self) -> bool {
        false
    }
}

/// Is told nothing and never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}

/// What the local store asks while it works: it is stopped as well, and its bytes are not the network's.
pub(crate) fn local_progress(observer: &Arc<dyn Observer>) -> Progress {
    let observer = observer.clone();
    Progress::new(
        move |_| {
            if observer.is_stopped() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        },
    )
}

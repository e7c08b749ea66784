//! Word of long work on standard error, and Ctrl-C.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use model_store::{Progress, exit};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Work that is done sooner needs no bar.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);
const TEMPLATE: &str =
    "{msg:<12} {bar:28} {decimal_bytes:>9} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";

/// Raised by Ctrl-C and SIGTERM from here on; a second one ends the process.
pub(crate) fn stop_on_request() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, exit::INTERRUPTED.into(), stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// For work that is done in a moment, unless it waits for somebody: it only stops on request.
pub(crate) fn stoppable() -> io::Result<Progress> {
    let stop = stop_on_request()?;
    Ok(Progress::new(move |_| {
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }))
}

/// A progress bar on a terminal's standard error; it goes away with this value.
#[derive(Debug)]
pub(crate) struct Meter {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
}

impl Meter {
    /// Begins work on so many bytes, which stops [on request](stop_on_request).
    pub(crate) fn start(what: &'static str, total_bytes: u64) -> io::Result<Self> {
        let stop = stop_on_request()?;
        let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::hidden());
        bar.set_message(what);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("█▌ "));
        }
        let late = bar.clone();
        std::thread::spawn(move || {
            std::thread::sleep(SHOWN_AFTER);
            if !late.is_finished() {
                late.set_draw_target(ProgressDrawTarget::stderr());
                late.enable_steady_tick(TICK);
            }
        });
        Ok(Self { bar, stop })
    }

    /// What the store calls with the bytes done.
    pub(crate) fn progress(&self) -> Progress {
        Progress::new(self.observer())
    }

    /// The same for work that is not the store's.
    pub(crate) fn observer(&self) -> impl Fn(u64) -> ControlFlow<()> + Send + Sync + use<> {
        let (bar, stop) = (self.bar.clone(), self.stop.clone());
        move |bytes| {
            bar.inc(bytes);
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    }

    /// What draws, and what is raised on request, for work that counts as it goes.
    pub(crate) fn parts(&self) -> (ProgressBar, Arc<AtomicBool>) {
        (self.bar.clone(), self.stop.clone())
    }

    /// Prints something while the bar is out of the way.
    pub(crate) fn clear_for<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Takes the bar off the screen.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.clear();
    }
}

//! Telling a caller what a run is doing.

use std::fmt;
use std::time::Duration;

/// The stages of a run, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The model's files come into the staging.
    Source,
    /// What the model's values are like is found out: the ranges of 8-bit products, or what fp16 is too narrow for.
    Calibrate,
    /// Weights in few bits are written.
    Quantize,
    /// The graph is written.
    Export,
    /// The graph runs on real text.
    Check,
    /// What it gave is compared with the reference.
    Gate,
    /// The engine is built.
    Engine,
    /// The engine runs on this host's GPU, and what it gave is compared with the reference.
    Gpu,
    /// The version is published.
    Publish,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Calibrate => "calibrate",
            Self::Quantize => "quantize",
            Self::Export => "export",
            Self::Check => "check",
            Self::Gate => "gate",
            Self::Engine => "engine",
            Self::Gpu => "gpu",
            Self::Publish => "publish",
        })
    }
}

/// Hears what a run is doing. All methods may be called often and should return at once.
pub trait Observer {
    /// A step begins.
    fn begin(&self, step: Step) {
        let _ = step;
    }

    /// A step is `done` of `total` (bytes, batches or phases) through; `what` says with what, if it helps.
    fn progress(&self, step: Step, done: u64, total: u64, what: &str) {
        let _ = (step, done, total, what);
    }

    /// A step is done; `summary` says with what result.
    fn end(&self, step: Step, summary: &str, took: Duration) {
        let _ = (step, summary, took);
    }
}

/// Hears nothing.
impl Observer for () {}

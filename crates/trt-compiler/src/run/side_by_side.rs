//! The graph and its reference at work at a time: neither needs what the other gives until the two are compared.

use std::num::NonZero;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, Scope};

use model_loader::TokenBatch;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::CompileError;
use crate::interrupt::{Interrupt, Interrupted};

/// Texts by their numbers, and their tokens.
pub(super) type Batch = (Vec<usize>, TokenBatch);

/// How much of the host a check takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    All,
    /// A builder is at work, which is one thread and takes the longest: it goes first.
    BesideBuilder,
}

/// What is added to the nice value of a check's threads beside a builder. Each then has a third of the builder's weight
/// (`sched_prio_to_weight` in the kernel's `kernel/sched/core.c`), so that the builder keeps most of a core to itself even
/// where there are only two.
const NICER: i32 = 5;

impl Share {
    /// Makes way for a builder: this thread, and those that it starts.
    fn take(self) {
        if self == Self::BesideBuilder {
            // Where the kernel refuses, it only takes longer.
            let _ = rustix::process::nice(NICER);
        }
    }
}

/// What one side gives for each batch, in order. It is at most one batch ahead of who takes it, so that there are never more
/// outputs in memory than those of two.
pub(super) struct Outputs<'a, T> {
    outputs: Receiver<Result<T, CompileError>>,
    interrupt: &'a Interrupt,
}

impl<T> Outputs<'_, T> {
    /// That of the next batch.
    pub(super) fn next(&self) -> Result<T, CompileError> {
        self.interrupt.check()?;
        // A side ends before its last batch where it panicked, which its scope passes on, and where a stop was asked for.
        self.outputs.recv().unwrap_or_else(|_| Err(Interrupted.into()))
    }
}

/// Who runs the batches, and how.
#[derive(Clone, Copy)]
pub(super) struct Sides<'a> {
    pub(super) batches: &'a [Batch],
    pub(super) share: Share,
    pub(super) interrupt: &'a Interrupt,
}

impl<'a> Sides<'a> {
    /// Starts a side: opens whatever it is, and runs each batch on it.
    pub(super) fn start<'scope, 'env, T: Send + 'scope, R>(
        self,
        scope: &'scope Scope<'scope, 'env>,
        open: impl FnOnce() -> Result<R, CompileError> + Send + 'scope,
    ) -> Outputs<'a, T>
    where
        R: FnMut(&TokenBatch) -> Result<T, CompileError>,
        'a: 'scope,
    {
        let (sender, outputs) = mpsc::sync_channel(0);
        scope.spawn(move || {
            self.share.take();
            let mut run = match open() {
                Ok(run) => run,
                Err(error) => {
                    let _ = sender.send(Err(error));
                    return;
                }
            };
            for (_, batch) in self.batches {
                // Whoever takes nothing any more has failed, or has seen enough.
                if self.interrupt.is_raised() || sender.send(run(batch)).is_err() {
                    break;
                }
            }
        });
        Outputs { outputs, interrupt: self.interrupt }
    }
}

/// Half of this host's cores, for what runs in parallel by rayon. ONNX Runtime has threads on all of them, and more to do: it
/// computes many an operation by itself that a kernel of ours does in passing.
pub(super) struct HalfTheCores(Option<ThreadPool>);

impl HalfTheCores {
    /// To be made by the thread that uses it, whose nice value they have.
    pub(super) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self(ThreadPoolBuilder::new().num_threads((cores / 2).max(1)).build().ok())
    }

    /// Where no threads could be started, `work` runs on all cores.
    pub(super) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

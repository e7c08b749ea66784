//! An engine's builder at work while the graph is checked: two processes, neither of which needs the other's result.

use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::builder_graph::BuilderGraph;
use super::engine::Wanted;
use super::{Host, Run};
use crate::engine::{self, EngineError, EngineFacts, EngineRequest, Waiting, available_memory_bytes};
use crate::error::CompileError;
use crate::interrupt::Interrupt;
use crate::job::{HostUse, Plan};

/// A builder that was started early. Dropping it stops the builder and waits for its end, so that a graph that is refused
/// leaves no process behind.
pub(super) struct Beside {
    stop: Interrupt,
    progress: Receiver<(String, i32, i32)>,
    builder: Option<JoinHandle<Result<(EngineFacts, Duration), EngineError>>>,
}

impl Run<'_> {
    /// Starts the builder if the run has this host for itself, and the host has memory for the builder and the check at a
    /// time.
    pub(super) fn build_beside(
        &self,
        host: &Host,
        plan: &Plan,
        graph: &BuilderGraph,
        wanted: Option<&Wanted>,
    ) -> Result<Option<Beside>, CompileError> {
        let alone = self.job.host == HostUse::Alone;
        let Some(wanted) = wanted.filter(|wanted| alone && wanted.is_new()) else { return Ok(None) };
        let both = plan.check_bytes().saturating_add(plan.builder_bytes());
        if available_memory_bytes().is_none_or(|free| free < both) {
            return Ok(None);
        }
        Ok(Some(self.start(host.builder(self.job)?, wanted.request(graph), graph.clone())))
    }

    fn start(&self, child: Waiting, request: EngineRequest, graph: BuilderGraph) -> Beside {
        let (stop, options) = (self.interrupt.of_a_part(), self.job.build.clone());
        let (sender, progress) = mpsc::channel();
        let heeded = stop.clone();
        let builder = std::thread::spawn(move || {
            let start = Instant::now();
            // Its files stay until the builder has ended.
            let _graph = graph;
            let facts = engine::build_in(child, &request, &options, &heeded, |phase, step, steps| {
                // Whoever does not listen any more waits for the end only.
                let _ = sender.send((phase.to_owned(), step, steps));
            })?;
            Ok((facts, start.elapsed()))
        });
        Beside { stop, progress, builder: Some(builder) }
    }
}

impl Beside {
    /// Waits for the engine, and gives how long it took. `progress` hears first what there was until now.
    pub(super) fn wait(
        mut self,
        mut progress: impl FnMut(&str, i32, i32),
    ) -> Result<(EngineFacts, Duration), EngineError> {
        for (phase, step, steps) in &self.progress {
            progress(&phase, step, steps);
        }
        match self.builder.take().map(JoinHandle::join) {
            Some(Ok(built)) => built,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            // Taken only here, and here only once.
            None => Err(EngineError::Interrupted(crate::interrupt::Interrupted)),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.stop.raise();
        if let Some(builder) = self.builder.take() {
            let _ = builder.join();
        }
    }
}

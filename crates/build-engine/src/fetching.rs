//! What a person sees of a download: a bar for each file on a terminal, and one line at the end.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hub_fetch::{Plan, Progress, Snapshot};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use model_store::human_size;

use crate::show::{GOOD, QUIET, seconds};

const TEMPLATE: &str = " {prefix:<8}   {msg:<32!} {bar:24} {decimal_bytes:>9} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
/// Files that come sooner need no bar.
const SHOWN_FROM_BYTES: u64 = 1_000_000;

/// Shows a download on standard error. The bars go away with it.
pub(crate) struct Fetching {
    json: bool,
    started: Instant,
    screen: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Fetching {
    pub(crate) fn new(json: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self {
            json,
            started: Instant::now(),
            screen: MultiProgress::with_draw_target(target),
            bars: Mutex::default(),
        }
    }

    /// Says what came, as the steps of a build are said.
    pub(crate) fn end(&self, id: &str, snapshot: &Snapshot) {
        let _ = self.screen.clear();
        if self.json {
            return;
        }
        let came = match snapshot.downloaded_bytes {
            0 => "all of it was here".to_owned(),
            bytes => format!("{} downloaded", human_size(bytes)),
        };
        let took = seconds(self.started.elapsed().as_secs_f64());
        let _ = writeln!(
            anstream::stdout(),
            " {GOOD}{:<8}{GOOD:#}   {id} at {}, {} files, {came}  {QUIET}{took}{QUIET:#}",
            "fetch",
            snapshot.commit,
            snapshot.files.len()
        );
    }

    fn with_bar(&self, path: &str, act: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.bars.lock().unwrap_or_else(PoisonError::into_inner).get(path) {
            act(bar);
        }
    }
}

impl Progress for Fetching {
    fn started(&self, path: &str, size_bytes: Option<u64>, have_bytes: u64) {
        if size_bytes.is_some_and(|size| size < SHOWN_FROM_BYTES) {
            return;
        }
        let bar = self.screen.add(ProgressBar::new(size_bytes.unwrap_or(0)));
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("█▌ "));
        }
        bar.set_prefix("fetch");
        bar.set_message(path.to_owned());
        bar.set_position(have_bytes);
        // What was here already says nothing about how fast the rest comes.
        bar.reset_eta();
        self.bars.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), bar);
    }

    fn advanced(&self, path: &str, have_bytes: u64) {
        self.with_bar(path, |bar| bar.set_position(have_bytes));
    }

    fn finished(&self, path: &str) {
        self.with_bar(path, ProgressBar::finish_and_clear);
    }

    fn waiting(&self, what: &str, wait: Duration) {
        let wait = if wait < Duration::from_secs(1) {
            String::new()
        } else {
            format!("; again in {} s", wait.as_secs())
        };
        self.screen.suspend(|| anstream::eprintln!("note: {what}{wait}"));
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        let _ = self.screen.clear();
    }
}

/// What a dry run would fetch.
pub(crate) fn plan(plan: &Plan, revision: &str) -> String {
    let missing = plan.missing().count();
    let mut lines = vec![format!(
        "fetch      {} at {revision} (commit {}): {missing} of {} files, {}",
        plan.renamed_to.as_ref().unwrap_or(&plan.model_id),
        plan.commit,
        plan.files.len(),
        human_size(plan.missing_bytes())
    )];
    for file in plan.missing() {
        let size = file.size_bytes.map_or_else(|| "size unknown".to_owned(), human_size);
        lines.push(format!("           {}  {size}", file.path));
    }
    lines.push(
        "           then it is known what is exported and built; run it again once it is here".to_owned(),
    );
    format!("would do (nothing was downloaded or written):\n {}", lines.join("\n "))
}

/// The same as a JSON object.
pub(crate) fn plan_object(plan: &Plan, revision: &str) -> serde_json::Value {
    let file = |file: &hub_fetch::PlanFile| {
        serde_json::json!({
            "path": file.path,
            "size_bytes": file.size_bytes,
            "have_bytes": file.have_bytes,
            "is_here": file.is_here,
        })
    };
    serde_json::json!({
        "fetch": {
            "model_id": plan.model_id,
            "renamed_to": plan.renamed_to,
            "revision": revision,
            "commit": plan.commit,
            "missing_bytes": plan.missing_bytes(),
            "files": plan.files.iter().map(file).collect::<Vec<_>>(),
        }
    })
}

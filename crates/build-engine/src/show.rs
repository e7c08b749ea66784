//! What a person sees: a line for each step, and a summary at the end.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};
use model_store::human_size;
use trt_compiler::engine::EngineFacts;
use trt_compiler::{Limits, Observer, Outcome, Plan, Provenance, Step};

/// Green: a step that went well.
pub(crate) const GOOD: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
/// Red: something to act on.
pub(crate) const BAD: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));
/// Dim: what one may skip.
pub(crate) const QUIET: Style = Style::new().dimmed();

/// Prints a line for each finished step, and on a terminal shows the running one.
pub(crate) struct Report {
    /// With `--json` the standard output belongs to the object.
    json: bool,
    running: RefCell<Option<ProgressBar>>,
}

impl Report {
    pub(crate) fn new(json: bool) -> Self {
        Self { json, running: RefCell::new(None) }
    }

    fn clear(&self) {
        if let Some(bar) = self.running.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Observer for Report {
    fn begin(&self, step: Step) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template(" {prefix:<9}  {spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(step.to_string());
        bar.enable_steady_tick(Duration::from_millis(100));
        *self.running.borrow_mut() = Some(bar);
    }

    fn progress(&self, _step: Step, done: u64, total: u64, what: &str) {
        if let Some(bar) = &*self.running.borrow() {
            bar.set_message(format!("{done}/{total} {what}"));
        }
    }

    fn end(&self, step: Step, summary: &str, took: Duration) {
        self.clear();
        if self.json {
            return;
        }
        let took = seconds(took.as_secs_f64());
        let line = format!(" {GOOD}{:<9}{GOOD:#}  {summary}  {QUIET}{took}{QUIET:#}", step.to_string());
        // A reader that has gone away does not stop a publish.
        let _ = writeln!(anstream::stdout(), "{line}");
    }
}

/// A duration for people: `12 ms`, `1.2 s`, `3 min 20 s`.
pub(crate) fn seconds(seconds: f64) -> String {
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 99.95 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

/// The summary of a run that published.
pub(crate) fn summary(outcome: &Outcome) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["WHAT", "SIZE", "TIME", "RESULT"]);
    for column in 1..=2 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let export = &outcome.evidence.export;
    let measured = &outcome.evidence.verdict.comparison;
    for (step, took) in &outcome.steps {
        let (size, result) = match step {
            Step::Source => (human_size(export.weight_bytes), source(&outcome.evidence.source)),
            Step::Export => (
                human_size(export.onnx_bytes as u64),
                format!("{} in {}, opset {}", export.model_type, export.precision, export.opset),
            ),
            Step::Calibrate => {
                let of = |record: &trt_compiler::CalibrationRecord| {
                    format!("{} layers on {} texts of {}", record.ranges.len(), record.texts, record.source)
                };
                let calibrated = outcome.evidence.calibration.as_ref().map(of);
                let looked = outcome.evidence.overflow.as_ref().map(trt_compiler::OverflowRecord::summary);
                (String::new(), calibrated.or(looked).unwrap_or_default())
            }
            Step::Quantize => {
                let packed = outcome.evidence.packed.as_ref();
                (
                    packed.map(|it| human_size(it.bytes)).unwrap_or_default(),
                    packed.map(trt_compiler::PackedRecord::summary).unwrap_or_default(),
                )
            }
            Step::Check => (
                String::new(),
                format!("{} texts against {}", outcome.evidence.texts, outcome.evidence.reference),
            ),
            Step::Gate => {
                let top1 = measured
                    .top1
                    .map(|agree| format!(", top-1 {agree}/{}", measured.rows))
                    .unwrap_or_default();
                if measured.max_abs.is_nan() {
                    let rows = measured.rows;
                    let words =
                        format!("{rows} rows, none NaN, infinite or all the same; nothing to compare with");
                    table.add_row([step.to_string(), String::new(), seconds(*took), words]);
                    continue;
                }
                (
                    String::new(),
                    format!(
                        "max abs {:.1e}, cosine {:.6} (mean {:.6}){top1}",
                        measured.max_abs, measured.cosine_min, measured.cosine_mean
                    ),
                )
            }
            Step::Gpu => (
                String::new(),
                outcome.evidence.engine_verdict.as_ref().map_or_else(String::new, |verdict| {
                    let measured = &verdict.comparison;
                    format!("the engine: max abs {:.1e}, cosine {:.6}", measured.max_abs, measured.cosine_min)
                }),
            ),
            Step::Engine => outcome.engine.as_ref().map_or((String::new(), String::new()), |engine| {
                let facts = &engine.facts;
                let peak = peak_memory(facts);
                (human_size(facts.plan_bytes), format!("tensorrt-rtx {}, peak memory {peak}", facts.version))
            }),
            Step::Publish => {
                (human_size(outcome.published.bytes), outcome.published.path.display().to_string())
            }
        };
        table.add_row([step.to_string(), size, seconds(*took), result]);
    }
    let published = &outcome.published;
    let was = published.previous.as_ref().map(|previous| format!("   (was {previous})")).unwrap_or_default();
    let pointer = if published.activated {
        format!("{} → {}{was}", published.agent, published.version)
    } else {
        format!("{}/{} is published; current stays as it was", published.agent, published.version)
    };
    let plan = outcome.plan.as_ref().map(|path| format!("\n{}", path.display())).unwrap_or_default();
    let retired: Vec<_> = outcome.retired.iter().map(ToString::to_string).collect();
    let retired =
        if retired.is_empty() { String::new() } else { format!("\nretired {}", retired.join(", ")) };
    let problems: String =
        outcome.problems.iter().flat_map(|problem| ["\nnot retired: ", problem.as_str()]).collect();
    format!("\n{table}\n\n{pointer}{plan}{retired}{problems}")
}

/// What a run would do.
pub(crate) fn plan(plan: &Plan, engine: bool) -> String {
    let export = &plan.export;
    let mut lines = vec![
        format!("source     {} ({}, {} files)", source(&plan.source), export.model_type, plan.files.len()),
        format!(
            "export     model.onnx {}, {}, opset {}, {} nodes, gives {}",
            human_size(export.onnx_bytes as u64),
            export.precision,
            export.opset,
            export.nodes,
            export.head.output()
        ),
        format!(
            "gate       max abs ≤ {:.0e}, cosine ≥ {}, top-1 ≥ {:.0} %",
            plan.thresholds.max_abs,
            plan.thresholds.min_cosine,
            plan.thresholds.min_top1 * 100.0
        ),
    ];
    if let (Some(graph), Some(reference)) = (&plan.graph, &plan.reference) {
        let place = lines.len() - 1;
        lines[place - 1] = format!(
            "graph      {} as it came ({}), {}, opset {}, {} nodes, gives {}",
            graph.file,
            graph.producer,
            export.precision,
            export.opset,
            export.nodes,
            export.outputs.iter().map(|output| output.name.as_str()).collect::<Vec<_>>().join(", ")
        );
        lines.insert(place, format!("compare    with {reference}"));
    }
    if let Some(limits) = &plan.overflow {
        let Limits { activation, weight } = limits;
        let look = format!(
            "calibrate  looks in fp32 for activations over {activation} and weights over {weight}, and keeps their modules in fp32"
        );
        lines.insert(1, look);
    }
    if engine {
        let targets: Vec<String> = plan.targets.iter().map(ToString::to_string).collect();
        lines.push(format!("engine     SM {}, {}", targets.join(" "), plan.profile.in_words()));
    }
    lines.push(format!("publish    {}/{}", plan.agent, plan.version));
    format!("would do (nothing was written):\n {}", lines.join("\n "))
}

fn source(provenance: &Provenance) -> String {
    match provenance {
        Provenance::Folder { path } => format!("folder {path}"),
        Provenance::Store { agent, version, .. } => format!("store: {agent}/{version}"),
        Provenance::Hub { model_id, commit, .. } => format!("hub: {model_id} at {commit}"),
    }
}

/// The most memory that a build took, and what of that was not mapped files.
pub(crate) fn peak_memory(facts: &EngineFacts) -> String {
    let all = human_size(facts.peak_memory_bytes);
    match facts.peak_private_bytes {
        0 => all,
        private => format!("{all}, {} without mapped files", human_size(private)),
    }
}

//! `report.html`: the evidence for people, in one file that asks no network for anything.

use std::fmt::Write;

use model_store::human_size;

use crate::engine::Layer;
use crate::evidence::{EngineDescription, Evidence, Provenance, task};
use crate::gate::{Bucket, Comparison};
use crate::observer::Step;

/// What a report is made of.
pub(crate) struct Parts<'a> {
    pub(crate) agent: &'a str,
    pub(crate) version: &'a str,
    pub(crate) evidence: &'a Evidence,
    pub(crate) engine: Option<&'a EngineDescription>,
    /// Of the network that the engine was built from.
    pub(crate) layers: &'a [Layer],
    pub(crate) steps: &'a [(Step, f64)],
}

const STYLE: &str = "\
:root { color-scheme: light dark; --line: #8884; --bar: #2a78d6; --good: #00804a; }
@media (prefers-color-scheme: dark) { :root { --bar: #6aa9f0; --good: #4fc98b; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; padding: .3rem 0; opacity: .8; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
code { overflow-wrap: anywhere; }
.passed { color: var(--good); font-weight: 600; } svg { width: 100%; height: auto; } svg rect { fill: var(--bar); }
svg text { fill: currentColor; font: 11px system-ui, sans-serif; } details summary { cursor: pointer; }";

/// The whole page.
pub(crate) fn html(parts: &Parts<'_>) -> String {
    let Parts { agent, version, evidence, engine, layers, steps } = *parts;
    let title = format!("{agent}/{version}");
    let mut page = Page::new(&title);
    let export = &evidence.export;
    page.line(&format!(
        "<p>{} <code>{}</code> in {}, checked on {} texts. <span class=passed>Passed the gate.</span></p>",
        task(export),
        escape(&export.model_type),
        export.precision,
        evidence.texts
    ));
    gate(&mut page, evidence);
    page.section("Engine");
    match engine {
        Some(engine) => {
            engine_table(&mut page, engine);
            layer_list(&mut page, layers);
        }
        None => page.line("<p>This version has the checked graph and no engine.</p>"),
    }
    page.section("Graph");
    let caption = evidence.graph.as_ref().map_or_else(
        || "model.onnx; the weights stay in the safetensors files that it points into".to_owned(),
        |graph| format!("model.onnx as it came: {}, written by {}", graph.file, graph.producer),
    );
    let mut rows = vec![
        ("precision", export.precision.to_string()),
        ("operator set", export.opset.to_string()),
        ("nodes", export.nodes.to_string()),
        ("initializers", export.initializers.to_string()),
        (
            "weights",
            format!("{}, {} cast to another type", human_size(export.weight_bytes), export.weight_casts),
        ),
        ("size", human_size(export.onnx_bytes as u64)),
        ("SHA-256", export.onnx_sha256.clone()),
        ("kept in fp32 by wish", list(&evidence.keep_fp32)),
    ];
    rows.extend(evidence.overflow.as_ref().map(|record| ("range of fp16", record.summary())));
    rows.extend(evidence.packed.as_ref().map(|record| ("weights in few bits", record.summary())));
    page.table(&caption, &rows);
    let operators =
        export.operators.iter().map(|(operator, count)| vec![operator.clone(), count.to_string()]);
    page.folded("Nodes by operator", &["operator", "nodes"], operators);
    let casts = export
        .casts
        .iter()
        .map(|cast| vec![format!("{:?}", cast.from), format!("{:?}", cast.to), cast.count.to_string()]);
    page.folded("Casts", &["from", "to", "values"], casts);
    let kept = export.kept_fp32.iter().map(|kept| vec![kept.module.clone(), kept.why.clone()]);
    page.folded("In fp32 whatever the precision", &["module", "why"], kept);
    calibration(&mut page, evidence);
    page.section("Where it came from");
    page.table("", &provenance(evidence));
    page.section("How long it took");
    let rows: Vec<_> =
        steps.iter().map(|(step, seconds)| (step.to_string(), format!("{seconds:.2} s"))).collect();
    page.rows(&["step", "time"], rows.into_iter().map(|(step, time)| vec![step, time]));
    page.end()
}

fn gate(page: &mut Page, evidence: &Evidence) {
    let (measured, allowed) = (&evidence.verdict.comparison, &evidence.verdict.thresholds);
    page.section("Gate");
    if measured.max_abs.is_nan() {
        page.line(&format!(
            "<p>Output <code>{}</code>: {} rows of {} values, up to {:.3}. None is NaN or infinite, and not all rows are the same. It was compared with {}.</p>",
            escape(&measured.output),
            measured.rows,
            measured.columns,
            measured.reference_max,
            escape(&evidence.reference)
        ));
        return;
    }
    let share = |agree: usize| agree as f64 / measured.rows.max(1) as f64;
    let mut rows = vec![
        vec![
            "max abs".to_owned(),
            format!("{:.3e}", measured.max_abs),
            format!("≤ {:.3e}", evidence.verdict.allowed_abs()),
        ],
        vec!["mean abs".to_owned(), format!("{:.3e}", measured.mean_abs), String::new()],
        vec![
            "cosine, worst row".to_owned(),
            format!("{:.6}", measured.cosine_min),
            format!("≥ {}", allowed.min_cosine),
        ],
        vec![
            "cosine, mean".to_owned(),
            format!("{:.6}", measured.cosine_mean),
            format!("≥ {}", allowed.mean_cosine),
        ],
        vec![
            "NaN, infinite".to_owned(),
            format!("{}, {}", measured.nan, measured.infinite),
            "none".to_owned(),
        ],
    ];
    if let Some(agree) = measured.top1 {
        let found = format!("{agree} of {} rows ({:.1} %)", measured.rows, 100.0 * share(agree));
        rows.push(vec![
            "same largest score".to_owned(),
            found,
            format!("≥ {:.0} %", 100.0 * allowed.min_top1),
        ]);
    }
    page.line(&format!(
        "<p>Output <code>{}</code>: {} rows of {} values, up to {:.3} in the reference ({}). The largest difference is at text {}, column {}: {} where the reference has {}.</p>",
        escape(&measured.output),
        measured.rows,
        measured.columns,
        measured.reference_max,
        escape(&evidence.reference),
        measured.worst.text,
        measured.worst.column,
        measured.worst.found,
        measured.worst.reference
    ));
    page.rows(&["measure", "found", "allowed"], rows);
    histograms(page, measured);
}

fn histograms(page: &mut Page, measured: &Comparison) {
    page.bars("Absolute differences: values by size", &measured.differences);
    page.bars("Rows by 1 − cosine", &measured.angles);
}

fn engine_table(page: &mut Page, engine: &EngineDescription) {
    let targets: Vec<String> = engine.targets.iter().map(|target| format!("SM {target}")).collect();
    let facts = &engine.facts;
    page.table(
        "",
        &[
            ("built by", format!("{} {}", engine.flavour, facts.version)),
            ("runs on", targets.join(", ")),
            ("profile", engine.profile.in_words()),
            ("size", human_size(facts.plan_bytes)),
            ("SHA-256", engine.plan_sha256.clone()),
            (
                "built in",
                format!("{:.1} s, after {:.1} s of parsing", facts.build_seconds, facts.parse_seconds),
            ),
            ("peak memory", human_size(facts.peak_memory_bytes)),
            ("without mapped files", human_size(facts.peak_private_bytes)),
            ("checked", engine.checked.clone()),
            ("warnings", list(&facts.warnings)),
        ],
    );
    let inputs = engine.inputs.iter().map(|input| {
        let dims: Vec<String> =
            input.dims.iter().map(|span| format!("{}…{}…{}", span.min, span.opt, span.max)).collect();
        vec!["in".to_owned(), input.name.clone(), format!("{:?}", input.dtype), dims.join(" × ")]
    });
    let outputs = engine.outputs.iter().map(|output| {
        vec!["out".to_owned(), output.name.clone(), format!("{:?}", output.dtype), output.shape.join(" × ")]
    });
    page.rows(&["", "name", "type", "shape"], inputs.chain(outputs));
}

/// As parsed: TensorRT fuses them when an engine is built, and shows that on a GPU only.
fn layer_list(page: &mut Page, layers: &[Layer]) {
    let rows = layers.iter().map(|layer| {
        let shape: Vec<String> = layer.shape.iter().map(i64::to_string).collect();
        vec![layer.name.clone(), layer.kind.clone(), layer.dtype.clone(), shape.join(" × ")]
    });
    page.folded("Layers, as parsed", &["layer", "kind", "type", "shape"], rows);
}

fn calibration(page: &mut Page, evidence: &Evidence) {
    let Some(record) = &evidence.calibration else { return };
    page.section("Calibration");
    page.line(&format!(
        "<p>{} texts of <code>{}</code> (SHA-256 <code>{}</code>), ranges by {}.</p>",
        record.texts,
        escape(&record.source),
        record.texts_sha256,
        record.method
    ));
    let rows = record.ranges.iter().map(|(layer, range)| vec![layer.clone(), format!("{:.4}", range.input)]);
    page.folded("Ranges by layer", &["layer", "largest input"], rows);
}

fn provenance(evidence: &Evidence) -> Vec<(&'static str, String)> {
    let mut rows = match &evidence.source {
        Provenance::Folder { path } => vec![("folder", path.clone())],
        Provenance::Store { agent, version, checksum } => {
            vec![("version", format!("{agent}/{version}")), ("checksum", checksum.clone())]
        }
        Provenance::Hub { model_id, revision, commit } => {
            vec![("model", model_id.clone()), ("revision", revision.clone()), ("commit", commit.clone())]
        }
    };
    let tools = evidence.tools.iter().map(|(tool, version)| match version.as_str() {
        Some(version) => format!("{tool} {version}"),
        None => tool.clone(),
    });
    rows.push(("tools", tools.collect::<Vec<_>>().join(", ")));
    rows.push(("host", evidence.host.clone()));
    rows.push(("texts", format!("{}, SHA-256 {}", evidence.texts, evidence.texts_sha256)));
    rows
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// HTML as it is written.
struct Page(String);

impl Page {
    fn new(title: &str) -> Self {
        let title = escape(title);
        Self(format!(
            "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<meta name=viewport content=\"width=device-width\">\n<title>{title}</title>\n<style>\n{STYLE}\n</style>\n<h1>{title}</h1>\n"
        ))
    }

    fn line(&mut self, html: &str) {
        self.0.push_str(html);
        self.0.push('\n');
    }

    fn section(&mut self, title: &str) {
        self.line(&format!("<h2>{title}</h2>"));
    }

    /// Names and values; values are plain text.
    fn table(&mut self, caption: &str, rows: &[(&'static str, String)]) {
        self.line("<table>");
        if !caption.is_empty() {
            self.line(&format!("<caption>{}</caption>", escape(caption)));
        }
        for (name, value) in rows {
            self.line(&format!("<tr><th scope=row>{name}<td><code>{}</code>", escape(value)));
        }
        self.line("</table>");
    }

    /// A table with a header; cells are plain text.
    fn rows(&mut self, header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        self.line("<table>");
        let cells = |tag: &str, cells: &mut dyn Iterator<Item = String>| {
            cells.fold("<tr>".to_owned(), |mut row, cell| {
                // Writing to a string cannot fail.
                let _ = write!(row, "<{tag}>{cell}");
                row
            })
        };
        let head = cells("th scope=col", &mut header.iter().map(|cell| escape(cell)));
        self.line(&head);
        for row in rows {
            let row = cells("td", &mut row.iter().map(|cell| escape(cell)));
            self.line(&row);
        }
        self.line("</table>");
    }

    /// A long table, which is unfolded by those who want it.
    fn folded(&mut self, title: &str, header: &[&str], rows: impl ExactSizeIterator<Item = Vec<String>>) {
        if rows.len() == 0 {
            return;
        }
        self.line(&format!("<details><summary>{} ({})</summary>", escape(title), rows.len()));
        self.rows(header, rows);
        self.line("</details>");
    }

    /// A histogram: as high as its share of the highest, with the numbers in words for those who do not see it.
    fn bars(&mut self, title: &str, buckets: &[Bucket]) {
        const WIDTH: usize = 40;
        const HEIGHT: usize = 80;
        let highest = buckets.iter().map(|bucket| bucket.count).max().unwrap_or_default().max(1);
        let (full, base) = (WIDTH * buckets.len().max(1), HEIGHT + 16);
        self.line(&format!("<h3>{}</h3>", escape(title)));
        self.line(&format!(
            "<svg viewBox=\"0 0 {full} {}\" role=img aria-label=\"{}\">",
            base + 18,
            escape(title)
        ));
        for (index, bucket) in buckets.iter().enumerate() {
            let height = bucket.count * HEIGHT / highest;
            let height = if bucket.count > 0 { height.max(1) } else { 0 };
            let (left, middle) = (index * WIDTH, index * WIDTH + WIDTH / 2);
            self.line(&format!(
                "<rect x={} y={} width={} height={height}><title>{} below {:.0e}</title></rect><text x={middle} y={} text-anchor=middle>{:.0e}</text>",
                left + 2,
                base - height,
                WIDTH - 4,
                bucket.count,
                bucket.below,
                base + 14,
                bucket.below
            ));
            if bucket.count > 0 {
                self.line(&format!(
                    "<text x={middle} y={} text-anchor=middle>{}</text>",
                    base - height - 3,
                    bucket.count
                ));
            }
        }
        self.line("</svg>");
    }

    fn end(self) -> String {
        self.0 + "</html>\n"
    }
}

/// Text that HTML takes for text, in elements and in quoted attributes.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
        out
    })
}

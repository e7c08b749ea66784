//! `model-store history`.

use std::io::Write;

use jiff::Timestamp;
use model_store::{AgentName, PointerName, Record, RefName, exit};

use crate::cli::Global;
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  model-store history scout
  model-store history scout --limit 5
  model-store history scout --pointer current      what readers had, and since when
  model-store history scout --pointer champion     one ref
  model-store history scout --json | jq -r '.[] | select(.action == \"rollback\").reason'";

/// Tell what happened to an agent: who moved which pointer from where to where, when, and why
///
/// The newest line is the last one.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// Only the newest so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only one pointer: `current`, a ref, or `versions/VERSION`
    #[arg(long, value_parser = parse_pointer)]
    pointer: Option<PointerName>,
}

/// A bare name is a ref.
fn parse_pointer(text: &str) -> Result<PointerName, String> {
    if text != "current" && !text.contains('/') {
        return text.parse::<RefName>().map(PointerName::Ref).map_err(|e| e.to_string());
    }
    text.parse().map_err(|e: model_store::NameError| e.to_string())
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let mut records = global.open()?.history(&args.agent)?;
    if let Some(pointer) = &args.pointer {
        records.retain(|record| record.pointer == *pointer);
    }
    let skipped = args.limit.map_or(0, |limit| records.len().saturating_sub(limit));
    records.drain(..skipped);
    if global.json {
        out::json(&records)?;
    } else if records.is_empty() {
        let of = args.pointer.as_ref().map_or_else(String::new, |pointer| format!(" of {pointer}"));
        out::plain_error(&format!("nothing{of} is on record for {}", args.agent));
    } else {
        print(&records)?;
    }
    Ok(exit::OK)
}

fn print(records: &[Record]) -> anyhow::Result<()> {
    let header = ["WHEN", "ACTION", "POINTER", "FROM → TO", "BY", "REASON"];
    let mut out = out::stdout();
    let lines = human::table(&header, &[], records.iter().map(cells).collect());
    for (number, line) in lines.iter().enumerate() {
        writeln!(out, "{}", out::styled(human::row_style(number, line), line))?;
    }
    Ok(out.flush()?)
}

fn cells(record: &Record) -> Vec<String> {
    let way = match (&record.from, &record.to) {
        (Some(from), Some(to)) if from == to => to.to_string(),
        (Some(from), Some(to)) => format!("{from} → {to}"),
        (None, Some(to)) => format!("→ {to}"),
        (Some(from), None) => format!("{from} →"),
        (None, None) => String::new(),
    };
    vec![
        seconds(record.at),
        record.action.to_string(),
        record.pointer.to_string(),
        way,
        human::harmless(&record.by),
        human::harmless(record.reason.as_deref().unwrap_or_default()),
    ]
}

/// A time to the second, in UTC.
fn seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

//! `model-store refs`.

use std::io::Write;

use model_store::{AgentName, RefEntry, StoreError, exit};
use serde::Serialize;

use crate::args;
use crate::cli::Global;
use crate::{human, out};

/// List the refs of an agent, or of all
///
/// Ends with 4 where one leads nowhere.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  model-store refs\n  model-store refs scout --json | jq -r '.[] | select(.name == \"champion\").version'"
)]
pub(crate) struct Args {
    /// The agent [default: all of them]
    agent: Option<AgentName>,
}

#[derive(Serialize)]
struct Row {
    agent: AgentName,
    #[serde(flatten)]
    entry: RefEntry,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    let agents = match &args.agent {
        Some(agent) => vec![agent.clone()],
        None => args::every_agent(&store)?,
    };
    for agent in agents {
        match store.refs(&agent) {
            Ok(refs) => rows.extend(refs.into_iter().map(|entry| Row { agent: agent.clone(), entry })),
            Err(e) if args.agent.is_some() => return Err(e.into()),
            Err(e) => problems.push(e),
        }
    }
    out::unless_closed(if global.json { out::json(&rows) } else { print(&rows) })?;
    if rows.is_empty() && problems.is_empty() && !global.json {
        out::plain_error("no refs yet; `model-store tag AGENT REF VERSION` makes one");
    }
    for row in rows.iter().filter(|row| row.entry.dangling) {
        out::warning(format_args!(
            "{} {} points at {}, which is not there; point it at another with `model-store tag`, or take it away \
             with `model-store untag`",
            row.agent, row.entry.name, row.entry.version
        ));
    }
    for problem in &problems {
        out::warning(human::with_causes(problem));
    }
    let dangling = rows.iter().filter(|row| row.entry.dangling).map(|_| exit::CORRUPT);
    Ok(human::worst(dangling.chain(problems.iter().map(StoreError::exit_code))))
}

fn print(rows: &[Row]) -> anyhow::Result<()> {
    let mut out = out::stdout();
    if rows.is_empty() {
        return Ok(());
    }
    let cells = rows.iter().map(|row| {
        let mark = if row.entry.dangling { "  ⚠ not there" } else { "" };
        vec![row.agent.to_string(), row.entry.name.to_string(), format!("{}{mark}", row.entry.version)]
    });
    for (number, line) in human::table(&["AGENT", "REF", "VERSION"], &[], cells.collect()).iter().enumerate()
    {
        writeln!(out, "{}", out::styled(human::row_style(number, line), line))?;
    }
    Ok(out.flush()?)
}

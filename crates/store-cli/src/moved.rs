//! What is said of a pointer that was moved.

use std::io::Write;

use model_store::{Moved, PointerName, exit};
use serde::Serialize;

use crate::cli::Global;
use crate::{human, out};

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    at: &'a Moved,
    /// Whether anything had to be done.
    moved: bool,
}

/// Says where the pointer was and where it is.
pub(crate) fn print(global: &Global, moved: &Moved) -> anyhow::Result<u8> {
    if global.json {
        out::json(&Answer { at: moved, moved: moved.from != moved.to })?;
    } else {
        let mut out = out::stdout();
        writeln!(out, "{}", in_words(moved))?;
    }
    if let Some(caution) = &moved.caution {
        out::warning(human::harmless(caution));
    }
    Ok(exit::OK)
}

fn in_words(moved: &Moved) -> String {
    let Moved { agent, pointer, from, to, .. } = moved;
    let name = match pointer {
        PointerName::Ref(name) => format!("{agent} {name}"),
        PointerName::Current | PointerName::Version(_) => agent.to_string(),
    };
    let history = format!("history: model-store history {agent}");
    match (from, to) {
        (Some(from), Some(to)) if from == to => {
            let at = if *pointer == PointerName::Current { "is current" } else { "is where it is" };
            format!("{name}: {to} {at} already; nothing had to move")
        }
        (Some(from), Some(to)) => format!("{name}: {from} → {}   ({history})", out::styled(out::OK, to)),
        (None, Some(to)) => format!("{name} → {}   ({history})", out::styled(out::OK, to)),
        (Some(from), None) => format!("{name}: taken away; {from}, where it was, stays   ({history})"),
        (None, None) => format!("{name}: taken away   ({history})"),
    }
}

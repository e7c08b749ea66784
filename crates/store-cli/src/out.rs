//! Printing: colour only on a terminal, and a closed pipe is no reason to panic.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::human;

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const OK: Style = AnsiColor::Green.on_default();
pub(crate) const LOOK: Style = AnsiColor::Yellow.on_default();
pub(crate) const ACT: Style = AnsiColor::Red.on_default().bold();

/// Standard output, which drops colours where nobody sees them.
pub(crate) fn stdout() -> anstream::AutoStream<io::StdoutLock<'static>> {
    anstream::stdout().lock()
}

/// Text in a style.
pub(crate) fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints a value as indented JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&text)?;
    Ok(out.flush()?)
}

/// Takes it for no failure that whoever read our output has seen enough: what was found out stands.
pub(crate) fn unless_closed(printed: anyhow::Result<()>) -> anyhow::Result<()> {
    match printed {
        Err(error) if is_closed(&error) => Ok(()),
        other => other,
    }
}

/// Whether printing failed because nobody reads any more.
pub(crate) fn is_closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints an error with each of its causes on a line of its own.
pub(crate) fn error(error: &anyhow::Error) {
    let mut err = anstream::stderr().lock();
    // Nobody is left to tell where even this fails.
    let harmless = |text: String| text.lines().map(human::harmless).collect::<Vec<_>>().join("\n");
    let _ = writeln!(err, "{} {}", styled(ACT, "error:"), harmless(error.to_string()));
    for cause in error.chain().skip(1) {
        let _ = writeln!(err, "  cause  {}", harmless(cause.to_string()));
    }
}

/// Prints a line to standard error.
pub(crate) fn plain_error(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Prints something to know to standard error.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(anstream::stderr().lock(), "note: {text}");
}

/// Prints something to look at to standard error.
pub(crate) fn warning(text: impl std::fmt::Display) {
    let _ = writeln!(anstream::stderr().lock(), "{} {text}", styled(LOOK, "warning:"));
}

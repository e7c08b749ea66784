//! Ages, counts and tables as people read them.

use std::fmt;

use anstyle::Style;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use model_store::{Check, Quarantine, SignatureState, exit};

use crate::out;

/// The time since then, in its largest unit: `45s`, `2m`, `26h`, `9d`. `-` where it is not known.
pub(crate) fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "-".to_owned() };
    let seconds = now.as_second().saturating_sub(since.as_second()).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Why a version should not be used.
pub(crate) fn quarantined(name: impl fmt::Display, quarantine: &Quarantine) -> String {
    let Quarantine { at, by, reason } = quarantine;
    format!("{name} is quarantined since {at} by {}: {}", harmless(by), harmless(reason))
}

/// What the last verification of a version found: `2m ago ok`.
pub(crate) fn verified(check: Option<&Check>, now: Timestamp) -> String {
    let Some(check) = check else { return "never".to_owned() };
    format!("{} ago {}", age(Some(check.at), now), if check.ok { "ok" } else { "CORRUPT" })
}

/// How a version stands with the keys that are trusted.
pub(crate) fn signature(state: &SignatureState) -> String {
    match state {
        SignatureState::Signed { key } => format!("with key {key}"),
        SignatureState::Unsigned => "no".to_owned(),
        SignatureState::Bad { reason } => format!("no: the signature {}", harmless(reason)),
    }
}

/// An error with its causes, in one line.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Text of somebody else's, made harmless for a terminal: control characters, and those that turn the
/// direction of writing, become escapes.
pub(crate) fn harmless(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// The exit code of several outcomes: damage outweighs whatever else there is.
pub(crate) fn worst(codes: impl Iterator<Item = u8>) -> u8 {
    codes.max_by_key(|code| (*code == exit::CORRUPT, *code)).unwrap_or(exit::OK)
}

/// `1 file`, `2 files`.
pub(crate) fn count(number: usize, one: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {one}s"),
    }
}

/// A table without lines; the columns named in `right` hold numbers.
pub(crate) fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

/// How a line of a table is printed: the header, and what is to be looked at, stand out.
pub(crate) fn row_style(number: usize, line: &str) -> Style {
    match number {
        0 => out::BOLD,
        _ if line.contains('⚠') => out::LOOK,
        _ => Style::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        let now = Timestamp::from_second(1_000_000).unwrap_or_default();
        let rows = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3_599, "59m"),
            (93_600, "26h"),
            (777_600, "9d"),
            (-5, "0s"),
        ];
        for (seconds, expected) in rows {
            let then = Timestamp::from_second(1_000_000 - seconds).ok();
            assert_eq!(age(then, now), expected, "{seconds}");
        }
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn what_moves_a_cursor_is_shown_and_not_done() {
        let rows = [
            ("Größe 1", "Größe 1"),
            ("a\nb\tc", r"a\nb\tc"),
            ("\u{1b}[2J", r"\u{1b}[2J"),
            ("\u{7f}\u{9b}31m", r"\u{7f}\u{9b}31m"),
            ("x\u{202e}y", r"x\u{202e}y"),
        ];
        for (text, expected) in rows {
            assert_eq!(harmless(text), expected, "{text:?}");
        }
    }
}

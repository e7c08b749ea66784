//! `model-store doctor`.

use std::io::Write;

use anstyle::Style;
use model_store::{Complaint, Diagnosis, Doctoring, Fix, Severity, exit};

use crate::args::{self, Patience};
use crate::cli::Global;
use crate::{human, meter, out};

const EXAMPLES: &str = "\
Examples:
  model-store doctor
  model-store doctor --fix
  model-store doctor --json | jq '.complaints[] | select(.severity == \"error\")'";

/// Look whether the store and its host are as they should be
///
/// No model is read: that the bytes are right is for `verify`. Ends with 0 where there is nothing but notes,
/// with 1 where a warning or an error is left.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Put right what can be put right without losing anything
    #[arg(long)]
    fix: bool,
    #[command(flatten)]
    patience: Patience,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?.with_lock_patience(args.patience.wait()).with_progress(meter::stoppable()?);
    let doctoring = if args.fix { Doctoring::Fix } else { Doctoring::Look };
    let diagnosis = args::or_stopped(store.doctor(doctoring), "what was put right stays so")?;
    out::unless_closed(if global.json { out::json(&diagnosis) } else { print(&diagnosis) })?;
    Ok(match diagnosis.worst() {
        None | Some(Severity::Note) => exit::OK,
        Some(Severity::Warning | Severity::Error) => exit::FAILURE,
    })
}

fn print(diagnosis: &Diagnosis) -> anyhow::Result<()> {
    let mut out = out::stdout();
    let widest = diagnosis.checks.iter().map(|check| check.len()).max().unwrap_or_default();
    for check in &diagnosis.checks {
        let complaints: Vec<_> = diagnosis.complaints.iter().filter(|one| one.check == *check).collect();
        if complaints.is_empty() {
            writeln!(out, "{check:<widest$}  {}", out::styled(out::OK, "ok"))?;
        }
        for complaint in complaints {
            print_complaint(complaint, widest, &mut out)?;
        }
    }
    let left = diagnosis.complaints.iter().filter(|one| one.fix != Fix::Done);
    let left: Vec<_> = left.collect();
    let of = |severity| left.iter().filter(|one| one.severity == severity).count();
    let possible = left.iter().filter(|one| one.fix == Fix::Possible).count();
    let fixable = match possible {
        0 => String::new(),
        _ => format!("; `model-store doctor --fix` puts {possible} of them right"),
    };
    let (errors, warnings, notes) = (of(Severity::Error), of(Severity::Warning), of(Severity::Note));
    if left.is_empty() {
        writeln!(out, "all is well")?;
    } else {
        let count = human::count;
        let counts = [count(errors, "error"), count(warnings, "warning"), count(notes, "note")];
        writeln!(out, "{}{fixable}", counts.join(", "))?;
    }
    Ok(out.flush()?)
}

fn print_complaint(complaint: &Complaint, widest: usize, out: &mut impl Write) -> std::io::Result<()> {
    let Complaint { check, severity, subject, what, advice, fix } = complaint;
    let (word, style) = match (fix, severity) {
        (Fix::Done, _) => ("put right", out::OK),
        (_, Severity::Note) => ("note", Style::new()),
        (_, Severity::Warning) => ("warning", out::LOOK),
        (_, Severity::Error) => ("error", out::ACT),
    };
    let what = human::harmless(&format!("{}: {what}", subject.display()));
    writeln!(out, "{check:<widest$}  {} {what}", out::styled(style, word))?;
    match (fix, advice) {
        (Fix::Done, _) => {}
        (Fix::Failed { why }, _) => {
            writeln!(out, "{:widest$}  could not be put right: {}", "", human::harmless(why))?;
        }
        (_, Some(advice)) => writeln!(out, "{:widest$}  next  {}", "", human::harmless(advice))?,
        (_, None) => {}
    }
    Ok(())
}

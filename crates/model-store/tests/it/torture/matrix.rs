//! Every operation killed, and every operation failed, at every call by which it changes the file system.

use model_store::exit;

use super::rows::{Expect, Known, ROWS};
use super::strike::{Fault, Point, can_strike, strike};
use super::{conclude, sample, scratch, stride, threads, try_all};
use crate::child::Outcome;

/// An error, and the exit code of a command that fails with it.
const ERRORS: [(&str, u8); 5] = [
    ("EIO", exit::FAILURE),
    ("ENOSPC", exit::ENVIRONMENT),
    ("EACCES", exit::ENVIRONMENT),
    ("EMFILE", exit::FAILURE),
    ("EROFS", exit::ENVIRONMENT),
];

/// Sets the scene, strikes once and checks what is left; gives whether the process came to the point.
fn try_point(known: &Known, point: &Point, fault: Fault) -> Result<(bool, Option<u8>), String> {
    let row = format!("{}, {fault:?} at {point}", known.row.name);
    let dir = scratch();
    let store = known.row.set(dir.path());
    let struck = strike(&known.row.task(store.root()), point, fault, &dir.path().join("strace.log"));
    let check = || {
        let expect = match (fault, struck.outcome.code()) {
            (_, Some(exit::OK)) => Expect::After,
            (Fault::Kill, _) => Expect::Either,
            (Fault::Error(error), _) => {
                known.check_no_new_debris(&store)?;
                judge_refusal(&struck.outcome, error, known.row.stepwise)?
            }
        };
        known.check(&store, expect)
    };
    check().map_err(|e| format!("{row}: {e}")).map(|()| (struck.hit, struck.outcome.code()))
}

/// A failure says which file it failed at and what the system said, and the store is as it was.
fn judge_refusal(outcome: &Outcome, error: &str, stepwise: bool) -> Result<Expect, String> {
    let message = outcome.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    // The pointer had moved by then, and readers may have seen it.
    let code = ERRORS.iter().find(|(name, _)| *name == error).expect("one of ours").1;
    let (expect, code) = match outcome.code() {
        _ if message.contains("could not be confirmed") => (Expect::After, exit::FAILURE),
        Some(exit::FAILURE) if stepwise => (Expect::Either, exit::FAILURE),
        _ => (if stepwise { Expect::Either } else { Expect::Before }, code),
    };
    if outcome.code() != Some(code) {
        return Err(format!("the exit code is not {code}: {outcome:?}"));
    }
    let names_what = (message.contains("/store") || message.contains("/proc")) || message.contains("scout");
    if message.contains("could not") && names_what && message.contains("os error") {
        return Ok(expect);
    }
    Err(format!("does not name what failed and why: {message:?}"))
}

fn run_matrix(matrix: &str, faults: &[Fault], sampled: usize) {
    if !can_strike() {
        return;
    }
    let known: Vec<_> = ROWS.iter().map(super::rows::Row::learn).collect();
    let (mut tried, mut violations) = (0, Vec::new());
    for (n, known) in known.iter().enumerate() {
        let all = known.points.iter().flat_map(|point| faults.iter().map(move |fault| (point, *fault)));
        let cases: Vec<_> = sample(all.collect(), n, stride(sampled)).collect();
        let missed = std::sync::atomic::AtomicUsize::new(0);
        let failures = std::sync::atomic::AtomicUsize::new(0);
        let found = try_all(threads(), &cases, |(point, fault)| {
            let (hit, code) = try_point(known, point, *fault)?;
            if !hit {
                missed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            if code != Some(exit::OK) {
                failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            Ok(())
        });
        let (missed, failures) = (missed.into_inner(), failures.into_inner());
        eprintln!(
            "  {}: {} points, {} of them reached, {failures} ended the operation, violations {}",
            known.row.name,
            cases.len(),
            cases.len() - missed,
            found.len()
        );
        assert!(missed * 10 <= cases.len(), "{}: {missed} points were not reached", known.row.name);
        tried += cases.len() - missed;
        violations.extend(found);
    }
    conclude(matrix, tried, &violations);
}

#[test]
fn killed_at_any_call_an_operation_leaves_the_old_or_the_new() {
    run_matrix("kill matrix", &[Fault::Kill], 3);
}

#[test]
fn failed_at_any_call_an_operation_says_so_and_leaves_nothing() {
    run_matrix("error matrix", &ERRORS.map(|(error, _)| Fault::Error(error)), 11);
}

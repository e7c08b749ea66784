//! The store with the plug pulled: every operation killed, failed and cut off from its power at every call by
//! which it changes the file system, and a crowd of processes at once.
//!
//! `TORTURE=full` tries every point, `TORTURE=N` every N-th; unset, each matrix takes a sample.

pub(crate) mod crowd;
mod disk;
mod matrix;
mod power;
mod rows;
mod state;
pub(crate) mod strike;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many points lie from one that is tried to the next.
fn stride(sampled: usize) -> usize {
    match std::env::var("TORTURE").as_deref() {
        Ok("full") => 1,
        Ok(stride) => stride.parse().expect("TORTURE is `full` or a number"),
        Err(_) => sampled,
    }
}

/// Every `stride`-th of the points, beginning at another one in every row, so that a sample over all rows is
/// one over all kinds of points.
fn sample<T>(points: Vec<T>, row: usize, stride: usize) -> impl Iterator<Item = T> {
    points.into_iter().skip(row % stride).step_by(stride)
}

/// Tries all cases on several threads and gives what was violated.
fn try_all<T: Sync>(
    threads: usize,
    cases: &[T],
    check: impl Fn(&T) -> Result<(), String> + Sync,
) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let violations = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(violation) = check(case) {
                        eprintln!("violation: {violation}");
                        violations.lock().unwrap().push(violation);
                    }
                }
            });
        }
    });
    violations.into_inner().unwrap()
}

/// A directory for one case: in memory where that can be, since what is tried here does not depend on the file
/// system.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// How many cases are tried at once.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(4)
}

/// Says what a matrix came to, and fails where anything was violated.
fn conclude(matrix: &str, points: usize, violations: &[String]) {
    eprintln!("{matrix}: points tried {points}, violations {}", violations.len());
    assert!(points > 0, "{matrix}: no point was tried");
    let shown: Vec<_> = violations.iter().take(10).map(String::as_str).collect();
    assert!(
        violations.is_empty(),
        "{matrix}: {} violations, such as\n{}",
        violations.len(),
        shown.join("\n")
    );
}

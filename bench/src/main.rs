//! `store-bench [ROW…]`: measures the store and the loader against their peers, pair by pair.
//!
//! Each row runs ours and the peer's in turn on the same input, and compares medians as a ratio: the machine
//! may be shared and noisy, so seconds alone say little. A line for every row goes to stdout, JSON and a plot
//! to `target/bench/`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program whose output is for people")]

mod build;
mod embed;
mod export;
mod host;
mod input;
mod pairs;
mod plot;
mod rows;
mod sync;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::rows::ROWS;

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(wanted: &[String]) -> anyhow::Result<()> {
    if let [word, folder] = wanted
        && word == embed::FIRST_VECTOR
    {
        return embed::first_vector(folder);
    }
    if let [word, folder, out] = wanted
        && word == export::EXPORT
    {
        return export::export_one(folder, out);
    }
    if wanted.iter().any(|word| word == "--help" || word == "-h") {
        help();
        return Ok(());
    }
    if let Some(unknown) = wanted.iter().find(|name| !ROWS.iter().any(|row| row.name == name.as_str())) {
        let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        anyhow::bail!("there is no row {unknown}; the rows are {}", names.join(", "));
    }
    let out =
        PathBuf::from(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("bench");
    std::fs::create_dir_all(&out).with_context(|| format!("could not make {}", out.display()))?;
    clear_up(&out)?;
    // Where the store's disk is: a temporary directory may lie in memory.
    let prefix = format!("{SCRATCH}{}-", std::process::id());
    let place = tempfile::Builder::new().prefix(&prefix).tempdir_in(&out)?;
    let host = host::in_words(place.path());
    println!("{host}");
    for row in ROWS.iter().filter(|row| wanted.is_empty() || wanted.iter().any(|name| name == row.name)) {
        let place = place.path().join(row.name);
        std::fs::create_dir(&place)?;
        let measured = (row.measure)(&place).with_context(|| format!("row {}", row.name))?;
        std::fs::remove_dir_all(&place)?;
        println!("{}", measured.line(row));
        std::fs::write(out.join(format!("{}.json", row.name)), format!("{:#}\n", measured.json(row, &host)))?;
        std::fs::write(out.join(format!("{}.svg", row.name)), plot::svg(row, &measured))?;
    }
    Ok(())
}

fn help() {
    println!("Measures the store and the loader against their peers, pair by pair.\n");
    println!("Usage: store-bench [ROW]...        all rows unless named\n");
    for row in ROWS {
        println!("  {:<18} {}; peer: {} (at least {} times)", row.name, row.work, row.peer, row.at_least);
    }
    println!(
        "\nLines go to stdout, JSON and plots to target/bench; the work is done there too. docs/benchmarks.md"
    );
    println!("says what the rows need: python3, the peers (`make bench-peers`) and several GB of disk.");
    println!("\nExample: store-bench verify embed-exact");
}

/// Folders of work are named by this and the process that works in them.
const SCRATCH: &str = "work-";

/// Takes away what runs left that were killed.
fn clear_up(out: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(out)? {
        let entry = entry?;
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(SCRATCH)?.split_once('-'));
        let is_gone = |(process, _): (&str, &str)| !Path::new("/proc").join(process).exists();
        if process.is_some_and(is_gone) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

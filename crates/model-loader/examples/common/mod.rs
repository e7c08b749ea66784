//! What the examples share: their arguments, and lines in, lines out.

use std::io::{self, BufRead, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use model_loader::{LoadError, ResolveOptions, ResolvedModel};
use model_store::exit;

/// Lines that are answered together when they are there already; a person who types gets an answer a line.
const CHUNK_LINES: usize = 256;

/// What the command line asked for.
pub struct Arguments {
    pub agent: String,
    pub options: ResolveOptions,
    verbose: bool,
}

/// Why an example ends early.
pub enum Failure {
    Usage(String),
    Load(LoadError),
    Io(io::Error),
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs an example: `--help`, arguments, and an error that says what to do, with its exit code.
pub fn main(usage: &str, run: impl FnOnce(Arguments) -> Result<(), Failure>) -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == "--help" || first == "-h") {
        // A reader that has gone away needs no help.
        let _ = io::stdout().write_all(usage.as_bytes());
        return ExitCode::SUCCESS;
    }
    let (message, code) = match parse(arguments).and_then(run) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => (format!("{message}; --help explains"), exit::USAGE),
        Err(Failure::Io(error)) => (error.to_string(), exit::FAILURE),
        Err(Failure::Load(error)) => (chain(&error), error.exit_code()),
    };
    let _ = writeln!(io::stderr(), "error: {message}");
    ExitCode::from(code)
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, Failure> {
    let mut agent = None;
    let mut options = ResolveOptions::from_env();
    let mut verbose = false;
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| Failure::Usage(format!("{flag} wants a value")));
        match flag.as_str() {
            "--agent" => agent = Some(value()?),
            "--version" => options.version = Some(value()?),
            "--store" => options.store = Some(PathBuf::from(value()?)),
            "--model" => options.folder = Some(PathBuf::from(value()?)),
            "--verbose" => verbose = true,
            _ => return Err(Failure::Usage(format!("{flag} is no argument of this example"))),
        }
    }
    let agent = agent.ok_or_else(|| Failure::Usage("--agent AGENT says whose model to take".to_owned()))?;
    Ok(Arguments { agent, options, verbose })
}

impl Arguments {
    /// Says where the model came from, if that was asked for.
    pub fn loaded(&self, resolved: Option<&ResolvedModel>) -> Result<(), Failure> {
        match resolved {
            Some(resolved) if self.verbose => Ok(writeln!(io::stderr(), "{resolved}")?),
            _ => Ok(()),
        }
    }
}

/// Answers every line of the standard input with a line of the standard output, in order, as they come.
pub fn answer_lines(
    mut answer: impl FnMut(&[String]) -> Result<Vec<serde_json::Value>, LoadError>,
) -> Result<(), Failure> {
    let mut input = io::BufReader::with_capacity(1 << 16, io::stdin());
    let mut output = BufWriter::new(io::stdout().lock());
    let mut texts = Vec::new();
    loop {
        let mut line = String::new();
        let more = input.read_line(&mut line)? > 0;
        if more {
            texts.push(line.trim_end_matches(['\n', '\r']).to_owned());
        }
        // Whole chunks while lines are waiting; what is there as soon as none is.
        let waiting = more && input.buffer().contains(&b'\n');
        if texts.len() >= CHUNK_LINES || !(texts.is_empty() || waiting) {
            for value in answer(&texts)? {
                writeln!(output, "{value}")?;
            }
            output.flush()?;
            texts.clear();
        }
        if !more {
            return Ok(());
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

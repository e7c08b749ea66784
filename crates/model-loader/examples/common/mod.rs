//! What the examples share: their arguments, and lines in, lines out, by a model that follows `current`.

mod log;

use std::fmt;
use std::io::{self, BufRead, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use model_loader::{LoadError, LoadOptions, Model, ReloadEvent, Reloading, ResolveOptions, Watching};
use model_store::{exit, with_causes};

/// Lines that are answered together when they are there already; a person who types gets an answer a line.
const CHUNK_LINES: usize = 256;

/// The arguments that every example takes, for its `--help`.
pub const COMMON_USAGE: &str = "\
  --agent AGENT      whose model to take from the store
  --version VERSION  a version or ref (`champion`), and not the current one
  --store DIR        another store than MODEL_STORE_ROOT's
  --model DIR        a folder to take when the store does not serve the agent
  --interval TIME    how often the store is asked for a new version, in milliseconds (500)
  --json             one JSON object a line
  --verbose          say what is loaded from where, on the standard error

When `current` moves, the next line is answered by the new version, without a restart. A version that does
not load, or answers with other dimensions or labels, is refused, and the old one goes on.
";

/// What the command line asked for.
pub struct Arguments {
    pub agent: String,
    pub options: ResolveOptions,
    pub json: bool,
    interval: Option<Duration>,
    /// The example's own arguments.
    own: Vec<(String, String)>,
}

/// Why an example ends early.
pub enum Failure {
    Usage(String),
    Load(LoadError),
    Io(io::Error),
    /// What is wrong, and the exit code.
    Other(String, u8),
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

/// Runs an example: `--help`, arguments (`own` are the ones with a value that only this example has), and an error that
/// says what to do, with its exit code.
pub fn main(usage: &str, own: &[&str], run: impl FnOnce(Arguments) -> Result<(), Failure>) -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == "--help" || first == "-h") {
        // A reader that has gone away needs no help.
        let _ = write!(io::stdout(), "{}", usage.replace("{COMMON}", COMMON_USAGE));
        return ExitCode::SUCCESS;
    }
    let (message, code) = match parse(arguments, own).and_then(run) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => (format!("{message}; --help explains"), exit::USAGE),
        Err(Failure::Io(error)) => (error.to_string(), exit::FAILURE),
        Err(Failure::Other(message, code)) => (message, code),
        Err(Failure::Load(error)) => (with_causes(&error), error.exit_code()),
    };
    say(format_args!("error: {message}"));
    ExitCode::from(code)
}

fn parse(mut arguments: impl Iterator<Item = String>, own: &[&str]) -> Result<Arguments, Failure> {
    let mut agent = None;
    let mut parsed = Arguments {
        agent: String::new(),
        options: ResolveOptions::from_env(),
        json: false,
        interval: None,
        own: Vec::new(),
    };
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| Failure::Usage(format!("{flag} wants a value")));
        match flag.as_str() {
            "--agent" => agent = Some(value()?),
            "--version" => parsed.options.version = Some(value()?),
            "--store" => parsed.options.store = Some(PathBuf::from(value()?)),
            "--model" => parsed.options.folder = Some(PathBuf::from(value()?)),
            "--interval" => parsed.interval = Some(Duration::from_millis(number(&flag, &value()?)?)),
            "--json" => parsed.json = true,
            "--verbose" => log::to_stderr(),
            _ if own.contains(&flag.as_str()) => {
                let value = value()?;
                parsed.own.push((flag, value));
            }
            _ => return Err(Failure::Usage(format!("{flag} is no argument of this example"))),
        }
    }
    parsed.agent =
        agent.ok_or_else(|| Failure::Usage("--agent AGENT says whose model to take".to_owned()))?;
    Ok(parsed)
}

/// A whole number that is more than zero.
pub fn number(flag: &str, value: &str) -> Result<u64, Failure> {
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Failure::Usage(format!("{flag} wants a number from 1 on, not `{value}`")))
}

impl Arguments {
    /// The value of one of the example's own arguments; the last one where it was given twice.
    pub fn own(&self, flag: &str) -> Option<&str> {
        self.own.iter().rev().find(|(name, _)| name == flag).map(|(_, value)| value.as_str())
    }

    /// The agent's model, looked after from now on. What happens to it is said on the standard error.
    pub fn model<M: Model<Options = LoadOptions>>(&self) -> Result<Reloading<M>, Failure> {
        let mut watching = Watching::default().telling(|event| match event {
            ReloadEvent::Replaced { from, to, .. } => {
                say(format_args!("note: {} answers now (before: {})", to.short_name(), from.short_name()));
            }
            ReloadEvent::Refused(refused) => say(format_args!("warning: refused: {}", refused.reason)),
            _ => {}
        });
        if let Some(interval) = self.interval {
            watching = watching.every(interval);
        }
        Ok(Reloading::load(&self.agent, &self.options, &LoadOptions::default(), watching)?)
    }
}

/// Writes a line to the standard error.
fn say(line: fmt::Arguments<'_>) {
    // One write, so that lines of two threads do not mix; nobody may be listening.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Answers every line of the standard input on the standard output, in order, as they come.
pub fn answer_lines(
    mut answer: impl FnMut(&[String]) -> Result<Vec<String>, LoadError>,
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
            for line in answer(&texts)? {
                writeln!(output, "{line}")?;
            }
            output.flush()?;
            texts.clear();
        }
        if !more {
            return Ok(());
        }
    }
}

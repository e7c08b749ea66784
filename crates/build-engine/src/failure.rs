//! How this command ends when it does not succeed.

use std::fmt;
use std::io;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use model_store::exit;

/// An error and the exit code it ends with.
#[derive(Debug)]
pub(crate) struct Failure {
    error: anyhow::Error,
    code: u8,
    /// What to do next, where the error itself cannot know.
    next: Option<&'static str>,
}

impl Failure {
    /// `error`, ending with `code`.
    pub(crate) fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), code, next: None }
    }

    /// A sentence, ending with `code`.
    pub(crate) fn message(code: u8, sentence: String) -> Self {
        Self { error: anyhow::Error::msg(sentence), code, next: None }
    }

    /// A file could not be read: not found (3) if that is why, else a failure.
    pub(crate) fn io(error: io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::NotFound { exit::NOT_FOUND } else { exit::FAILURE };
        Self::new(code, error)
    }

    /// The same failure, said to have happened while doing `what`.
    pub(crate) fn context(self, what: String) -> Self {
        Self { error: self.error.context(what), ..self }
    }

    /// The same failure, with what to do next.
    pub(crate) fn next(self, next: &'static str) -> Self {
        Self { next: Some(next), ..self }
    }

    /// Standard output could not be written. A reader that has seen enough is no failure.
    pub(crate) fn output(error: io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::BrokenPipe { exit::OK } else { exit::FAILURE };
        Self::new(code, error)
    }

    /// What the process ends with.
    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Prints the error and its causes, each once, and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        if self.code == exit::OK {
            return ExitCode::SUCCESS;
        }
        let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        if self.code == exit::INTERRUPTED {
            anstream::eprintln!("{}", self.error);
        } else {
            anstream::eprintln!("{red}error:{red:#} {self}");
        }
        ExitCode::from(self.code)
    }
}

/// The error and its causes, each once.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.error.to_string();
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            // Some libraries repeat their cause in their own words.
            if !text.contains(&cause) {
                text = format!("{text}: {cause}");
            }
        }
        f.write_str(&text)?;
        self.next.map_or(Ok(()), |next| write!(f, "\n  next: {next}"))
    }
}

impl From<trt_compiler::CompileError> for Failure {
    fn from(error: trt_compiler::CompileError) -> Self {
        Self::new(error.exit_code(), error)
    }
}

impl From<model_store::StoreError> for Failure {
    fn from(error: model_store::StoreError) -> Self {
        Self::new(error.exit_code(), error)
    }
}

impl From<model_loader::LoadError> for Failure {
    fn from(error: model_loader::LoadError) -> Self {
        Self::new(error.exit_code(), error)
    }
}

impl From<hub_fetch::FetchError> for Failure {
    fn from(error: hub_fetch::FetchError) -> Self {
        Self::new(error.exit_code(), error)
    }
}

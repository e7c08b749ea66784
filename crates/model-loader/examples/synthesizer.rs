//! A small agent that writes, as it is written: `cargo run -p model-loader --example synthesizer -- --agent synthesizer
//! 'Write about sport.'`

use std::io::{self, BufRead as _, Read as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use model_loader::{
    CausalLm, ChatMessage, ChatOptions, Device, GenerateOptions, LmOptions, LoadError, Precision, Prompt,
    ReloadEvent, Reloading, ResolveOptions, Watching,
};
use model_store::{exit, with_causes};

const USAGE: &str = "\
Writes what a language model makes of a prompt, piece by piece, and a line end after it.

Usage: synthesizer --agent AGENT [OPTIONS] [PROMPT]

  PROMPT             what to answer; without it, each line of the standard input as it comes
  --whole            without PROMPT: the standard input to its end is one prompt

  --agent AGENT      whose model to take from the store
  --version VERSION  another than the current one
  --store DIR        another store than MODEL_STORE_ROOT's
  --model DIR        a folder to take when the store does not serve the agent
  --adapter DIR      a LoRA adapter to merge into the model
  --device DEVICE    cpu (the default), cuda or cuda:N
  --precision KIND   auto (the default), float32, float16 or bfloat16
  --system TEXT      what the model is told before the prompt
  --raw              continue the prompt as it is, without the model's chat template
  --max-tokens N     the most tokens of the answer
  --temperature T    0 takes the likeliest token each time
  --top-p P          draw from the likeliest that have this probability together
  --seed N           what the draws follow from
  --stop TEXT        end the answer before this text; may be given several times
  --verbose          say on the standard error where the model came from and what it computed

Without a flag, the model's own generation_config.json decides. When `current` moves, the next prompt is
answered by the new version, without a restart; one that does not load is refused, and the old one goes on.

Examples:
  synthesizer --agent synthesizer 'Write about weather.'
  synthesizer --agent synthesizer --whole --system 'Summarise this.' < article.txt
";

struct Arguments {
    agent: String,
    resolve: ResolveOptions,
    load: LmOptions,
    system: Option<String>,
    raw: bool,
    whole: bool,
    verbose: bool,
    prompt: Option<String>,
    changes: Vec<Change>,
}

/// A flag's change to the options that the model's folder asks for.
type Change = Box<dyn Fn(&mut GenerateOptions)>;

enum Failure {
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

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        // A reader that has gone away needs no help.
        let _ = io::stdout().write_all(USAGE.as_bytes());
        return ExitCode::SUCCESS;
    }
    let (message, code) = match parse(arguments).and_then(|arguments| run(&arguments)) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => (format!("{message}; --help explains"), exit::USAGE),
        Err(Failure::Io(error)) => (error.to_string(), exit::FAILURE),
        Err(Failure::Load(error)) => (with_causes(&error), error.exit_code()),
    };
    let _ = writeln!(io::stderr(), "error: {message}");
    ExitCode::from(code)
}

fn parse(arguments: Vec<String>) -> Result<Arguments, Failure> {
    let mut agent = None;
    let mut parsed = Arguments {
        agent: String::new(),
        resolve: ResolveOptions::from_env(),
        load: LmOptions::default(),
        system: None,
        raw: false,
        whole: false,
        verbose: false,
        prompt: None,
        changes: Vec::new(),
    };
    let mut rest = arguments.into_iter();
    while let Some(flag) = rest.next() {
        let mut value = || rest.next().ok_or_else(|| Failure::Usage(format!("{flag} wants a value")));
        match flag.as_str() {
            "--agent" => agent = Some(value()?),
            "--version" => parsed.resolve.version = Some(value()?),
            "--store" => parsed.resolve.store = Some(PathBuf::from(value()?)),
            "--model" => parsed.resolve.folder = Some(PathBuf::from(value()?)),
            "--adapter" => parsed.load.adapter = Some(PathBuf::from(value()?)),
            "--device" => parsed.load.load.device = value()?.parse::<Device>()?,
            "--precision" => parsed.load.precision = value()?.parse::<Precision>()?,
            "--system" => parsed.system = Some(value()?),
            "--raw" => parsed.raw = true,
            "--whole" => parsed.whole = true,
            "--verbose" => parsed.verbose = true,
            "--max-tokens" => {
                let count = number(&flag, &value()?)?;
                parsed.changes.push(Box::new(move |options| options.max_new_tokens = count));
            }
            "--temperature" => {
                let temperature = number(&flag, &value()?)?;
                parsed.changes.push(Box::new(move |options| options.temperature = temperature));
            }
            "--top-p" => {
                let top_p = number(&flag, &value()?)?;
                parsed.changes.push(Box::new(move |options| options.top_p = top_p));
            }
            "--seed" => {
                let seed = number(&flag, &value()?)?;
                parsed.changes.push(Box::new(move |options| options.seed = seed));
            }
            "--stop" => {
                let stop = value()?;
                parsed.changes.push(Box::new(move |options| options.stop.push(stop.clone())));
            }
            other if !other.starts_with('-') && parsed.prompt.is_none() => parsed.prompt = Some(flag),
            other => return Err(Failure::Usage(format!("{other} is no argument of this example"))),
        }
    }
    parsed.agent =
        agent.ok_or_else(|| Failure::Usage("--agent AGENT says whose model to take".to_owned()))?;
    Ok(parsed)
}

fn number<T: std::str::FromStr>(flag: &str, text: &str) -> Result<T, Failure> {
    text.parse().map_err(|_| Failure::Usage(format!("{flag} wants a number, not `{text}`")))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let watching = Watching::default().telling(|event| {
        let _ = match event {
            ReloadEvent::Replaced { from, to, .. } => {
                writeln!(
                    io::stderr(),
                    "note: {} answers now (before: {})",
                    to.short_name(),
                    from.short_name()
                )
            }
            ReloadEvent::Refused(refused) => writeln!(io::stderr(), "warning: refused: {}", refused.reason),
            _ => Ok(()),
        };
    });
    let lm = Reloading::<CausalLm>::load(&arguments.agent, &arguments.resolve, &arguments.load, watching)?;
    if arguments.verbose {
        writeln!(io::stderr(), "{}", lm.get().resolved())?;
    }
    if let Some(prompt) = &arguments.prompt {
        return answer(arguments, &lm.get(), prompt);
    }
    if arguments.whole {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text)?;
        return answer(arguments, &lm.get(), text.trim_end_matches(['\n', '\r']));
    }
    for line in io::stdin().lock().lines() {
        // One model for the whole answer, whatever `current` does meanwhile.
        answer(arguments, &lm.get(), &line?)?;
    }
    Ok(())
}

fn answer(arguments: &Arguments, lm: &CausalLm, text: &str) -> Result<(), Failure> {
    let prompt = if arguments.raw || !lm.has_chat_template() {
        let system = arguments.system.iter().map(|system| format!("{system}\n\n"));
        Prompt::Text(system.chain([text.to_owned()]).collect())
    } else {
        let system = arguments.system.iter().map(|system| ChatMessage::new("system", system));
        let messages: Vec<_> = system.chain([ChatMessage::new("user", text)]).collect();
        lm.chat(&messages, &ChatOptions::default())?
    };
    let mut options = lm.options();
    for change in &arguments.changes {
        change(&mut options);
    }
    let mut generation = lm.generate_stream(prompt, &options)?;
    let mut output = io::stdout().lock();
    for piece in &mut generation {
        output.write_all(piece?.text.as_bytes())?;
        // Whoever reads along gets each piece as it comes.
        output.flush()?;
    }
    writeln!(output)?;
    if arguments.verbose {
        let (prompt, tokens) = (generation.prompt_tokens(), generation.tokens().len());
        let end = generation.finish().map(|reason| format!("{reason:?}").to_lowercase()).unwrap_or_default();
        writeln!(io::stderr(), "{prompt} tokens of prompt, {tokens} of answer, ended by {end}")?;
    }
    Ok(())
}

//! The command that serves folders and a model store as a Hugging Face Hub.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use hub_server::{CatalogueError, Config, Rules, ServeError, Server};
use model_store::exit;

const EXAMPLES: &str = "\
Examples:
  hub-server --folder ./models --listen 0.0.0.0:8080
      serve ./models/org/name as org/name; ./models/org/name@v2 is its revision v2
  hub-server --store /opt/justnews/models
      serve the agents of a store as store/<agent>: main is what is current, a version's name is a revision
  HF_ENDPOINT=http://127.0.0.1:8080 build-engine --agent memory --model-id org/name
      use it; huggingface_hub and transformers take the same variable

Rules, a JSON file (every key may be left out):
  {\"tokens\": {\"hf_reader\": [\"org/secret\", \"org/gated\"]}, \"private\": [\"org/secret\"],
   \"gated\": [\"org/gated\"], \"renamed\": {\"org/old\": \"org/new\"}}

The first line printed is the address. It serves until it is stopped.";

/// Serve folders of models and a model store as a Hugging Face Hub
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    /// Serve the models in this folder, ORGANISATION/NAME each (may be repeated)
    #[arg(long, value_name = "DIR")]
    folder: Vec<PathBuf>,

    /// Serve the agents of this model store as store/AGENT
    #[arg(long, value_name = "ROOT")]
    store: Option<PathBuf>,

    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Redirect large files to this second address, as the Hub does
    #[arg(long, value_name = "ADDRESS")]
    cdn: Option<SocketAddr>,

    /// Give a connection up whose client takes nothing of an answer for so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..=86400))]
    takes_within: u64,

    /// How clients reach the second address [default: `http://` and ADDRESS]
    #[arg(long, value_name = "URL", requires = "cdn")]
    cdn_url: Option<String>,

    /// Who may read what: a JSON file, since a token on a command line is seen by everybody
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

fn main() -> ExitCode {
    match serve(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, error)) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::from(code)
        }
    }
}

fn serve(cli: Cli) -> Result<(), (u8, anyhow::Error)> {
    let rules = cli.rules.as_deref().map(Rules::read).transpose();
    let config = Config {
        listen: cli.listen,
        cdn: cli.cdn,
        cdn_url: cli.cdn_url,
        folders: cli.folder,
        store: cli.store,
        rules: rules.map_err(|error| (exit::USAGE, error.into()))?.unwrap_or_default(),
        takes_within: Duration::from_secs(cli.takes_within),
    };
    let server = Server::start(config).map_err(|error| (exit_code(&error), error.into()))?;
    let said = writeln!(io::stdout(), "{}", server.url()).and_then(|()| io::stdout().flush());
    said.map_err(|error| (exit::FAILURE, error.into()))?;
    let _ = writeln!(io::stderr(), "serving {} models; Ctrl-C stops it", server.models().len());
    server.wait();
    Ok(())
}

fn exit_code(error: &ServeError) -> u8 {
    match error {
        ServeError::Nothing => exit::USAGE,
        ServeError::Catalogue(CatalogueError::Store(error)) => error.exit_code(),
        ServeError::Catalogue(CatalogueError::Folder { source, .. })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            exit::NOT_FOUND
        }
        ServeError::Listen { .. } => exit::ENVIRONMENT,
        _ => exit::FAILURE,
    }
}

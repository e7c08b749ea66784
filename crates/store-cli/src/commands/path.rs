//! `model-store path`.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use model_store::{AgentName, VersionName, exit};
use serde::Serialize;

use crate::cli::Global;
use crate::out;

/// Print the absolute path of a version: the current one, unless another is named
///
/// The path leads to the version itself and not through `current`, so it stays the same version.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  cd \"$(model-store path scout)\"\n  model-store path scout --version v1"
)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The version, instead of the current one
    #[arg(long)]
    version: Option<VersionName>,
}

#[derive(Serialize)]
struct Answer<'a> {
    agent: &'a AgentName,
    version: &'a VersionName,
    path: &'a std::path::Path,
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let found = match args.version {
        Some(version) => store.require_version(&args.agent, &version)?,
        None => store.require_current(&args.agent)?,
    };
    if global.json {
        out::json(&Answer { agent: found.agent(), version: found.version(), path: found.path() })?;
    } else {
        // Byte for byte: what is printed is what a shell will use.
        let mut line = found.path().as_os_str().as_bytes().to_vec();
        line.push(b'\n');
        std::io::stdout().lock().write_all(&line)?;
    }
    Ok(exit::OK)
}

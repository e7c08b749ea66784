//! `model-store path`.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use model_store::{AgentName, Quarantine, Selector, VersionName, exit};
use serde::Serialize;

use crate::cli::Global;
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  cd \"$(model-store path scout)\"
  model-store path scout v1
  model-store path scout champion                  what a ref points at";

/// Print the absolute path of a version: the current one, unless another is named
///
/// The path leads to the version itself and not through `current`, so it stays the same version. A version
/// that was found damaged comes with a warning.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The version, or a ref to it
    #[arg(default_value = "current")]
    version: Selector,
    /// What the version was named by before
    #[arg(long = "version", value_name = "VERSION", hide = true, conflicts_with = "version")]
    named: Option<Selector>,
}

#[derive(Serialize)]
struct Answer<'a> {
    agent: &'a AgentName,
    version: &'a VersionName,
    path: &'a std::path::Path,
    quarantine: &'a Option<Quarantine>,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let found = store.select(&args.agent, args.named.as_ref().unwrap_or(&args.version))?;
    let quarantine = match found.quarantine() {
        Ok(quarantine) => quarantine,
        Err(e) => {
            out::warning(human::with_causes(&e));
            None
        }
    };
    if let Some(quarantine) = &quarantine {
        let name = format_args!("{}/{}", found.agent(), found.version());
        out::warning(human::quarantined(name, quarantine));
    }
    if global.json {
        let (agent, version, path) = (found.agent(), found.version(), found.path());
        out::json(&Answer { agent, version, path, quarantine: &quarantine })?;
    } else {
        // Byte for byte: what is printed is what a shell will use.
        let mut line = found.path().as_os_str().as_bytes().to_vec();
        line.push(b'\n');
        std::io::stdout().lock().write_all(&line)?;
    }
    Ok(exit::OK)
}

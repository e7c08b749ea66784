//! `model-store sign`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use model_store::{AgentName, Fingerprint, ModelStore, Selector, StoreError, VersionName, exit};
use serde::Serialize;

use crate::args::{self, Mutation};
use crate::cli::Global;
use crate::commands::verify::Memory;
use crate::meter::Meter;
use crate::out;
use crate::scrub::{self, Verdict};

const EXAMPLES: &str = "\
Examples:
  model-store sign scout --key /root/release.pem
  model-store sign scout candidate --key /root/release.pem --reason 'reviewed'

Without this program:
  model_signing sign key \"$ROOT/scout/versions/v1\" --private_key release.pem --signature v1.json
  model_signing verify key \"$ROOT/scout/versions/v1\" --public_key release.pem.pub \\
    --signature \"$ROOT/scout/.signatures/v1.json\"";

/// Sign a published version
///
/// What is signed are all its files and its manifest. They are read and compared with the manifest before: a
/// damaged version gets no signature. The signature lies beside the version, in the format of OpenSSF Model
/// Signing, and replaces one that is there.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The version, or a ref to it
    #[arg(default_value = "current")]
    version: Selector,
    /// The private key's file, in PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Sign what the manifest says without reading the files
    #[arg(long)]
    no_verify: bool,
    #[command(flatten)]
    mutation: Mutation,
}

#[derive(Serialize)]
struct Answer<'a> {
    agent: &'a AgentName,
    version: &'a VersionName,
    key: Fingerprint,
    /// Whether this store takes that key's signatures.
    trusted: bool,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let key = args::signing_key(&args.key)?;
    let store = args.mutation.open(global)?;
    let version = store.select(&args.agent, &args.version)?.version().clone();
    if !args.no_verify
        && let Some(code) = verify(&store, &args.agent, &version)?
    {
        return Ok(code);
    }
    let signed = store.sign(&args.agent, &version, &key, &args.mutation.options());
    let key = args::or_stopped(signed, "nothing was signed")?;
    let policy = store.signature_policy()?;
    let trusted = policy.trusted().iter().any(|trusted| trusted.fingerprint() == key);
    if global.json {
        out::json(&Answer { agent: &args.agent, version: &version, key, trusted })?;
        return Ok(exit::OK);
    }
    writeln!(out::stdout(), "{} {}/{version}   key {key}", out::styled(out::OK, "signed"), args.agent)?;
    if !trusted {
        out::note("this store does not trust that key; `model-store policy trust KEY.pub` makes it");
    }
    Ok(exit::OK)
}

/// Reads the version; the exit code where it must not be signed.
fn verify(store: &ModelStore, agent: &AgentName, version: &VersionName) -> anyhow::Result<Option<u8>> {
    let size = scrub::size_of(store, &vec![(agent.clone(), version.clone())]);
    let meter = Meter::start("verifying", size)?;
    let reading = store.clone().with_progress(meter.progress());
    let begun = Instant::now();
    let report = match reading.verify(agent, version) {
        Ok(report) => report,
        Err(e @ StoreError::Interrupted) => return args::or_stopped(Err(e), "nothing was signed"),
        Err(e) => return Err(e.into()),
    };
    meter.clear();
    Memory { store, works: true }.note(&report, begun);
    if report.findings.iter().all(model_store::Finding::is_of_access) {
        return Ok(None);
    }
    let verdict = Verdict::of(report);
    verdict.print(store)?;
    out::plain_error("not signed: a version is signed as it was published");
    Ok(Some(exit::CORRUPT))
}

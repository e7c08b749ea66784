//! `model-store keygen`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use model_store::{Fingerprint, SigningKey, exit};
use serde::Serialize;

use crate::cli::Global;
use crate::out;

const EXAMPLES: &str = "\
Examples:
  model-store keygen /root/release.pem
  model-store policy trust /root/release.pem.pub
  model-store sign scout --key /root/release.pem

With OpenSSL instead:
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 -out release.pem
  openssl pkey -in release.pem -pubout -out release.pem.pub";

/// Make a key to sign versions with
///
/// An ECDSA key on the curve P-256, in PEM: the private half for whoever signs, readable by its owner only, and
/// the public half beside it, with `.pub` at its end, for every store that is to take its signatures. Nothing
/// is overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The file for the private half; keep it off the hosts that only read
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Serialize)]
struct Answer<'a> {
    fingerprint: Fingerprint,
    private_key: &'a Path,
    public_key: &'a Path,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let key = SigningKey::generate()?;
    let (pem, verifying) = (key.to_pem()?, key.verifying_key());
    let mut public = args.file.clone().into_os_string();
    public.push(".pub");
    let public = PathBuf::from(public);
    put(&public, 0o644, verifying.to_pem().as_bytes())?;
    // The private half comes last: it is what must not be left where something failed.
    if let Err(e) = put(&args.file, 0o600, pem.as_bytes()) {
        let _ = fs::remove_file(&public);
        return Err(e);
    }
    let fingerprint = verifying.fingerprint();
    if global.json {
        out::json(&Answer { fingerprint, private_key: &args.file, public_key: &public })?;
        return Ok(exit::OK);
    }
    let mut out = out::stdout();
    writeln!(out, "{} {fingerprint}", out::styled(out::OK, "made key"))?;
    writeln!(out, "  private  {}   (sign: model-store sign AGENT --key …)", args.file.display())?;
    writeln!(out, "  public   {}   (trust: model-store policy trust …)", public.display())?;
    Ok(exit::OK)
}

/// Writes a new file, whole or not at all.
fn put(path: &Path, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = match made {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            anyhow::bail!("{} is there already; name another file", path.display())
        }
        other => other.with_context(|| format!("could not make {}", path.display()))?,
    };
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.with_context(|| format!("could not write {}", path.display())).inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

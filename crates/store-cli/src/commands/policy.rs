//! `model-store policy`.

use std::io::Write;
use std::path::PathBuf;

use model_store::{Fingerprint, ModelStore, SignaturePolicy, Unsigned, VerifyingKey, exit};
use serde::Serialize;

use crate::args;
use crate::cli::Global;
use crate::{human, out};

const EXAMPLES: &str = "\
Examples:
  model-store policy show
  model-store policy trust /root/release.pem.pub
  model-store policy set refuse";

/// Say whose signatures this store takes, and what it does about versions without one
///
/// The policy is the file `.policy.json` at the top of the store, and goes where the store is copied to. It
/// holds where a pointer is moved (publish, activate, rollback, tag) and where a version is pulled; agents look
/// at it when they load. Whoever may write into the store's root may change it: it guards against what comes
/// from elsewhere, not against the store's own group.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show the policy
    #[command(
        after_help = "Example:\n  model-store policy show --json | jq -r '.trusted_keys[].fingerprint'"
    )]
    Show,
    /// Say what is done about versions that no trusted key has signed
    #[command(after_help = "Example:\n  model-store policy set refuse")]
    Set {
        /// What is done
        unsigned: Choice,
    },
    /// Take a key's signatures
    #[command(after_help = "Example:\n  model-store policy trust /root/release.pem.pub")]
    Trust {
        /// The public key's file, in PEM; the key is written into the policy, so the file may go
        #[arg(value_name = "FILE")]
        key: PathBuf,
    },
    /// Take a key's signatures no longer
    ///
    /// What it has signed counts as unsigned from then on; what is current stays so.
    #[command(after_help = "Example:\n  model-store policy distrust 3f786850e387550f")]
    Distrust {
        /// The key's fingerprint, or its first 8 digits or more
        #[arg(value_name = "KEY", value_parser = parse_prefix)]
        key: String,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Choice {
    /// Nothing: signatures are looked at when somebody asks
    Allow,
    /// They are taken, with a warning
    Warn,
    /// No pointer is moved to them, and they are not pulled
    Refuse,
}

#[derive(Serialize)]
struct Answer<'a> {
    unsigned: Unsigned,
    trusted_keys: Vec<Key<'a>>,
}

#[derive(Serialize)]
struct Key<'a> {
    fingerprint: Fingerprint,
    /// How the policy has it: as PEM, or as the path of a file with it.
    entry: &'a str,
}

fn parse_prefix(text: &str) -> Result<String, String> {
    let is_hex = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if is_hex && (8..=64).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err("write 8 to 64 lower-case hexadecimal digits of a key that `model-store policy show` lists"
        .to_owned())
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    match &args.command {
        Command::Show => show(global, &store.signature_policy()?)?,
        Command::Set { unsigned } => {
            let unsigned = match unsigned {
                Choice::Allow => Unsigned::Allow,
                Choice::Warn => Unsigned::Warn,
                Choice::Refuse => Unsigned::Refuse,
            };
            // One that cannot be read is what this puts right, with nobody trusted.
            let mut policy = store.signature_policy().unwrap_or_else(|e| {
                out::warning(format_args!("no key is trusted any more: {}", human::with_causes(&e)));
                SignaturePolicy::default()
            });
            policy.unsigned = unsigned;
            change(global, &store, &policy)?;
        }
        Command::Trust { key } => {
            let mut policy = store.signature_policy()?;
            policy.trust(&VerifyingKey::open(key)?);
            change(global, &store, &policy)?;
        }
        Command::Distrust { key } => {
            let mut policy = store.signature_policy()?;
            let fingerprints = policy.trusted().iter().map(VerifyingKey::fingerprint);
            let mut meant = fingerprints.filter(|it| it.to_string().starts_with(key.as_str()));
            match (meant.next(), meant.next()) {
                (Some(fingerprint), None) => drop(policy.distrust(fingerprint)),
                (None, _) => {
                    out::plain_error(&format!("no trusted key begins with {key}: `model-store policy show`"));
                    return Ok(exit::NOT_FOUND);
                }
                (Some(_), Some(_)) => {
                    out::plain_error(&format!("several trusted keys begin with {key}; write more of it"));
                    return Ok(exit::USAGE);
                }
            }
            change(global, &store, &policy)?;
        }
    }
    Ok(exit::OK)
}

fn change(global: &Global, store: &ModelStore, policy: &SignaturePolicy) -> anyhow::Result<()> {
    store.set_signature_policy(policy)?;
    show(global, policy)?;
    if policy.unsigned == Unsigned::Refuse && policy.trusted().is_empty() {
        out::warning("no key is trusted, so nothing can become current: `model-store policy trust KEY.pub`");
    }
    if policy.unsigned == Unsigned::Allow {
        return Ok(());
    }
    // What is in use already stays, and is said.
    for agent in args::every_agent(store)? {
        let Ok(Some(current)) = store.get_current(&agent) else { continue };
        let state = current.signature_state(policy.trusted())?;
        match policy.admit(&agent, current.version(), &state) {
            Ok(None) => {}
            Ok(Some(caution)) => out::warning(human::harmless(&caution)),
            Err(e) => out::warning(human::harmless(&format!("{e}; it stays current"))),
        }
    }
    Ok(())
}

fn show(global: &Global, policy: &SignaturePolicy) -> anyhow::Result<()> {
    if global.json {
        let keys = policy.entries().map(|(key, entry)| Key { fingerprint: key.fingerprint(), entry });
        return out::json(&Answer { unsigned: policy.unsigned, trusted_keys: keys.collect() });
    }
    let mut out = out::stdout();
    let unsigned = match policy.unsigned {
        Unsigned::Allow => "allow    (signatures are looked at when somebody asks)",
        Unsigned::Warn => "warn     (versions that no trusted key has signed are taken, with a warning)",
        Unsigned::Refuse => "refuse   (no pointer is moved to versions that no trusted key has signed)",
    };
    writeln!(out, "unsigned  {unsigned}")?;
    if policy.trusted().is_empty() {
        writeln!(out, "trusted   no key")?;
    }
    for (key, entry) in policy.entries() {
        let from = if entry.contains("-----BEGIN") { String::new() } else { format!("   ({entry})") };
        writeln!(out, "trusted   {}{}", key.fingerprint(), human::harmless(&from))?;
    }
    Ok(())
}

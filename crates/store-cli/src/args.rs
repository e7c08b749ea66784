//! Arguments that several commands have, and how people write durations and sizes.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use model_store::{AgentEntry, AgentName, ModelStore, MoveOptions, SigningKey, StoreError};

use crate::cli::Global;
use crate::{meter, out};

/// What every command has that waits for an agent's lock.
#[derive(Debug, clap::Args)]
pub(crate) struct Patience {
    /// How long to wait for another writer of the agent
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

/// What every command has that writes into the history.
#[derive(Debug, clap::Args)]
pub(crate) struct Mutation {
    /// For the history: why
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    patience: Patience,
}

impl Patience {
    /// As long as the caller said.
    pub(crate) fn wait(&self) -> Duration {
        Duration::from_secs(self.wait)
    }
}

impl Mutation {
    /// Opens the store for a change that takes a moment, once it has the lock.
    pub(crate) fn open(&self, global: &Global) -> anyhow::Result<ModelStore> {
        Ok(global.open()?.with_lock_patience(self.wait()).with_progress(meter::stoppable()?))
    }

    /// As long as the caller said.
    pub(crate) fn wait(&self) -> Duration {
        self.patience.wait()
    }

    /// What the history is told.
    pub(crate) fn options(&self) -> MoveOptions {
        MoveOptions { actor: None, reason: self.reason.clone() }
    }
}

/// Reads the key to sign with; one that its group can read is used, with a warning.
pub(crate) fn signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    let key = SigningKey::open(path)?;
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o040 != 0 {
        out::warning(format_args!(
            "the group of {} can read the private key; `chmod 600` it",
            path.display()
        ));
    }
    Ok(key)
}

/// Where work was stopped on request, says what has become of it.
pub(crate) fn or_stopped<T>(result: Result<T, StoreError>, what: &'static str) -> anyhow::Result<T> {
    result.map_err(|error| match error {
        StoreError::Interrupted => anyhow::Error::new(error).context(format!("stopped; {what}")),
        other => other.into(),
    })
}

/// Every agent, under its own name: what an alias leads to is among them.
pub(crate) fn every_agent(store: &ModelStore) -> Result<Vec<AgentName>, StoreError> {
    let own_name = |entry| match entry {
        AgentEntry::Agent(agent) => Some(agent),
        AgentEntry::Alias { .. } => None,
    };
    Ok(store.agents()?.into_iter().filter_map(own_name).collect())
}

/// `30d`, `15min`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write it like 90s, 15min, 12h or 30d"))
}

/// `200MB`, `1.5GiB`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let size: ByteSize = text.parse().map_err(|_| "write it like 500MB, 1.5GiB or 200GB".to_owned())?;
    Ok(size.as_u64())
}

/// `200MB/s`, or `200MB`.
pub(crate) fn bytes_per_second(text: &str) -> Result<u64, String> {
    let size = text.strip_suffix("/s").unwrap_or(text);
    match bytes(size) {
        Ok(0) => Err("nothing would ever be read".to_owned()),
        Ok(rate) => Ok(rate),
        Err(_) => Err("write it like 200MB/s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let day = 86_400;
        let rows = [
            ("90s", Some(90)),
            ("15min", Some(900)),
            ("12h", Some(43_200)),
            ("30d", Some(30 * day)),
            ("1h 30m", Some(5_400)),
            ("30", None),
            ("", None),
            ("-1h", None),
            ("99999999999999999999d", None),
            ("soon", None),
        ];
        for (text, seconds) in rows {
            assert_eq!(duration(text).ok(), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    #[test]
    fn sizes_and_rates() {
        let rows = [
            ("200MB", Some(200_000_000)),
            ("1.5GiB", Some(1_610_612_736)),
            ("200 GB", Some(200_000_000_000)),
            ("1024", Some(1024)),
            ("0", Some(0)),
            ("-5MB", None),
            ("5 parsecs", None),
            ("", None),
            ("MB", None),
            ("NaN", None),
        ];
        for (text, expected) in rows {
            assert_eq!(bytes(text).ok(), expected, "{text:?}");
        }
        for (text, expected) in
            [("200MB/s", Some(200_000_000)), ("1GiB", Some(1 << 30)), ("0/s", None), ("200MB/min", None)]
        {
            assert_eq!(bytes_per_second(text).ok(), expected, "{text:?}");
        }
    }
}

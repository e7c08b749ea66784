//! Whether a version still is what was published, asked before it is used and remembered afterwards.
//!
//! What a verification found lies in the store, in `.verified/<version>.json`, where `model-store verify` puts it too: one
//! process pays for all. Where that cannot be written, this process remembers for itself. A memory counts as long as every
//! file of the version has its size and was written before it; looking at that costs one `stat` a file.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use model_store::{Digest, Finding, Generation, with_causes};

use crate::LoadError;
use crate::resolve::Held;

/// Findings that an error spells out; more are counted.
const FINDINGS_NAMED: usize = 3;
/// Notes are stamped to the millisecond; in nanoseconds.
const ROUNDING: i128 = 1_000_000;

/// When a version's bytes are compared with its manifest. What lies outside the store has no manifest, and what the old
/// Python helper published has a checksum that a copy may change: it is compared, and a difference is a warning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Verify {
    /// Before the first use; then it is remembered until a file changes.
    #[default]
    Once,
    /// Before each loading.
    Always,
    /// Never.
    Never,
}

impl Verify {
    /// What a value of `MODEL_STORE_VERIFY` means; anything but `always` and `never` is `once`.
    #[must_use]
    pub fn from_value(value: &str) -> Self {
        value.trim().to_ascii_lowercase().parse().unwrap_or_default()
    }
}

impl FromStr for Verify {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        match text {
            "once" => Ok(Self::Once),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(LoadError::Name {
                name: text.to_owned(),
                kind: "time to verify",
                reason: "write `once`, `always` or `never`",
            }),
        }
    }
}

/// When a version was found sound, in nanoseconds since 1970. The lock is held while it is being verified.
type Memory = Arc<Mutex<Option<i128>>>;

/// What this process has verified, by the version's directory and checksum.
static MEMORIES: LazyLock<Mutex<HashMap<(PathBuf, Digest), Memory>>> = LazyLock::new(Mutex::default);

/// Makes sure that a version is what was published, as often as `verify` says.
pub(crate) fn check(held: &Held, verify: Verify) -> Result<(), LoadError> {
    if verify == Verify::Never {
        return Ok(());
    }
    let current = &held.current;
    let (agent, version) = (current.agent(), current.version());
    if let Generation::Newer(format) = current.manifest().generation() {
        tracing::warn!(%agent, %version, format, "the version is of a newer format and cannot be verified");
        return Ok(());
    }
    let key = (current.path().to_owned(), current.checksum());
    let memory = MEMORIES.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
    // Whoever comes while it is being verified waits for that.
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    if verify == Verify::Once && is_remembered(held, *memory) {
        return Ok(());
    }
    let (started, begun) = (Instant::now(), now());
    let report = held.store.verify(agent, version)?;
    let seconds = started.elapsed().as_secs_f64();
    let damage: Vec<&Finding> = report.findings.iter().filter(|finding| is_damage(finding)).collect();
    if let Err(error) = held.store.note_check(&report, seconds) {
        tracing::debug!(%agent, %version, cause = %with_causes(&error), "the verification is remembered by this process only");
    }
    if damage.is_empty() {
        // A file that is written while others are read is newer than this.
        *memory = Some(begun);
        tracing::debug!(%agent, %version, bytes = report.bytes, seconds, "the version is what was published");
        return Ok(());
    }
    *memory = None;
    let what = spell_out(&damage);
    if report.legacy {
        tracing::warn!(%agent, %version, what, "a version of the old kind is not what was published, or a copy of that");
        *memory = Some(begun);
        return Ok(());
    }
    Err(LoadError::NotAsPublished { agent: agent.clone(), version: version.clone(), what })
}

/// Whether a verification is known that still counts: this process's own, or the one that the store remembers.
fn is_remembered(held: &Held, memory: Option<i128>) -> bool {
    let Some(written) = last_written(held) else { return false };
    memory.is_some_and(|verified| written <= verified)
        || noted(held).is_some_and(|verified| written <= verified)
}

/// When the last verification that the store remembers began, if it found the version sound.
fn noted(held: &Held) -> Option<i128> {
    let current = &held.current;
    let check = held.store.last_check(current.agent(), current.version()).ok()??;
    // One from before the version was published is of another one of that name.
    let is_of_it = current.manifest().created_at.is_none_or(|published| published <= check.at);
    (check.ok && is_of_it).then(|| check.at.as_nanosecond() - seconds_to_nanos(check.seconds) - ROUNDING)
}

/// When any file of the version was written last; `None` where one is missing or has another size.
fn last_written(held: &Held) -> Option<i128> {
    let files = &held.current.manifest().files;
    files.iter().try_fold(0, |last, file| {
        let found = fs::metadata(held.current.path().join(file.path.as_path())).ok()?;
        let written = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        (found.is_file() && found.len() == file.size).then_some(written.max(last))
    })
}

#[expect(clippy::cast_possible_truncation, reason = "a float past the largest integer becomes that")]
fn seconds_to_nanos(seconds: f64) -> i128 {
    (seconds.max(0.0) * 1e9) as i128
}

fn now() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}

/// Whether a finding says that other bytes, names or links are there than were published. A file that nobody published
/// counts as well: a loader would read a `modules.json`. Modes, groups, and what only this process may not read do not.
fn is_damage(finding: &Finding) -> bool {
    !matches!(
        finding,
        Finding::WrongMode { .. } | Finding::WrongGroup { .. } | Finding::Unreadable { denied: true, .. }
    )
}

/// The first findings, which name files; the checksum of it all, which differs with any of them, comes last.
fn spell_out(findings: &[&Finding]) -> String {
    let named: Vec<String> = findings.iter().take(FINDINGS_NAMED).map(ToString::to_string).collect();
    match findings.len() - named.len() {
        0 => named.join("; "),
        more => format!("{}; and {more} more", named.join("; ")),
    }
}

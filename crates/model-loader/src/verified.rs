//! Whether a version still is what was published, asked before it is used and remembered afterwards.
//!
//! What a verification found lies in the store, in `.verified/<version>.json`, where `model-store verify` puts it too: one
//! process pays for all. Where that cannot be written, this process remembers for itself. A memory counts as long as the
//! version has the files and links that were published and no others, each file has its size, and files and directories were
//! written before it; looking at that costs one `stat` a file.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use model_store::{Digest, Finding, Generation, MANIFEST_FILE, Manifest, Report, with_causes};

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
    let damage = match judge(&report) {
        Verdict::Unknown { path, why } => {
            // Others may be able to read it, so nothing is noted.
            let source = std::io::Error::other(why);
            return Err(LoadError::Read { path: current.path().join(path), source });
        }
        Verdict::Known(damage) => damage,
    };
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

/// What a report says of a version.
enum Verdict<'a> {
    /// What of it is damage; nothing is a sound version.
    Known(Vec<&'a Finding>),
    /// This process may not read a file, so it cannot tell.
    Unknown { path: &'a Path, why: &'a str },
}

/// Damage that was seen counts whatever else could not be read; the checksum of it all says nothing then.
fn judge(report: &Report) -> Verdict<'_> {
    let denied = report.findings.iter().find_map(|finding| match finding {
        Finding::Unreadable { path, why, denied: true } => Some((path.as_path(), why.as_str())),
        _ => None,
    });
    let counts = |finding: &&Finding| {
        is_damage(finding) && (denied.is_none() || !matches!(finding, Finding::Checksum { .. }))
    };
    let damage: Vec<&Finding> = report.findings.iter().filter(counts).collect();
    match denied {
        Some((path, why)) if damage.is_empty() => Verdict::Unknown { path, why },
        _ => Verdict::Known(damage),
    }
}

/// Whether a version needs no reading: nothing is verified, or a verification is known that still counts. While it is
/// being verified that is not known yet.
pub(crate) fn is_known(held: &Held, verify: Verify) -> bool {
    let key = (held.current.path().to_owned(), held.current.checksum());
    let memory = || MEMORIES.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    match verify {
        Verify::Never => true,
        Verify::Always => false,
        Verify::Once => match memory() {
            None => is_remembered(held, None),
            Some(memory) => memory.try_lock().is_ok_and(|memory| is_remembered(held, *memory)),
        },
    }
}

/// Whether a verification is known that still counts: this process's own, or the one that the store remembers.
fn is_remembered(held: &Held, memory: Option<i128>) -> bool {
    let Some(written) = last_written(held) else { return false };
    memory.is_some_and(|verified| written <= verified)
        || noted(held).is_some_and(|verified| written <= verified)
}

/// When the last verification that the store remembers began, if it found names, bytes and links sound.
fn noted(held: &Held) -> Option<i128> {
    let current = &held.current;
    let check = held.store.last_check(current.agent(), current.version()).ok()??;
    // One from before the version was published is of another one of that name.
    let is_of_it = current.manifest().created_at.is_none_or(|published| published <= check.at);
    ((check.ok || check.only_access) && is_of_it)
        .then(|| check.at.as_nanosecond() - seconds_to_nanos(check.seconds) - ROUNDING)
}

/// When any file or directory of the version was written last; `None` where a file is missing or has another size, and where
/// something is there that nobody published.
fn last_written(held: &Held) -> Option<i128> {
    let (root, manifest) = (held.current.path(), held.current.manifest());
    let mut seen = Seen { count: 0, last: 0 };
    seen.look_through(root, Path::new(""), manifest)?;
    let listed = manifest.files.len() + manifest.links.len();
    (seen.count == listed || is_without_list(manifest)).then_some(seen.last)
}

/// Whether a manifest says nothing of files, as the old Python helper's do; then only times tell of a change.
fn is_without_list(manifest: &Manifest) -> bool {
    manifest.generation() == Generation::Legacy
}

/// What a walk through a version has seen so far: files and links that were published, and the latest writing.
struct Seen {
    count: usize,
    last: i128,
}

impl Seen {
    fn look_through(&mut self, root: &Path, below: &Path, manifest: &Manifest) -> Option<()> {
        let folder = root.join(below);
        self.written(&fs::symlink_metadata(&folder).ok()?);
        for entry in fs::read_dir(&folder).ok()? {
            let entry = entry.ok()?;
            let (path, found) = (below.join(entry.file_name()), entry.metadata().ok()?);
            if found.is_dir() {
                self.look_through(root, &path, manifest)?;
                continue;
            }
            if path == Path::new(MANIFEST_FILE) {
                continue;
            }
            let is_published = is_without_list(manifest) || is_listed(manifest, &path, &found, &entry.path());
            if !is_published {
                return None;
            }
            self.count += 1;
            // A link's own time says nothing: the directory has that of its making.
            if found.is_file() {
                self.written(&found);
            }
        }
        Some(())
    }

    fn written(&mut self, found: &Metadata) {
        let written = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        self.last = self.last.max(written);
    }
}

/// Whether the manifest has this name, for a file of this size or a link to the same place.
fn is_listed(manifest: &Manifest, path: &Path, found: &Metadata, full: &Path) -> bool {
    if found.is_symlink() {
        let is_it = |target: &str| fs::read_link(full).is_ok_and(|found| found == Path::new(target));
        return manifest.links.iter().any(|link| link.path.as_path() == path && is_it(&link.target));
    }
    // The manifest keeps its files in the order of their paths' bytes.
    let listed = path.to_str().and_then(|path| path.parse().ok()).and_then(|path| manifest.file(&path));
    found.is_file() && listed.is_some_and(|listed| listed.size == found.len())
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
    !finding.is_of_access() && !matches!(finding, Finding::Unreadable { denied: true, .. })
}

/// The first findings, which name files; the checksum of it all, which differs with any of them, comes last.
fn spell_out(findings: &[&Finding]) -> String {
    let named: Vec<String> = findings.iter().take(FINDINGS_NAMED).map(ToString::to_string).collect();
    match findings.len() - named.len() {
        0 => named.join("; "),
        more => format!("{}; and {more} more", named.join("; ")),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use model_store::{PayloadPath, checksum_of_listing};

    use super::*;

    /// Root may read everything, so what a process may not read is written down here.
    #[test]
    fn what_may_not_be_read_is_unknown_and_other_damage_counts() {
        let path = |name: &str| PayloadPath::try_from(name.to_owned()).unwrap();
        let checksum = checksum_of_listing(&[]);
        let check = |row: &str, findings: Vec<Finding>, expected: Option<usize>| {
            let report = Report {
                agent: "analyst".parse().unwrap(),
                version: "v1".parse().unwrap(),
                legacy: false,
                checksum,
                expected_checksum: Some(checksum),
                files_checked: 1,
                bytes: 1,
                findings,
            };
            let found = match judge(&report) {
                Verdict::Known(damage) => Some(damage.len()),
                Verdict::Unknown { path, why } => {
                    assert_eq!((path, why), (Path::new("a"), "why"), "{row}");
                    None
                }
            };
            assert_eq!(found, expected, "{row}");
        };
        let unreadable = |denied| Finding::Unreadable { path: path("a"), why: "why".to_owned(), denied };
        let differs = || Finding::Checksum { expected: checksum, found: checksum };
        let mode = || Finding::WrongMode { path: "a".to_owned(), mode: "666".to_owned() };
        let missing = || Finding::Missing { path: path("b") };
        check("sound", Vec::new(), Some(0));
        check("a mode", vec![mode()], Some(0));
        check("damage", vec![missing(), mode(), differs()], Some(2));
        check("a broken disk", vec![unreadable(false), differs()], Some(2));
        check("denied", vec![unreadable(true), mode(), differs()], None);
        check("denied beside damage", vec![unreadable(true), missing(), differs()], Some(1));
    }
}

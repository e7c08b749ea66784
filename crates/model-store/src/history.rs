//! `history.jsonl`: who moved which pointer from where to where, when, and why. Append-only.
//!
//! A record is written before its pointer moves. Should the writer die in between, the next one finds that
//! the last record and the pointer disagree and adds a record that says where the pointer really is, so read
//! in order the last `to` of a pointer is true.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::holder::{host_name, now, user_name};
use crate::layout::{AgentDir, CURRENT_LINK, HISTORY_FILE, Place, REFS_DIR, VERSIONS_DIR};
use crate::names::{AgentName, NameError, RefName, VersionName};
use crate::store::ModelStore;

/// How much of the file's end is looked at first for its last record; then four times as much, and so on.
const TAIL_BYTES: u64 = 64 * 1024;
/// A record is a few hundred bytes and a reason; what is longer than this is nobody's.
const MAX_LINE_BYTES: u64 = 16 * 1024 * 1024;

/// Why a pointer moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Action {
    /// A version was published, and made current unless the pointer is the version itself.
    Publish,
    /// A published version was made current.
    Activate,
    /// What was current before became current again, or an older version that was named.
    Rollback,
    /// A ref was pointed at a version.
    Tag,
    /// A ref was taken away.
    Untag,
    /// A version was retired.
    Retire,
    /// A version was found damaged beyond repair, and readers are warned of it.
    Quarantine,
    /// A quarantined version was found sound again.
    Release,
    /// Damaged files of a version were replaced.
    Repair,
    /// A version was signed.
    Sign,
    /// The pointer was not where the last record says: its writer died before the move, or somebody moved it
    /// by hand.
    Reconcile,
    /// Something that a newer program did.
    #[serde(other)]
    Other,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Publish => "publish",
            Self::Activate => "activate",
            Self::Rollback => "rollback",
            Self::Tag => "tag",
            Self::Untag => "untag",
            Self::Retire => "retire",
            Self::Quarantine => "quarantine",
            Self::Release => "release",
            Self::Repair => "repair",
            Self::Sign => "sign",
            Self::Reconcile => "reconcile",
            Self::Other => "other",
        })
    }
}

/// What a record is about, by its path within the agent: `current`, `refs/<name>`, or `versions/<name>` for
/// what happened to a version itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PointerName {
    /// The link that readers follow.
    Current,
    /// A ref.
    Ref(RefName),
    /// A version: it came into being, went, or was damaged or repaired.
    Version(VersionName),
}

impl FromStr for PointerName {
    type Err = NameError;

    fn from_str(value: &str) -> Result<Self, NameError> {
        match value.split_once('/') {
            Some((REFS_DIR, name)) => name.parse().map(Self::Ref),
            Some((VERSIONS_DIR, name)) => name.parse().map(Self::Version),
            _ if value == CURRENT_LINK => Ok(Self::Current),
            _ => Err(NameError::pointer(value)),
        }
    }
}

impl TryFrom<String> for PointerName {
    type Error = NameError;

    fn try_from(value: String) -> Result<Self, NameError> {
        value.parse()
    }
}

impl From<PointerName> for String {
    fn from(pointer: PointerName) -> Self {
        pointer.to_string()
    }
}

impl fmt::Display for PointerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.pad(CURRENT_LINK),
            Self::Ref(name) => f.pad(&format!("{REFS_DIR}/{name}")),
            Self::Version(name) => f.pad(&format!("{VERSIONS_DIR}/{name}")),
        }
    }
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub action: Action,
    /// Which pointer.
    pub pointer: PointerName,
    /// Where it was; `None` where there was none.
    pub from: Option<VersionName>,
    /// Where it is now; `None` where there is none any more.
    pub to: Option<VersionName>,
    /// The checksum of the version it is at now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Digest>,
    /// The bytes on disk that the store grew (`publish`) or shrank (`retire`) by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Who: `user@host` unless the caller said otherwise.
    pub by: String,
    /// The caller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Who moves a pointer, and why, for the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoveOptions {
    /// Who; `user@host` unless given.
    pub actor: Option<String>,
    /// Why.
    pub reason: Option<String>,
}

impl MoveOptions {
    /// The record of a move that is about to be made, now.
    pub(crate) fn record(
        &self,
        action: Action,
        pointer: PointerName,
        from: Option<VersionName>,
        to: Option<VersionName>,
    ) -> Record {
        Record {
            at: now(),
            action,
            pointer,
            from,
            to,
            checksum: None,
            bytes: None,
            by: self.actor.clone().unwrap_or_else(default_actor),
            reason: self.reason.clone(),
        }
    }
}

/// What a repair has to know of a record, whatever a newer program may have done and why.
#[derive(Deserialize)]
struct Move {
    pointer: String,
    to: Option<VersionName>,
}

impl ModelStore {
    /// The history of an agent, oldest first. Lines that are no record of this program's are left out.
    pub fn history(&self, agent: &AgentName) -> Result<Vec<Record>, StoreError> {
        match AgentDir::open(self.root(), agent)? {
            Some(agent) => read(&agent),
            None => Err(self.agent_not_found(agent)),
        }
    }
}

/// Every record, oldest first.
pub(crate) fn read(agent: &AgentDir) -> Result<Vec<Record>, StoreError> {
    let failed = |e| StoreError::io("read", &agent.path().join(HISTORY_FILE), e);
    let file = match dir::open_file(agent.handle(), HISTORY_FILE) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut reader = BufReader::new(file);
    let (mut records, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let count =
            io::Read::take(&mut reader, MAX_LINE_BYTES).read_until(b'\n', &mut line).map_err(failed)?;
        if count == 0 {
            return Ok(records);
        }
        records.extend(serde_json::from_slice::<Record>(&line).ok());
    }
}

/// The versions that were current, oldest first, as readers saw them: a move that was never carried out and
/// its reconciliation cancel each other out.
pub(crate) fn line_of_current(records: &[Record]) -> Vec<Option<VersionName>> {
    let mut line: Vec<Option<VersionName>> = Vec::new();
    for record in records.iter().filter(|record| record.pointer == PointerName::Current) {
        if line.is_empty() {
            line.push(record.from.clone());
        }
        let undoes_the_last = record.action == Action::Reconcile
            && matches!(line.as_slice(), [.., before, last] if *last == record.from && *before == record.to);
        if undoes_the_last {
            line.pop();
        } else if line.last() != Some(&record.to) {
            line.push(record.to.clone());
        }
    }
    line
}

/// Who this process acts for.
pub(crate) fn default_actor() -> String {
    format!("{}@{}", user_name(), host_name())
}

/// Appends a record and syncs it.
pub(crate) fn append(agent: &AgentDir, record: &Record) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("append to", &agent.path().join(HISTORY_FILE), e);
    let mut line = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
    line.push(b'\n');
    let is_new = !dir::exists(agent.handle(), HISTORY_FILE).map_err(failed)?;
    let file = durable::open_control(agent.handle(), HISTORY_FILE).map_err(failed)?;
    durable::append(&file, &line).map_err(failed)?;
    // The record is durable by its own sync only where the file's name is.
    if is_new { durable::sync(agent.handle()).map_err(failed) } else { Ok(()) }
}

/// Cuts off a line that its writer did not end, and closes intents that were not carried out.
///
/// Every mutation begins with this under the agent's lock, so only the last record can be such an intent, or
/// several where versions were being retired; `current` is looked after further back, because people move it
/// by hand.
pub(crate) fn repair(agent: &AgentDir) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("repair", &agent.path().join(HISTORY_FILE), e);
    if !dir::exists(agent.handle(), HISTORY_FILE).map_err(failed)? {
        return Ok(());
    }
    let file = durable::open_control(agent.handle(), HISTORY_FILE).map_err(failed)?;
    let Tail { ended_bytes, moves } = tail(&file).map_err(failed)?;
    if ended_bytes < file.metadata().map_err(failed)?.len() {
        durable::truncate(&file, ended_bytes).map_err(failed)?;
    }
    for (pointer, to, is_at) in contradicted(agent, moves) {
        let options = MoveOptions {
            actor: None,
            reason: Some("the pointer was not where the last record says".to_owned()),
        };
        append(agent, &options.record(Action::Reconcile, pointer, to, is_at))?;
    }
    Ok(())
}

/// What [`repair`] would put right, in words.
pub(crate) fn contradictions(agent: &AgentDir) -> Result<Vec<String>, StoreError> {
    let failed = |e| StoreError::io("read", &agent.path().join(HISTORY_FILE), e);
    let file = match dir::open_file(agent.handle(), HISTORY_FILE) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let Tail { ended_bytes, moves } = tail(&file).map_err(failed)?;
    let mut found = Vec::new();
    if ended_bytes < file.metadata().map_err(failed)?.len() {
        found.push("ends in a line that its writer did not finish".to_owned());
    }
    let name = |at: Option<VersionName>| at.map_or_else(|| "nothing".to_owned(), String::from);
    for (pointer, to, is_at) in contradicted(agent, moves) {
        found.push(format!("says that {pointer} is at {}, and it is at {}", name(to), name(is_at)));
    }
    Ok(found)
}

/// Where a record says that a pointer is, and where it is.
type Contradiction = (PointerName, Option<VersionName>, Option<VersionName>);

fn contradicted(agent: &AgentDir, moves: Vec<Move>) -> Vec<Contradiction> {
    let mut found = Vec::new();
    for Move { pointer, to } in moves {
        // What a newer program calls a pointer is its own affair.
        let Ok(pointer) = pointer.parse::<PointerName>() else { continue };
        match where_it_is(agent, &pointer) {
            Ok(is_at) if is_at != to => found.push((pointer, to, is_at)),
            // One that leads out of the agent, or whose place cannot be looked at, is nowhere that a history
            // could name: it keeps nobody from moving it.
            Ok(_) | Err(_) => {}
        }
    }
    found
}

fn where_it_is(agent: &AgentDir, pointer: &PointerName) -> Result<Option<VersionName>, StoreError> {
    let pointer = match pointer {
        PointerName::Current => agent.current()?,
        PointerName::Ref(name) => agent.read_ref(name)?,
        PointerName::Version(version) => {
            let is_there = agent.open_version(version, Place::Versions)?.is_some();
            return Ok(is_there.then(|| version.clone()));
        }
    };
    Ok(pointer.map(|pointer| pointer.version))
}

/// The end of a history.
struct Tail {
    /// Where the last whole line ends; what comes behind is torn.
    ended_bytes: u64,
    /// The records that the disk may contradict, the oldest first: those at the end that are about versions,
    /// the one before them, and the last about `current`.
    moves: Vec<Move>,
}

fn tail(file: &File) -> io::Result<Tail> {
    let mut length = file.metadata()?.len();
    let mut tail_bytes = TAIL_BYTES;
    loop {
        let begin = length.saturating_sub(tail_bytes);
        let mut tail = vec![0; usize::try_from(length - begin).map_err(io::Error::other)?];
        file.read_exact_at(&mut tail, begin)?;
        // Where the file's beginning is out of sight, so may be that of the first line.
        let whole = match tail.iter().position(|&b| b == b'\n') {
            _ if begin == 0 => 0,
            Some(at) => at + 1,
            None => tail.len(),
        };
        let ended = tail.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        if ended < tail.len() && (ended > 0 || begin == 0) {
            length = begin + ended as u64;
        }
        let lines = tail[whole.min(ended)..ended].split(|&b| b == b'\n').rev();
        let mut moves = lines.filter_map(|line| serde_json::from_slice::<Move>(line).ok());
        let mut unsettled: Vec<Move> = Vec::new();
        let about_versions = |pointer: &str| pointer.starts_with(VERSIONS_DIR);
        for last in moves.by_ref() {
            let go_on = about_versions(&last.pointer);
            unsettled.push(last);
            if !go_on {
                break;
            }
        }
        let has_current = |moves: &[Move]| moves.iter().any(|one| one.pointer == CURRENT_LINK);
        if !has_current(&unsettled) {
            unsettled.extend(moves.find(|one| one.pointer == CURRENT_LINK));
        }
        if has_current(&unsettled) || begin == 0 {
            // Only the last word about each pointer counts.
            let mut seen = HashSet::new();
            unsettled.retain(|one| seen.insert(one.pointer.clone()));
            unsettled.reverse();
            return Ok(Tail { ended_bytes: length, moves: unsettled });
        }
        tail_bytes = tail_bytes.saturating_mul(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_current_is_what_readers_saw() {
        // (action, from, to) of `current`; what readers saw.
        type Row<'a> = (&'a [(Action, &'a str, &'a str)], &'a [&'a str]);
        let rows: [Row<'_>; 5] = [
            (&[], &[]),
            (&[(Action::Publish, "", "v1"), (Action::Publish, "v1", "v2")], &["", "v1", "v2"]),
            (
                &[
                    (Action::Publish, "", "v1"),
                    (Action::Publish, "v1", "v2"),
                    (Action::Reconcile, "v2", "v1"),
                ],
                &["", "v1"],
            ),
            (
                &[
                    (Action::Publish, "v0", "v1"),
                    (Action::Reconcile, "v1", "v7"),
                    (Action::Rollback, "v7", "v1"),
                ],
                &["v0", "v1", "v7", "v1"],
            ),
            (&[(Action::Activate, "v1", "v1")], &["v1"]),
        ];
        let name = |name: &str| name.parse().ok();
        for (moves, expected) in rows {
            let records: Vec<_> = moves
                .iter()
                .map(|(action, from, to)| {
                    MoveOptions::default().record(*action, PointerName::Current, name(from), name(to))
                })
                .collect();
            let expected: Vec<_> = expected.iter().map(|version| name(version)).collect();
            assert_eq!(line_of_current(&records), expected, "{moves:?}");
        }
    }
}

//! `history.jsonl`: who moved which pointer from where to where, when, and why. Append-only.
//!
//! A record is written before its pointer moves. Should the writer die in between, the next one finds that
//! the last record and the pointer disagree and adds a record that says where the pointer really is, so read
//! in order the last `to` is true.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::error::StoreError;
use crate::holder::{host_name, now, user_name};
use crate::layout::{AgentDir, CURRENT_LINK, HISTORY_FILE};
use crate::names::VersionName;

/// How much of the file's end is looked at first for its last record; then four times as much, and so on.
const TAIL_BYTES: u64 = 64 * 1024;

/// Why a pointer moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Action {
    /// A version was published and made current.
    Publish,
    /// The pointer was not where the last record says: its writer died before the move, or somebody moved it
    /// by hand.
    Reconcile,
}

/// One line of the history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub action: Action,
    /// Which pointer: `current`, or the name of a ref.
    pub pointer: String,
    /// Where it was; `None` where there was none.
    pub from: Option<VersionName>,
    /// Where it is now.
    pub to: Option<VersionName>,
    /// Who: `user@host` unless the caller said otherwise.
    pub by: String,
    /// The caller's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a repair has to know of a record, whatever a newer program may have done and why.
#[derive(Deserialize)]
struct Move {
    pointer: String,
    to: Option<VersionName>,
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
    let file = durable::open_control(agent.handle(), HISTORY_FILE).map_err(failed)?;
    durable::append(&file, &line).map_err(failed)
}

/// Cuts off a line that its writer did not end, and closes an intent that was not carried out.
pub(crate) fn repair(agent: &AgentDir) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("repair", &agent.path().join(HISTORY_FILE), e);
    if !crate::dir::exists(agent.handle(), HISTORY_FILE).map_err(failed)? {
        return Ok(());
    }
    let file = durable::open_control(agent.handle(), HISTORY_FILE).map_err(failed)?;
    let Some(last) = last_move(&file).map_err(failed)? else {
        return Ok(());
    };
    let current = agent.current()?.map(|pointer| pointer.version);
    if last.to == current {
        return Ok(());
    }
    append(
        agent,
        &Record {
            at: now(),
            action: Action::Reconcile,
            pointer: CURRENT_LINK.to_owned(),
            from: last.to,
            to: current,
            by: default_actor(),
            reason: Some("the pointer was not where the last record says".to_owned()),
        },
    )
}

/// The last record about `current`; a torn line at the end is cut off.
fn last_move(file: &File) -> io::Result<Option<Move>> {
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
            durable::truncate(file, length)?;
        }
        let lines = tail[whole.min(ended)..ended].split(|&b| b == b'\n').rev();
        let last = lines
            .filter_map(|line| serde_json::from_slice::<Move>(line).ok())
            .find(|last| last.pointer == CURRENT_LINK);
        if last.is_some() || begin == 0 {
            return Ok(last);
        }
        tail_bytes = tail_bytes.saturating_mul(4);
    }
}

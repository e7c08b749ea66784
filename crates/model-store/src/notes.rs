//! Small files about versions, beside them: `<agent>/<directory>/<version>.json`.
//!
//! A version itself never changes, so what becomes known about it later lies here. Each note is replaced as a
//! whole, by a rename.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::dir;
use crate::durable;
use crate::error::StoreError;
use crate::layout::{AgentDir, has_prefix};
use crate::names::VersionName;

/// How a note begins that is not finished yet; then comes its writer's process.
pub(crate) const UNFINISHED_PREFIX: &str = ".tmp-";
/// Nobody writes more about one version.
const MAX_NOTE_BYTES: u64 = 1024 * 1024;

/// Writes a note, replacing the one before. Durable when this returns.
pub(crate) fn write(
    agent: &AgentDir,
    directory: &str,
    version: &VersionName,
    note: &impl Serialize,
) -> Result<(), StoreError> {
    let failed = |e: serde_json::Error| StoreError::io("write", &path(agent, directory, version), e);
    let mut json = serde_json::to_vec_pretty(note).map_err(failed)?;
    json.push(b'\n');
    write_bytes(agent, directory, version, &json)
}

/// As [`write`], what is a note already.
pub(crate) fn write_bytes(
    agent: &AgentDir,
    directory: &str,
    version: &VersionName,
    json: &[u8],
) -> Result<(), StoreError> {
    let path = path(agent, directory, version);
    let failed = |e| StoreError::io("write", &path, e);
    let made = durable::make_dir(agent.handle(), directory).map_err(failed)?;
    let notes = dir::open(agent.handle(), directory).map_err(failed)?;
    let temporary = format!("{UNFINISHED_PREFIX}{}-{version}", std::process::id());
    durable::put_file(notes.as_fd(), &temporary, &file_name(version), json).map_err(failed)?;
    if made { durable::sync(agent.handle()).map_err(failed) } else { Ok(()) }
}

/// Reads a note; `None` where there is none.
pub(crate) fn read<T: DeserializeOwned>(
    agent: BorrowedFd<'_>,
    directory: &str,
    version: &VersionName,
) -> io::Result<Option<T>> {
    let Some(json) = read_bytes(agent, directory, version, MAX_NOTE_BYTES)? else { return Ok(None) };
    Ok(Some(serde_json::from_slice(&json)?))
}

/// As [`read`], no more than so many bytes, whatever they are.
pub(crate) fn read_bytes(
    agent: BorrowedFd<'_>,
    directory: &str,
    version: &VersionName,
    limit_bytes: u64,
) -> io::Result<Option<Vec<u8>>> {
    let Some(notes) = dir::open_if_there(agent, directory)? else { return Ok(None) };
    let file = match dir::open_file(notes.as_fd(), &file_name(version)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut json = Vec::new();
    file.take(limit_bytes).read_to_end(&mut json)?;
    Ok(Some(json))
}

/// Takes a note away; one that is not there is fine. Durable when this returns.
pub(crate) fn remove(agent: &AgentDir, directory: &str, version: &VersionName) -> Result<(), StoreError> {
    let failed = |e| StoreError::io("remove", &path(agent, directory, version), e);
    let Some(notes) = dir::open_if_there(agent.handle(), directory).map_err(failed)? else { return Ok(()) };
    let name = file_name(version);
    if !dir::exists(notes.as_fd(), &name).map_err(failed)? {
        return Ok(());
    }
    durable::remove_file(notes.as_fd(), &name).and_then(|()| durable::sync(notes.as_fd())).map_err(failed)
}

/// Removes what a dead writer left. Notes are written without the agent's lock, so a living writer's is left
/// alone.
pub(crate) fn remove_unfinished(notes: BorrowedFd<'_>) {
    for entry in dir::entries(notes).unwrap_or_default() {
        let name = entry.name.to_string_lossy();
        let writer = name.strip_prefix(UNFINISHED_PREFIX).and_then(|rest| rest.split('-').next());
        let lives = writer.is_some_and(|pid| std::path::Path::new("/proc").join(pid).exists());
        if has_prefix(&entry.name, UNFINISHED_PREFIX) && !lives {
            let _ = durable::remove_file(notes, &name);
        }
    }
}

fn path(agent: &AgentDir, directory: &str, version: &VersionName) -> PathBuf {
    agent.path().join(directory).join(file_name(version))
}

fn file_name(version: &VersionName) -> String {
    format!("{version}.json")
}

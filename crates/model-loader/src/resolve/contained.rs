//! Links that lead out of a version: a model is read from where it was published, and from nowhere else.
//!
//! The store refuses such links when it publishes, so one that is there was planted later. A folder that the caller named
//! is the caller's own and may hold links to anywhere. The Hub cache keeps its files in `blobs/` beside `snapshots/` and
//! links to them, so its boundary is the model's folder in the cache.

use std::fs;
use std::path::Path;

use super::boundary;
use super::found::ResolvedModel;
use crate::LoadError;

/// Deeper than any model's folder is. What lies below is not looked through, so it is refused.
const MAX_DEPTH: usize = 16;

/// Refuses a model or adapter with a link in its folder that leads out of its version.
pub(super) fn check(found: &ResolvedModel) -> Result<(), LoadError> {
    let own = boundary(&found.path, &found.source, found.held.as_deref());
    let adapter = found.adapter.as_ref();
    let others = adapter.and_then(|a| Some((&a.path, boundary(&a.path, &a.source, a.held.as_deref())?)));
    for (path, boundary) in own.map(|own| (&found.path, own)).into_iter().chain(others) {
        let boundary = boundary.canonicalize().map_err(LoadError::read(&boundary))?;
        check_link(path, &boundary)?;
        check_folder(path, &boundary, MAX_DEPTH)?;
    }
    Ok(())
}

fn check_folder(folder: &Path, boundary: &Path, depth: usize) -> Result<(), LoadError> {
    if depth == 0 {
        let reason = format!(
            "lies {MAX_DEPTH} folders deep, where no model has anything and links are not looked for; publish it without that"
        );
        return Err(LoadError::config(folder, reason));
    }
    for entry in fs::read_dir(folder).map_err(LoadError::read(folder))? {
        let entry = entry.map_err(LoadError::read(folder))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(LoadError::read(entry.path()))?);
        if kind.is_symlink() {
            check_link(&path, boundary)?;
        } else if kind.is_dir() {
            check_folder(&path, boundary, depth - 1)?;
        }
    }
    Ok(())
}

/// Where a path really leads. A link to nothing is missed by whoever needs its file.
fn check_link(path: &Path, boundary: &Path) -> Result<(), LoadError> {
    match path.canonicalize() {
        Ok(target) if target.starts_with(boundary) => Ok(()),
        Ok(target) => {
            Err(LoadError::LeadsOut { path: path.to_owned(), target, boundary: boundary.to_owned() })
        }
        Err(_) => Ok(()),
    }
}

//! The local Hugging Face cache, read without a network.
//!
//! ```text
//! models--org--name/
//!   refs/<revision>        the commit a branch, tag or pull request was at
//!   snapshots/<commit>/    the files
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{LoadError, files};

/// The branch that a model is taken from when none is named.
pub const DEFAULT_REVISION: &str = "main";

/// A model's files in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedSnapshot {
    /// The folder with the files.
    pub path: PathBuf,
    /// The commit they are of.
    pub commit: String,
}

/// Finds a model in this user's cache: `org/name` at a branch, a tag, `refs/pr/<n>` or a full commit.
///
/// `None` if it is not there, or only in part: a revision whose snapshot is gone.
pub fn find(model_id: &str, revision: &str) -> Result<Option<CachedSnapshot>, LoadError> {
    match dir() {
        Some(cache) => find_in(&cache, model_id, revision),
        None => check_model_id(model_id).map(|()| None),
    }
}

/// [`find`] in another cache folder.
pub fn find_in(cache: &Path, model_id: &str, revision: &str) -> Result<Option<CachedSnapshot>, LoadError> {
    let repository = cache.join(folder_name(model_id)?);
    check_revision(revision)?;
    let reference = repository.join("refs").join(revision);
    let commit = match files::read(&reference)? {
        Some(commit) => String::from_utf8_lossy(&commit).trim().to_owned(),
        None => revision.to_owned(),
    };
    if !is_commit(&commit) {
        // Not a branch that the cache knows, and not a commit by itself.
        return Ok(None);
    }
    let path = repository.join("snapshots").join(&commit);
    Ok(path.is_dir().then_some(CachedSnapshot { path, commit }))
}

/// The cache folder as `huggingface_hub` picks it: `HF_HUB_CACHE`, else `$HF_HOME/hub`, else
/// `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`. `None` without any of these and a home.
#[must_use]
pub fn dir() -> Option<PathBuf> {
    dir_from(|name| std::env::var_os(name))
}

/// [`dir`] with another environment.
pub fn dir_from(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = path("HOME");
    let expanded = |path: PathBuf| match (path.strip_prefix("~"), &home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    };
    path("HF_HUB_CACHE")
        .or_else(|| Some(path("HF_HOME")?.join("hub")))
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(home.clone()?.join(".cache/huggingface/hub")))
        .map(expanded)
}

/// A model's folder in a cache or below a version: `models--org--name`.
pub fn folder_name(model_id: &str) -> Result<String, LoadError> {
    check_model_id(model_id)?;
    Ok(format!("models--{}", model_id.replace('/', "--")))
}

/// The model's folder in a cache, `models--org--name`, that a snapshot belongs to.
pub(crate) fn repository_of(snapshot: &Path) -> Option<PathBuf> {
    Some(snapshot.parent()?.parent()?.to_owned())
}

fn check_model_id(model_id: &str) -> Result<(), LoadError> {
    let part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            && !part.starts_with(['.', '-'])
            && !part.ends_with(['.', '-'])
            && !part.contains("..")
            && !part.contains("--")
    };
    let parts: Vec<_> = model_id.split('/').collect();
    if parts.len() <= 2 && parts.iter().copied().all(part) {
        return Ok(());
    }
    Err(LoadError::Name {
        name: model_id.to_owned(),
        kind: "model id",
        reason: "write `organisation/name` (or an old model's bare `name`): letters, digits, `.`, `_` and `-`",
    })
}

fn check_revision(revision: &str) -> Result<(), LoadError> {
    let part = |part: &str| {
        !matches!(part, "" | "." | "..") && !part.contains(|c: char| c.is_control() || c == '\\')
    };
    if revision.len() <= 255 && revision.split('/').all(part) {
        return Ok(());
    }
    Err(LoadError::Name {
        name: revision.to_owned(),
        kind: "revision",
        reason: "name a branch, a tag, `refs/pr/<number>` or a commit of 40 hexadecimal digits",
    })
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

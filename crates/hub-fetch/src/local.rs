//! What a snapshot in the cache holds, with a list of the commit's files and without one.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::FetchError;
use crate::listing::{About, Listing, Wanted};
use crate::request::Graphs;
use crate::selection;

/// The files of a commit whose list is known; `Err` says why the list is of no use. It may be an old one, or one of
/// another program's, so it is no reason not to ask the Hub.
pub(crate) fn listed(listing: &Listing, about: &About<'_>, graphs: Graphs) -> Result<Vec<Wanted>, String> {
    let wanted = listing.wanted(about, graphs).map_err(|error| format!("by its list of files, {error}"))?;
    let file = |path: String| {
        let facts = &listing.files[&path];
        let file = facts.etag().and_then(|etag| Wanted::new(&path, facts.size, etag));
        file.filter(|file| file.digest.is_some())
            .ok_or_else(|| format!("its list of files has no digest of {path}"))
    };
    wanted.into_iter().map(file).collect()
}

/// The files of a snapshot whose list is not known; `Err` names what is missing for certain.
pub(crate) fn found_in(snapshot: &Path, graphs: Graphs) -> Result<Vec<Wanted>, String> {
    let mut paths = BTreeSet::new();
    walk(snapshot, "", &mut paths);
    let all: Vec<&str> = paths.iter().map(String::as_str).collect();
    let wanted: Vec<&str> =
        all.iter().copied().filter(|path| selection::is_wanted(path, graphs, &all)).collect();
    if !wanted.iter().any(|path| path.ends_with(".safetensors")) {
        return Err("there are no *.safetensors".to_owned());
    }
    if !wanted.contains(&"config.json")
        && !wanted.contains(&"modules.json")
        && !wanted.contains(&"adapter_config.json")
    {
        return Err("there is no config.json".to_owned());
    }
    for index in wanted.iter().filter(|path| path.ends_with(".safetensors.index.json")) {
        let json = std::fs::read(snapshot.join(index)).map_err(|error| format!("{index}: {error}"))?;
        let index: serde_json::Value =
            serde_json::from_slice(&json).map_err(|error| format!("{index}: {error}"))?;
        let shards =
            index.get("weight_map").and_then(|map| map.as_object()).into_iter().flat_map(|map| map.values());
        if let Some(shard) = shards.filter_map(|shard| shard.as_str()).find(|shard| !paths.contains(*shard)) {
            return Err(format!("{shard} is missing"));
        }
    }
    let file = |path: &&str| {
        let blob =
            snapshot.join(path).read_link().ok().and_then(|to| Some(to.file_name()?.to_str()?.to_owned()));
        Wanted::new(path, None, &blob.unwrap_or_else(|| "unknown".to_owned()))
    };
    Ok(wanted.iter().filter_map(file).collect())
}

fn walk(folder: &Path, prefix: &str, paths: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), &format!("{prefix}{name}/"), paths);
        } else if entry.path().is_file() {
            paths.insert(format!("{prefix}{name}"));
        }
    }
}

/// Whether a file of a snapshot hashes to what it should.
pub(crate) fn is_intact(snapshot: &Path, file: &Wanted) -> Result<bool, FetchError> {
    let Some(digest) = &file.digest else { return Ok(true) };
    let path = snapshot.join(&file.path);
    let check = || {
        let mut bytes = std::fs::File::open(&path)?;
        let size = bytes.metadata()?.len();
        digest.check(&mut bytes, size)
    };
    Ok(check().map_err(|error| FetchError::io("read", &path, error))?.is_ok())
}

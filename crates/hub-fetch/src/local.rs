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
    if wanted.contains(&"modules.json") {
        has_modules(snapshot, &wanted)?;
    }
    let file = |path: &&str| {
        let blob =
            snapshot.join(path).read_link().ok().and_then(|to| Some(to.file_name()?.to_str()?.to_owned()));
        Wanted::new(path, None, &blob.unwrap_or_else(|| "unknown".to_owned()))
    };
    Ok(wanted.iter().filter_map(file).collect())
}

/// Looks for the files of the modules that `modules.json` names; `Err` names one that is missing.
fn has_modules(snapshot: &Path, files: &[&str]) -> Result<(), String> {
    let unread = |error: &dyn std::fmt::Display| format!("modules.json: {error}");
    let json = std::fs::read(snapshot.join("modules.json")).map_err(|error| unread(&error))?;
    let modules: Vec<Module> = serde_json::from_slice(&json).map_err(|error| unread(&error))?;
    for Module { path: folder, kind } in &modules {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let below: Vec<&str> = files.iter().filter_map(|path| path.strip_prefix(&prefix)).collect();
        let (config, weights) = match kind.rsplit('.').next().unwrap_or_default() {
            // It has nothing to be set, and no folder in a repository.
            "Normalize" => continue,
            "Pooling" => (true, false),
            "Transformer" | "Dense" => (true, true),
            // Whatever it is, it was saved as something.
            _ if below.is_empty() => {
                return Err(format!("{folder} is missing, which modules.json names"));
            }
            _ => continue,
        };
        if config && !below.contains(&"config.json") {
            return Err(format!("{prefix}config.json is missing, which modules.json names"));
        }
        if weights && !below.iter().any(|name| name.ends_with(".safetensors") && !name.contains('/')) {
            return Err(format!("{prefix}*.safetensors are missing, which modules.json names"));
        }
    }
    Ok(())
}

/// An entry of `modules.json`.
#[derive(Debug, serde::Deserialize)]
struct Module {
    /// Its folder; empty for the top.
    path: String,
    /// Its class in sentence-transformers.
    #[serde(rename = "type")]
    kind: String,
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    /// Two modules with files, one without any, and one of a class that is not known here.
    const MODULES: &str = r#"[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"idx": 3, "name": "3", "path": "3_Other", "type": "sentence_transformers.models.WordWeights"},
        {"idx": 4, "name": "4", "path": "4_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;

    #[test]
    fn what_modules_json_names_is_there() {
        let all = [
            "config.json",
            "model.safetensors",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "3_Other/weights.json",
        ];
        let check = |without: Option<&str>, modules: &str, expected: Option<&str>| {
            let folder = tempfile::tempdir().unwrap();
            let put = |path: &str, bytes: &str| {
                let path = folder.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            };
            put("modules.json", modules);
            all.iter().filter(|path| Some(**path) != without).for_each(|path| put(path, "{}"));
            match (found_in(folder.path(), Graphs::Leave), expected) {
                (Ok(files), None) => assert_eq!(files.len(), all.len() + 1),
                (Err(missing), Some(says)) => assert!(missing.contains(says), "{without:?}: {missing}"),
                (found, _) => panic!("{without:?}: {found:?}"),
            }
        };
        check(None, MODULES, None);
        check(Some("config.json"), MODULES, Some("config.json is missing"));
        check(Some("model.safetensors"), MODULES, Some("*.safetensors are missing"));
        check(Some("1_Pooling/config.json"), MODULES, Some("1_Pooling/config.json is missing"));
        check(Some("2_Dense/config.json"), MODULES, Some("2_Dense/config.json is missing"));
        check(Some("2_Dense/model.safetensors"), MODULES, Some("2_Dense/*.safetensors are missing"));
        check(Some("3_Other/weights.json"), MODULES, Some("3_Other is missing"));
        check(None, "{", Some("modules.json: "));
    }
}

//! What the API says of models.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::access::Rules;
use crate::snapshot::Snapshot;

/// Entries of a tree on one page, as the Hub counts them.
pub(crate) const PAGE: usize = 1000;

/// `/api/models/{id}`. With `blobs`, sizes and digests too.
pub(crate) fn info(id: &str, snapshot: &Snapshot, rules: &Rules, blobs: bool) -> Value {
    let siblings: Vec<Value> = snapshot
        .files
        .iter()
        .map(|(path, entry)| if blobs { entry.sibling(path) } else { json!({ "rfilename": path }) })
        .collect();
    let used: u64 = snapshot.files.values().map(|entry| entry.size).sum();
    json!({
        "_id": &snapshot.commit[..24],
        "id": id,
        "modelId": id,
        "author": id.split_once('/').map(|(author, _)| author),
        "sha": snapshot.commit,
        "private": rules.private.contains(id),
        "gated": if rules.gated.contains(id) { json!("manual") } else { json!(false) },
        "disabled": false,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "usedStorage": used,
        "siblings": siblings,
    })
}

/// `/api/models`.
pub(crate) fn list(models: &[String]) -> Value {
    models
        .iter()
        .map(|id| json!({"id": id, "modelId": id, "private": false, "tags": [], "downloads": 0, "likes": 0}))
        .collect()
}

/// What is in a folder of the model: files and folders, and with `recursive` what is in those too. `None` if the
/// model has no such folder.
pub(crate) fn tree(snapshot: &Snapshot, folder: &str, recursive: bool) -> Option<Vec<Value>> {
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let mut entries: BTreeMap<String, Value> = BTreeMap::new();
    for (path, entry) in &snapshot.files {
        let Some(rest) = path.strip_prefix(&prefix) else { continue };
        let folders = rest.match_indices('/').map(|(at, _)| &path[..prefix.len() + at]);
        for below in folders.take(if recursive { usize::MAX } else { 1 }) {
            entries.entry(below.to_owned()).or_insert_with(
                || json!({"type": "directory", "oid": snapshot.commit, "size": 0, "path": below}),
            );
        }
        if recursive || !rest.contains('/') {
            entries.insert(path.clone(), entry.leaf(path));
        }
    }
    (folder.is_empty() || !entries.is_empty()).then(|| entries.into_values().collect())
}

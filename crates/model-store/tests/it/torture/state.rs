//! What a store holds, as its readers see it: what an operation may change, and what it must leave alone.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use model_store::{ModelStore, SignatureState, StoreError};

use crate::fixture::{full_message, scout, signing_key};

/// Everything of an agent that readers can see. The bytes of every version are read for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Each pointer that is set, and the version it leads to.
    pointers: BTreeMap<String, String>,
    /// Each version: the checksum of its bytes, and what is wrong with it.
    versions: BTreeMap<String, String>,
    /// Which versions are marked.
    pub(crate) marks: BTreeMap<String, String>,
    /// Which versions are signed, and how that stands.
    signatures: BTreeMap<String, String>,
}

impl State {
    /// Reads a store; the error says what a reader cannot make sense of.
    pub(crate) fn read(store: &ModelStore) -> Result<Self, String> {
        let failed = |e: StoreError| full_message(&e);
        let mut state = Self::default();
        if let Some(current) = store.get_current(&scout()).map_err(failed)? {
            state.pointers.insert("current".to_owned(), current.version().to_string());
        }
        let versions = match store.versions(&scout()) {
            Err(StoreError::AgentNotFound { .. }) => Vec::new(),
            other => other.map_err(failed)?,
        };
        let refs = if versions.is_empty() { Vec::new() } else { store.refs(&scout()).map_err(failed)? };
        for version in versions {
            let report = store.verify(&scout(), &version).map_err(failed)?;
            let mut seen = report.checksum.to_string();
            for finding in report.findings {
                let _ = write!(seen, ", {finding}");
            }
            if store.quarantine(&scout(), &version).map_err(failed)?.is_some() {
                state.marks.insert(version.to_string(), "quarantined".to_owned());
            }
            let found = store.require_version(&scout(), &version).map_err(failed)?;
            match found.signature_state(&[signing_key().verifying_key()]).map_err(failed)? {
                SignatureState::Unsigned => {}
                SignatureState::Signed { .. } => {
                    state.signatures.insert(version.to_string(), "signed".to_owned());
                }
                SignatureState::Bad { reason } => {
                    state.signatures.insert(version.to_string(), reason);
                }
            }
            state.versions.insert(version.to_string(), seen);
        }
        for entry in refs {
            let reference = store.get_ref(&scout(), &entry.name).map_err(failed)?.ok_or("a ref vanished")?;
            state.pointers.insert(format!("refs/{}", entry.name), reference.version().to_string());
        }
        Ok(state)
    }

    /// Says what an operation did, as rows word it.
    pub(crate) fn change_to(&self, after: &Self) -> String {
        let mut said = Vec::new();
        let shown = |version: Option<&String>| version.map_or("-".to_owned(), Clone::clone);
        for pointer in keys(&self.pointers, &after.pointers) {
            let (old, new) = (self.pointers.get(pointer), after.pointers.get(pointer));
            if old != new {
                said.push(format!("{pointer} {} -> {}", shown(old), shown(new)));
            }
        }
        for version in keys(&self.versions, &after.versions) {
            match (self.versions.get(version), after.versions.get(version)) {
                (None, Some(_)) => said.push(format!("+{version}")),
                (Some(_), None) => said.push(format!("-{version}")),
                (old, new) if old != new => said.push(format!("{version} mended")),
                _ => {}
            }
        }
        for version in keys(&self.marks, &after.marks) {
            match (self.marks.get(version), after.marks.get(version)) {
                (None, Some(mark)) => said.push(format!("{version} {mark}")),
                (Some(_), None) => said.push(format!("{version} released")),
                _ => {}
            }
        }
        for version in keys(&self.signatures, &after.signatures) {
            let (old, new) = (self.signatures.get(version), after.signatures.get(version));
            // Whose version is gone has none.
            if old != new && after.versions.contains_key(version) {
                said.push(format!("{version} {}", shown(new)));
            }
        }
        said.join(", ")
    }

    /// Whether every part of this is as it was before an operation or as it is after it.
    pub(crate) fn check_between(&self, before: &Self, after: &Self) -> Result<(), String> {
        for (kind, now, old, new) in [
            ("pointer", &self.pointers, &before.pointers, &after.pointers),
            ("version", &self.versions, &before.versions, &after.versions),
            ("the mark of", &self.marks, &before.marks, &after.marks),
            ("the signature of", &self.signatures, &before.signatures, &after.signatures),
        ] {
            for key in keys(now, old).chain(keys(new, new)) {
                let seen = now.get(key);
                if seen != old.get(key) && seen != new.get(key) {
                    return Err(format!(
                        "{kind} {key} is {seen:?}, was {:?}, is to be {:?}",
                        old.get(key),
                        new.get(key)
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether the history leads, without a gap, to where the pointers are.
    pub(crate) fn check_history(&self, root: &Path) -> Result<(), String> {
        let text = fs::read_to_string(root.join("scout/history.jsonl")).unwrap_or_default();
        let mut at: BTreeMap<String, String> = BTreeMap::new();
        for line in text.lines() {
            let record: serde_json::Value =
                serde_json::from_str(line).map_err(|e| format!("a line of the history: {e}: {line}"))?;
            let field = |key: &str| record[key].as_str().map(ToOwned::to_owned);
            let pointer = field("pointer").ok_or_else(|| format!("a record of nothing: {line}"))?;
            if pointer.starts_with("versions/") {
                continue;
            }
            if at.get(&pointer) != field("from").as_ref() {
                return Err(format!("the history has a gap before {line}"));
            }
            match field("to") {
                Some(to) => at.insert(pointer, to),
                None => at.remove(&pointer),
            };
        }
        if at == self.pointers {
            return Ok(());
        }
        Err(format!("the history leads to {at:?}, the pointers are {:?}", self.pointers))
    }
}

fn keys<'a>(
    a: &'a BTreeMap<String, String>,
    b: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = &'a String> {
    a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)))
}

/// Every path of the agent that belongs to no version, pointer or record: what a mutation may leave behind.
pub(crate) fn debris(root: &Path) -> Vec<String> {
    let agent = root.join("scout");
    let mut left = Vec::new();
    let mut look = |dir: &str, is_ours: &dyn Fn(&str) -> bool| {
        for entry in fs::read_dir(agent.join(dir)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_ours(&name) {
                left.push(format!("{dir}/{name}"));
            }
        }
    };
    let known = [
        "versions",
        "current",
        "history.jsonl",
        ".lock",
        "refs",
        ".trash",
        ".verified",
        ".quarantine",
        ".signatures",
    ];
    look(".", &|name| known.contains(&name));
    look("versions", &|name| Path::new(name).extension() != Some("tmp".as_ref()));
    look("refs", &|name| !name.starts_with('.'));
    look(".trash", &|_| false);
    for notes in [".verified", ".quarantine", ".signatures"] {
        look(notes, &|name| {
            name.strip_suffix(".json").is_some_and(|version| agent.join("versions").join(version).is_dir())
        });
    }
    left
}

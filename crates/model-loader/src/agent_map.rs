//! `AGENT_MODEL_MAP.json`: which base model each agent uses, and which adapter on it.
//!
//! ```json
//! { "base_models": {
//!     "mistral-7b": { "hf_id": "organisation/name", "model_store_agent": "base_models", "model_store_version": "v3" } },
//!   "agents": {
//!     "critic": [ { "base_ref": "mistral-7b", "adapter_name": "critic_v1",
//!                   "adapter_model_store_path": "critic/adapters/critic_v1" } ] } }
//! ```
//!
//! Older files have the agents at top level, beside `base_models`. Keys that are not known here are kept. An agent's
//! entry is checked when it is asked for, so that a slip in one agent's entry stops no other agent;
//! [`AgentMap::problems`] checks them all.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::LoadError;
use crate::files::read_json;

/// Names the map's file.
pub(crate) const VARIABLE: &str = "AGENT_MODEL_MAP";
/// The map's file where [`VARIABLE`] is not set.
pub(crate) const DEFAULT_PATH: &str = "/etc/justnews/AGENT_MODEL_MAP.json";

/// Which base model each agent uses, and with which adapter. Without a file it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentMap {
    path: PathBuf,
    bases: Map<String, Value>,
    agents: Map<String, Value>,
    /// How an agent's JSON path begins: `agents.`, or nothing in an older file.
    prefix: &'static str,
}

/// What the map says of one agent: an entry and the base model that it refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MapEntry {
    /// Where the entry is in the file, such as `agents.critic[0]`.
    pub json_path: String,
    /// The base model's name in `base_models`.
    pub base_ref: String,
    /// The base model.
    pub base: BaseModel,
    /// The adapter on it, where the entry names one.
    pub adapter: Option<MapAdapter>,
    /// Which variant of the weights is preferred, such as `fp16`; handed on, not acted on.
    pub variant_preference: Option<String>,
    /// The entry as it stands in the file, keys that are not known here too.
    pub raw: Map<String, Value>,
}

/// A base model of the map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BaseModel {
    /// Its id on the Hub.
    pub hf_id: Option<String>,
    /// The agent of the store that holds it.
    pub model_store_agent: Option<String>,
    /// A version or ref of that agent; without one it is the current version.
    pub model_store_version: Option<String>,
    /// A path below the store's root, or an absolute one; it goes before agent and version.
    pub model_store_path: Option<String>,
    /// Its entry as it stands in the file.
    pub raw: Map<String, Value>,
}

/// A `LoRA` adapter of the map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MapAdapter {
    /// Its name.
    pub name: Option<String>,
    /// A path below the store's root, or an absolute one; it goes before agent and version.
    pub model_store_path: Option<String>,
    /// The agent of the store that holds it; without one it is the agent itself.
    pub agent: Option<String>,
    /// A version or ref of that agent.
    pub version: Option<String>,
    /// The folder in that version; without one it is `adapters/<name>`.
    pub subdir: Option<String>,
}

impl AgentMap {
    /// The map that `AGENT_MODEL_MAP` names, else the one in `/etc/justnews`, else an empty one.
    pub fn from_env() -> Result<Self, LoadError> {
        match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from) {
            Some(path) => Self::read(&path)?.ok_or_else(|| LoadError::Missing {
                path,
                next: format!("{VARIABLE} names it: correct or unset the variable"),
            }),
            None => Ok(Self::read(Path::new(DEFAULT_PATH))?.unwrap_or_default()),
        }
    }

    /// The map in a file; `None` when there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>, LoadError> {
        let Some(map) = read_json::<Value>(path)? else { return Ok(None) };
        Self::of(path, map).map(Some)
    }

    fn of(path: &Path, map: Value) -> Result<Self, LoadError> {
        let Value::Object(mut map) = map else {
            let reason = "an agent map is a JSON object with `base_models` and `agents`";
            return Err(LoadError::config(path, reason));
        };
        let mut object = |key: &str| match map.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(other) => {
                let reason = format!("`{key}` is {}; it must be an object", kind(&other));
                Err(LoadError::config(path, reason))
            }
        };
        let bases = object("base_models")?.unwrap_or_default();
        let (agents, prefix) = match object("agents")? {
            Some(agents) => (agents, "agents."),
            None => (map, ""),
        };
        Ok(Self { path: path.to_owned(), bases, agents, prefix })
    }

    /// The file it was read from; empty where there was none.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the agents in the map.
    pub fn agents(&self) -> impl Iterator<Item = &str> {
        self.agents.keys().map(String::as_str)
    }

    /// What the map says of an agent: its first entry, or the one with an adapter of this name. `None` where it says
    /// nothing; an error names the key that is wrong by its path in the file, such as `agents.critic[0].base_ref`.
    pub fn entry(&self, agent: &str, adapter_name: Option<&str>) -> Result<Option<MapEntry>, LoadError> {
        let Some((entries, at)) = self.entries(agent)? else { return Ok(None) };
        let index = match adapter_name {
            None => 0,
            Some(name) => entries
                .iter()
                .position(|entry| entry.get("adapter_name").and_then(Value::as_str) == Some(name))
                .ok_or_else(|| {
                    let names = entries.iter().filter_map(|entry| entry.get("adapter_name")?.as_str());
                    let names = names.collect::<Vec<_>>().join(", ");
                    let next = if names.is_empty() { String::new() } else { format!("; there are: {names}") };
                    self.wrong(&at, &format!("no entry has the `adapter_name` {name:?}{next}"))
                })?,
        };
        let Some(entry) = entries.get(index) else { return Ok(None) };
        self.check_entry(entry, format!("{at}[{index}]")).map(Some)
    }

    /// The Hub id of an agent's first base model; `None` where the map names none, or is wrong there.
    #[must_use]
    pub fn model_id(&self, agent: &str) -> Option<&str> {
        let (entries, _) = self.entries(agent).ok()??;
        let base = entries.first()?.get("base_ref")?.as_str()?;
        self.bases.get(base)?.get("hf_id")?.as_str()
    }

    /// Everything that is wrong with the map, each with its JSON path; empty where nothing is.
    #[must_use]
    pub fn problems(&self) -> Vec<LoadError> {
        let mut problems = Vec::new();
        for name in self.bases.keys() {
            problems.extend(self.base(name).err());
        }
        for agent in self.agents.keys() {
            match self.entries(agent) {
                // Beside the agents of an older file lie keys that are nobody's.
                Err(_) if self.prefix.is_empty() => {}
                Err(problem) => problems.push(problem),
                Ok(entries) => {
                    let (entries, at) = entries.unwrap_or_default();
                    let checked = entries.iter().enumerate();
                    problems.extend(checked.filter_map(|(index, entry)| {
                        self.check_entry(entry, format!("{at}[{index}]")).err()
                    }));
                }
            }
        }
        problems
    }

    /// An agent's entries and their JSON path. A single entry may stand without its list.
    fn entries(&self, agent: &str) -> Result<Option<(&[Value], String)>, LoadError> {
        let at = format!("{}{agent}", self.prefix);
        match self.agents.get(agent) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(entries)) => Ok(Some((entries, at))),
            Some(entry @ Value::Object(_)) => Ok(Some((std::slice::from_ref(entry), at))),
            Some(other) => Err(self.wrong(&at, &format!("is {}; it must be a list of entries", kind(other)))),
        }
    }

    fn check_entry(&self, entry: &Value, json_path: String) -> Result<MapEntry, LoadError> {
        let Value::Object(raw) = entry else {
            return Err(self.wrong(&json_path, &format!("is {}; it must be an object", kind(entry))));
        };
        let text = |key: &str| self.text(raw, &json_path, key);
        let Some(base_ref) = text("base_ref")? else {
            return Err(
                self.wrong(&format!("{json_path}.base_ref"), "is missing: which of `base_models` is it?")
            );
        };
        let Some(base) = self.base(&base_ref)? else {
            let there = self.bases.keys().cloned().collect::<Vec<_>>().join(", ");
            let there =
                if there.is_empty() { "it has none".to_owned() } else { format!("there are: {there}") };
            let what = format!("is {base_ref:?}, which is not in `base_models`; {there}");
            return Err(self.wrong(&format!("{json_path}.base_ref"), &what));
        };
        let adapter = MapAdapter {
            name: text("adapter_name")?,
            model_store_path: text("adapter_model_store_path")?,
            agent: text("adapter_agent")?,
            version: text("adapter_version")?,
            subdir: text("adapter_subdir")?,
        };
        let is_named = adapter != MapAdapter::default();
        Ok(MapEntry {
            base_ref,
            base,
            adapter: is_named.then_some(adapter),
            variant_preference: text("variant_preference")?,
            raw: raw.clone(),
            json_path,
        })
    }

    fn base(&self, name: &str) -> Result<Option<BaseModel>, LoadError> {
        let Some(base) = self.bases.get(name) else { return Ok(None) };
        let at = format!("base_models.{name}");
        let Value::Object(raw) = base else {
            return Err(self.wrong(&at, &format!("is {}; it must be an object", kind(base))));
        };
        let text = |key: &str| self.text(raw, &at, key);
        Ok(Some(BaseModel {
            hf_id: text("hf_id")?,
            model_store_agent: text("model_store_agent")?,
            model_store_version: text("model_store_version")?,
            model_store_path: text("model_store_path")?,
            raw: raw.clone(),
        }))
    }

    /// A key that is a text; absent, null or empty it is none.
    fn text(&self, object: &Map<String, Value>, at: &str, key: &str) -> Result<Option<String>, LoadError> {
        match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(other) => {
                Err(self.wrong(&format!("{at}.{key}"), &format!("is {}; it must be a text", kind(other))))
            }
        }
    }

    /// What is wrong with a key of the map.
    pub(crate) fn wrong(&self, json_path: &str, what: &str) -> LoadError {
        LoadError::config(&self.path, format!("`{json_path}` {what}"))
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_shapes_of_the_file_name_the_model() {
        let bases = json!({ "b": { "hf_id": "org/name", "extra": 1 } });
        let check = |name: &str, map: Value, expected: Option<&str>| {
            let map = AgentMap::of(Path::new("map.json"), map).unwrap_or_default();
            assert_eq!(map.model_id("analyst"), expected, "{name}");
        };
        let entry = json!([{ "base_ref": "b" }]);
        check("new", json!({ "base_models": bases, "agents": { "analyst": entry } }), Some("org/name"));
        check("old", json!({ "base_models": bases, "analyst": entry }), Some("org/name"));
        check("no list", json!({ "base_models": bases, "analyst": { "base_ref": "b" } }), Some("org/name"));
        check("another agent", json!({ "base_models": bases, "agents": {} }), None);
        check("dangling", json!({ "base_models": {}, "agents": { "analyst": entry } }), None);
        check("empty", json!({}), None);
    }
}

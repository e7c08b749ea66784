//! `AGENT_MODEL_MAP.json`: which base model each agent uses.
//!
//! ```json
//! { "base_models": { "sentiment": { "hf_id": "organisation/name" } },
//!   "agents": { "analyst": [ { "base_ref": "sentiment" } ] } }
//! ```
//!
//! Older files have the agents at top level, beside `base_models`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::LoadError;
use crate::files::read_json;

/// Names the map's file.
pub(crate) const VARIABLE: &str = "AGENT_MODEL_MAP";
/// The map's file where [`VARIABLE`] is not set.
pub(crate) const DEFAULT_PATH: &str = "/etc/justnews/AGENT_MODEL_MAP.json";

/// Which base model each agent uses. Unknown keys are left alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentMap {
    map: Value,
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
        if !map.is_object() {
            return Err(LoadError::config(
                path,
                "an agent map is a JSON object with `base_models` and `agents`",
            ));
        }
        Ok(Some(Self { map }))
    }

    /// The Hub id of an agent's first base model.
    #[must_use]
    pub fn model_id(&self, agent: &str) -> Option<&str> {
        let entries = self.map.get("agents").unwrap_or(&self.map).get(agent)?;
        let base = entries.as_array()?.first()?.get("base_ref")?.as_str()?;
        self.map.get("base_models")?.get(base)?.get("hf_id")?.as_str()
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
            assert_eq!(AgentMap { map }.model_id("analyst"), expected, "{name}");
        };
        let entry = json!([{ "base_ref": "b" }]);
        check("new", json!({ "base_models": bases, "agents": { "analyst": entry } }), Some("org/name"));
        check("old", json!({ "base_models": bases, "analyst": entry }), Some("org/name"));
        check("another agent", json!({ "base_models": bases, "agents": {} }), None);
        check("dangling", json!({ "base_models": {}, "agents": { "analyst": entry } }), None);
        check("empty", json!({}), None);
    }
}

//! What is known of an agent's model without loading it, for dashboards and audits.

use std::path::PathBuf;

use model_store::{Digest, Manifest, VersionName};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::LoadError;
use crate::resolve::{self, Outcome, ResolveOptions, ResolvedAdapter, ResolvedModel, Search};

/// What is known of an agent's model. The keys of its JSON are those that the Python loader gave, and some more.
#[derive(Debug, Clone, Serialize)]
pub struct AgentMetadata {
    /// The agent asked for.
    pub agent: String,
    /// The name of its adapter, where the agent map names one.
    pub adapter_name: Option<String>,
    /// The agent's entry in the agent map, as it stands there.
    pub entry: Option<Map<String, Value>>,
    /// The name of its base model in the agent map.
    pub base_ref: Option<String>,
    /// The base model's entry in the agent map, as it stands there.
    pub base_info: Option<Map<String, Value>>,
    /// The folder of the model that would be loaded; `None` where no place has it.
    pub version_dir: Option<PathBuf>,
    /// Its version, when it is in the store.
    pub version: Option<VersionName>,
    /// That version's checksum.
    pub checksum: Option<Digest>,
    /// That version's manifest.
    pub manifest: Option<Manifest>,
    /// The adapter's folder; `None` where there is none, or it is not there.
    pub adapter_path: Option<PathBuf>,
    /// Where the model would come from.
    pub model: Option<ResolvedModel>,
    /// Where the adapter would come from.
    pub adapter: Option<ResolvedAdapter>,
    /// What is missing where no place has the model, a line a place.
    pub missing: Vec<String>,
}

/// What is known of an agent's model: base, adapter and manifest. Nothing is loaded, and nothing that is missing is an
/// error; a name or an agent map that makes no sense is one.
///
/// ```no_run
/// let metadata = model_loader::metadata("critic", &model_loader::ResolveOptions::from_env())?;
/// println!("{:?} with {:?}", metadata.version_dir, metadata.adapter_path);
/// # Ok::<(), model_loader::LoadError>(())
/// ```
pub fn metadata(agent: &str, options: &ResolveOptions) -> Result<AgentMetadata, LoadError> {
    let entry = Search::new(agent, options, resolve::Scope::Allowed)?.entry;
    let resolution = resolve::dry_run(agent, options)?;
    let model = resolution.model;
    let adapter = model.as_ref().and_then(|model| model.adapter().cloned());
    let told = |outcome| matches!(outcome, Outcome::Missing | Outcome::Failed);
    let missing = match &model {
        Some(_) => Vec::new(),
        None => resolution
            .places
            .into_iter()
            .filter(|place| told(place.outcome))
            .map(|place| place.what)
            .collect(),
    };
    Ok(AgentMetadata {
        agent: agent.to_owned(),
        adapter_name: entry.as_ref().and_then(|entry| entry.adapter.as_ref()?.name.clone()),
        base_ref: entry.as_ref().map(|entry| entry.base_ref.clone()),
        base_info: entry.as_ref().map(|entry| entry.base.raw.clone()),
        entry: entry.map(|entry| entry.raw),
        version_dir: model.as_ref().map(|model| model.path().to_owned()),
        version: model.as_ref().and_then(|model| model.version().cloned()),
        checksum: model.as_ref().and_then(ResolvedModel::checksum),
        manifest: model.as_ref().and_then(|model| model.manifest().cloned()),
        adapter_path: adapter.as_ref().map(|adapter| adapter.path().to_owned()),
        adapter,
        model,
        missing,
    })
}

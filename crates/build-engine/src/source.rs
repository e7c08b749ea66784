//! Which model is meant: `--model-id`, `--source`, what the agent runs now, or what the agent map names.

use std::path::Path;

use model_loader::{AgentMap, hub_cache};
use model_store::{AgentName, ModelStore, exit};
use trt_compiler::{ModelSource, Provenance};

use crate::cli::BuildArgs;
use crate::failure::Failure;

/// Finds the model, without a network.
pub(crate) fn resolve(
    args: &BuildArgs,
    agent: &AgentName,
    store: &ModelStore,
) -> Result<ModelSource, Failure> {
    if let Some(id) = &args.model_id {
        return from_cache(id, &args.revision);
    }
    if let Some(folder) = &args.source {
        return from_folder(folder);
    }
    if let Some(current) = store.get_current(agent)? {
        return Ok(ModelSource::Published(current));
    }
    let map = AgentMap::from_env()?;
    if let Some(id) = map.model_id(agent.as_str()) {
        return from_cache(id, &args.revision);
    }
    let nothing = store.agent_not_found(agent);
    Err(Failure::message(
        exit::NOT_FOUND,
        format!(
            "{nothing}, and the agent map names no model for it; give one with --source DIR or --model-id ID"
        ),
    ))
}

fn from_folder(folder: &Path) -> Result<ModelSource, Failure> {
    let path = folder.canonicalize().map_err(|error| {
        Failure::new(exit::NOT_FOUND, error).context(format!("cannot open the source {}", folder.display()))
    })?;
    let provenance = Provenance::Folder { path: path.display().to_string() };
    Ok(ModelSource::Folder { path, provenance })
}

fn from_cache(id: &str, revision: &str) -> Result<ModelSource, Failure> {
    let Some(snapshot) = hub_cache::find(id, revision)? else {
        let cache = hub_cache::dir().map_or("there is none".to_owned(), |path| path.display().to_string());
        return Err(Failure::message(
            exit::NOT_FOUND,
            format!(
                "{id} at {revision} is not in the local Hub cache ({cache}), and this version does not download; \
                 fetch it with `hf download {id} --revision {revision}`, or give a folder with --source DIR"
            ),
        ));
    };
    let provenance = Provenance::Hub {
        model_id: id.to_owned(),
        revision: revision.to_owned(),
        commit: snapshot.commit.clone(),
    };
    Ok(ModelSource::Folder { path: snapshot.path, provenance })
}

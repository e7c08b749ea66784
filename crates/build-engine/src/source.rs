//! Which model is meant: `--model-id`, `--source`, what the agent runs now, or what the agent map names.

use std::path::Path;

use model_loader::{AgentMap, hub_cache};
use model_store::{AgentName, ModelStore, exit};
use trt_compiler::{ModelSource, Provenance};

use crate::cli::BuildArgs;
use crate::failure::Failure;

/// The model that `--model-id` or `--source` names.
pub(crate) fn named(args: &BuildArgs) -> Result<Option<ModelSource>, Failure> {
    match (&args.model_id, &args.source) {
        (Some(id), _) => from_cache(id, &args.revision).map(Some),
        (None, Some(folder)) => from_folder(folder).map(Some),
        (None, None) => Ok(None),
    }
}

/// The model that the agent runs now, or that the agent map names for it.
pub(crate) fn of_agent(
    args: &BuildArgs,
    agent: &AgentName,
    store: &ModelStore,
) -> Result<ModelSource, Failure> {
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
        Failure::io(error).context(format!("cannot open the source {}", folder.display()))
    })?;
    if !path.is_dir() {
        let hint = "give the folder that has config.json and *.safetensors";
        return Err(Failure::message(exit::USAGE, format!("{} is not a folder; {hint}", folder.display())));
    }
    let provenance = Provenance::Folder { path: path.display().to_string() };
    Ok(ModelSource::Folder { path, provenance })
}

/// The model that an id names.
pub(crate) fn from_hub(id: &str, args: &BuildArgs) -> Result<ModelSource, Failure> {
    from_cache(id, &args.revision)
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

//! Which model is meant: `--model-id`, `--source`, what the agent runs now, or what the agent map names.

use std::path::Path;

use hub_fetch::{Hub, Plan, Request, Source};
use model_loader::AgentMap;
use model_store::{AgentName, ModelStore, exit};
use trt_compiler::{Interrupt, ModelSource, Provenance};

use crate::cli::BuildArgs;
use crate::failure::Failure;
use crate::fetching::Fetching;

/// Where the model is, or what it takes to get it.
pub(crate) enum Chosen {
    /// It is here.
    Here(ModelSource),
    /// It is on the Hub.
    ToFetch(Plan),
}

impl Chosen {
    /// What to write down about it.
    pub(crate) fn provenance(&self, args: &BuildArgs) -> Provenance {
        match self {
            Self::Here(source) => source.provenance(),
            Self::ToFetch(plan) => Provenance::Hub {
                model_id: plan.model_id.clone(),
                revision: args.revision.clone(),
                commit: plan.commit.clone(),
            },
        }
    }
}

/// The model that `--model-id` or `--source` names.
pub(crate) fn named(args: &BuildArgs, interrupt: &Interrupt) -> Result<Option<Chosen>, Failure> {
    match (&args.model_id, &args.source) {
        (Some(id), _) => from_hub(id, args, Download::unless(args.dry_run), interrupt).map(Some),
        (None, Some(folder)) => from_folder(folder).map(Chosen::Here).map(Some),
        (None, None) => Ok(None),
    }
}

/// The model that the agent runs now, or that the agent map names for it.
pub(crate) fn of_agent(
    args: &BuildArgs,
    agent: &AgentName,
    store: &ModelStore,
    interrupt: &Interrupt,
) -> Result<Chosen, Failure> {
    if let Some(current) = store.get_current(agent)? {
        return Ok(Chosen::Here(ModelSource::Published(current)));
    }
    let map = AgentMap::from_env()?;
    if let Some(id) = map.model_id(agent.as_str()) {
        return from_hub(id, args, Download::unless(args.dry_run), interrupt);
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

/// Whether what is not here is fetched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Download {
    Now,
    Later,
}

impl Download {
    fn unless(dry_run: bool) -> Self {
        if dry_run { Self::Later } else { Self::Now }
    }
}

/// The model's files, downloaded where they are not here yet and that is wanted.
pub(crate) fn from_hub(
    id: &str,
    args: &BuildArgs,
    download: Download,
    interrupt: &Interrupt,
) -> Result<Chosen, Failure> {
    let hub = Hub::from_env()?;
    let request = Request::new(id).at(&args.revision);
    let stop = interrupt.flag();
    let snapshot = if download == Download::Later {
        let plan = hub.plan(&request, &stop)?;
        // What other programs left in the cache may lack files that this one needs.
        let is_whole = plan.missing().next().is_none();
        match hub.cached(&request.at(&plan.commit))?.filter(|_| is_whole) {
            Some(snapshot) => snapshot,
            None => return Ok(Chosen::ToFetch(plan)),
        }
    } else {
        let fetching = Fetching::new(args.json);
        let snapshot = hub.fetch(&request, &fetching, &stop)?;
        fetching.end(id, &snapshot);
        snapshot
    };
    if let Some(name) = &snapshot.renamed_to {
        anstream::eprintln!("note: {id} is called {name} now; it was taken from there");
    }
    if !snapshot.is_listed {
        anstream::eprintln!(
            "note: the files of {id} at {} are not listed in the cache; what it holds is taken for all there is",
            snapshot.commit
        );
    }
    if let Source::Unreachable(why) = &snapshot.source {
        anstream::eprintln!(
            "note: {why}\nnote: taking {id} as the cache has it, at {}; a newer one may be out",
            snapshot.commit
        );
    }
    let provenance = Provenance::Hub {
        model_id: id.to_owned(),
        revision: args.revision.clone(),
        commit: snapshot.commit.clone(),
    };
    Ok(Chosen::Here(ModelSource::Folder { path: snapshot.path, provenance }))
}

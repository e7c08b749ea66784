//! Which model is meant: `--model-id`, `--source`, what the agent runs now, or what the agent map names.

use std::path::Path;

use hub_fetch::{FetchError, Graphs, Hub, Plan, Request, Snapshot, Source};
use model_loader::AgentMap;
use model_store::{AgentName, Current, ModelStore, exit};
use onnx_export::ExportError;
use trt_compiler::{CompileError, Interrupt, ModelSource, Provenance};

use crate::cli::BuildArgs;
use crate::failure::Failure;
use crate::fetching::Fetching;

/// Where a repository has its graph.
const GRAPHS: [&str; 2] = ["onnx/model.onnx", "model.onnx"];
/// Lies where a model's own files lie.
const TOKENIZER: &str = "tokenizer.json";

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

/// The model that `--from-onnx`, `--model-id` or `--source` names.
pub(crate) fn named(args: &BuildArgs, interrupt: &Interrupt) -> Result<Option<Chosen>, Failure> {
    if let Some(onnx) = &args.from_onnx {
        return from_onnx(onnx, args.source.as_deref()).map(Chosen::Here).map(Some);
    }
    match (&args.model_id, &args.source) {
        (Some(id), _) => {
            from_hub(id, args, graphs(args), Download::unless(args.dry_run), interrupt).map(Some)
        }
        (None, Some(folder)) if args.use_repo_onnx => {
            its_graph(from_folder(folder)?, &GRAPHS).map(Chosen::Here).map(Some)
        }
        (None, Some(folder)) => from_folder(folder).map(Chosen::Here).map(Some),
        (None, None) => Ok(None),
    }
}

fn graphs(args: &BuildArgs) -> Graphs {
    if args.use_repo_onnx { Graphs::Take } else { Graphs::Leave }
}

/// A graph in a file, with the model's folder where one is named.
fn from_onnx(onnx: &Path, folder: Option<&Path>) -> Result<ModelSource, Failure> {
    // A link is followed to the file by whoever reads it: its name says where its data lies, not its target's.
    let path = std::path::absolute(onnx).map_err(Failure::io)?;
    if !path.is_file() {
        let nothing = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(Failure::io(nothing).context(format!("cannot open the graph {}", onnx.display())));
    }
    let files = match folder {
        Some(folder) => from_folder(folder)?,
        None => from_folder(folder_beside(&path))?,
    };
    Ok(ModelSource::Graph { onnx: path, files: Box::new(files) })
}

/// Where the model's other files are: beside the graph, or one above where it lies in a repository's `onnx/`.
fn folder_beside(onnx: &Path) -> &Path {
    let folder = onnx.parent().unwrap_or(onnx);
    let above = folder.parent().filter(|_| folder.ends_with("onnx") && !folder.join(TOKENIZER).is_file());
    above.filter(|above| above.join(TOKENIZER).is_file()).unwrap_or(folder)
}

/// Whether a version was built from a graph that came as ONNX.
pub(crate) fn came_as_graph(version: &Current) -> bool {
    version.manifest().metadata.get("graph").is_some_and(|graph| graph.get("given").is_some())
}

/// The graph that a model has of its own, in the first of these places.
fn its_graph(files: ModelSource, places: &[&str]) -> Result<ModelSource, Failure> {
    let folder = files.folder();
    if let Some(onnx) = places.iter().map(|name| folder.join(name)).find(|path| path.is_file()) {
        return Ok(ModelSource::Graph { onnx, files: Box::new(files) });
    }
    let nothing = format!(
        "{} holds no {}; a graph of another name is taken with --from-onnx FILE",
        folder.display(),
        places.join(" and no ")
    );
    Err(Failure::message(exit::NOT_FOUND, nothing))
}

/// The model that the agent runs now, or that the agent map names for it.
pub(crate) fn of_agent(
    args: &BuildArgs,
    agent: &AgentName,
    store: &ModelStore,
    interrupt: &Interrupt,
) -> Result<Chosen, Failure> {
    if let Some(current) = store.get_current(agent)? {
        // What a version's graph was called before, it is called `model.onnx` in it.
        let places = if came_as_graph(&current) { &GRAPHS[1..] } else { &GRAPHS[..] };
        let source = ModelSource::Published(current);
        let source =
            if places.len() == 1 || args.use_repo_onnx { its_graph(source, places)? } else { source };
        return Ok(Chosen::Here(source));
    }
    let map = AgentMap::from_env()?;
    if let Some(id) = map.model_id(agent.as_str()) {
        return from_hub(id, args, graphs(args), Download::unless(args.dry_run), interrupt);
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

/// What to add to an error about a model of no known family that has a graph of its own.
const TAKE_GRAPH: &str = "it has an ONNX graph of its own: --use-repo-onnx takes it as it is";

/// A repository without safetensors may still have a graph.
fn without_weights(error: FetchError) -> Failure {
    let has_graph = matches!(
        &error,
        FetchError::NoWeights { graph: Some(_), .. } | FetchError::OnlyPickles { graph: Some(_), .. }
    );
    let failure = Failure::from(error);
    if has_graph { failure.next(TAKE_GRAPH) } else { failure }
}

/// Why a run came to nothing; of a model whose family is not known and that has a graph of its own, with that said.
pub(crate) fn failed(error: CompileError, source: &ModelSource) -> Failure {
    let is_unknown = matches!(&error, CompileError::Export(ExportError::UnsupportedFamily { .. }));
    let failure = Failure::from(error);
    if is_unknown && has_graph(source) { failure.next(TAKE_GRAPH) } else { failure }
}

fn has_graph(source: &ModelSource) -> bool {
    if GRAPHS.iter().any(|name| source.folder().join(name).is_file()) {
        return true;
    }
    let Provenance::Hub { model_id, commit, .. } = source.provenance() else { return false };
    // It was left where it is; the list of the commit's files is in the cache. Nobody is asked.
    let cached = Hub::from_env().and_then(|hub| hub.cached(&Request::new(model_id).at(commit)));
    cached.ok().flatten().is_some_and(|snapshot| snapshot.graph.is_some())
}

/// The model's files, downloaded where they are not here yet and that is wanted.
pub(crate) fn from_hub(
    id: &str,
    args: &BuildArgs,
    graphs: Graphs,
    download: Download,
    interrupt: &Interrupt,
) -> Result<Chosen, Failure> {
    let hub = Hub::from_env()?;
    let request = Request { graphs, ..Request::new(id).at(&args.revision) };
    let stop = interrupt.flag();
    let snapshot = if download == Download::Later {
        let plan = hub.plan(&request, &stop).map_err(without_weights)?;
        // What other programs left in the cache may lack files that this one needs.
        let is_whole = plan.missing().next().is_none();
        match hub.cached(&request.at(&plan.commit))?.filter(|_| is_whole) {
            // Asked for by its commit the cache has it; who said that this is the commit, the plan knows.
            Some(snapshot) => Snapshot { source: plan.source, ..snapshot },
            None => return Ok(Chosen::ToFetch(plan)),
        }
    } else {
        let fetching = Fetching::new(args.json);
        let snapshot = hub.fetch(&request, &fetching, &stop).map_err(without_weights)?;
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
    let source = ModelSource::Folder { path: snapshot.path, provenance };
    Ok(Chosen::Here(if graphs == Graphs::Take { its_graph(source, &GRAPHS)? } else { source }))
}

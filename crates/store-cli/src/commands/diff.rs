//! `model-store diff`.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Context;
use model_store::{AgentName, Current, FileEntry, PayloadPath, Selector, VersionDiff, exit, human_size};
use serde::Serialize;
use tensor_diff::{Tensor, TensorDiff, TensorError, TensorTable, checkpoint_name, diff_observed};

use crate::cli::Global;
use crate::meter::Meter;
use crate::{human, out};

/// So many tensors of a checkpoint are shown to people; `--json` has all.
const TENSORS_SHOWN: usize = 50;

const EXAMPLES: &str = "\
Examples:
  model-store diff scout v1                what changed from v1 to the current version
  model-store diff scout v1 v2 --no-tensors
  model-store diff scout champion candidate --json | jq '.tensors[].changed[].name'";

/// Show what differs between two versions: files, and the tensors of safetensors files
///
/// Files are compared by their manifests' digests; damage is for `verify` to find. Shards of a checkpoint are
/// compared as a whole, so sharding otherwise is no difference of its tensors.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The agent
    agent: AgentName,
    /// The old side: a version, a ref, or `current`
    old: Selector,
    /// The new side
    #[arg(default_value = "current")]
    new: Selector,
    /// Do not look into safetensors files
    #[arg(long)]
    no_tensors: bool,
    /// End with 1 where the versions differ
    #[arg(long)]
    exit_code: bool,
}

#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    files: VersionDiff,
    tensors: Vec<Comparison>,
}

/// The tensors of a checkpoint that is in both versions.
#[derive(Serialize)]
struct Comparison {
    /// The name of its file, or the one that its shards would have together.
    checkpoint: String,
    #[serde(flatten)]
    found: Option<TensorDiff>,
    /// Why its tensors could not be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn run(global: &Global, args: &Args) -> anyhow::Result<u8> {
    let store = global.open()?;
    let (old, new) = (store.select(&args.agent, &args.old)?, store.select(&args.agent, &args.new)?);
    let files = store.diff(&old, &new)?;
    let pairs = if args.no_tensors { Vec::new() } else { Pair::all(&files) };
    let meter = Meter::start("comparing", pairs.iter().map(|pair| pair.new_bytes).sum())?;
    let observer = meter.observer();
    let mut tensors = Vec::new();
    for pair in pairs {
        let checkpoint = match pair.compare(&old, &new, &mut |bytes| observer(bytes)) {
            Ok(found) => Comparison { checkpoint: pair.checkpoint, found: Some(found), error: None },
            Err(e) => match e.downcast_ref::<TensorError>() {
                Some(TensorError::Stopped) => {
                    meter.clear();
                    out::plain_error("stopped");
                    return Ok(exit::INTERRUPTED);
                }
                // What only carries the name of a safetensors file is still a file that differs.
                Some(TensorError::Broken { .. } | TensorError::Twice { .. }) => {
                    Comparison { checkpoint: pair.checkpoint, found: None, error: Some(e.to_string()) }
                }
                _ => return Err(e),
            },
        };
        tensors.push(checkpoint);
    }
    meter.clear();
    let answer = Answer { files, tensors };
    out::unless_closed(if global.json { out::json(&answer) } else { print(&answer) })?;
    let differ = args.exit_code && !answer.files.is_empty();
    Ok(if differ { exit::FAILURE } else { exit::OK })
}

/// The files of a checkpoint that are not the same on both sides.
#[derive(Default)]
struct Pair {
    checkpoint: String,
    old: Vec<PayloadPath>,
    new: Vec<PayloadPath>,
    new_bytes: u64,
}

impl Pair {
    /// Every checkpoint that is on both sides and not the same.
    fn all(files: &VersionDiff) -> Vec<Self> {
        let mut pairs: BTreeMap<String, Self> = BTreeMap::new();
        let mut add = |old: Option<&PayloadPath>, new: Option<&PayloadPath>, new_bytes: u64| {
            let name = |path: Option<&PayloadPath>| path.and_then(|path| checkpoint_name(path.as_str()));
            let (of_old, of_new) = (name(old), name(new));
            // The same bytes as another shard of the same checkpoint.
            let only_renamed = old.is_some() && new.is_some() && old != new && of_old == of_new;
            if only_renamed {
                return;
            }
            if let (Some(name), Some(old)) = (of_old, old) {
                pairs.entry(name).or_default().old.push(old.clone());
            }
            if let (Some(name), Some(new)) = (of_new, new) {
                let pair = pairs.entry(name).or_default();
                pair.new.push(new.clone());
                pair.new_bytes = pair.new_bytes.saturating_add(new_bytes);
            }
        };
        for file in &files.changed {
            add(Some(&file.path), Some(&file.path), file.size.new);
        }
        for file in &files.renamed {
            add(Some(&file.path.old), Some(&file.path.new), file.size);
        }
        files.removed.iter().for_each(|file| add(Some(&file.path), None, 0));
        files.added.iter().for_each(|file| add(None, Some(&file.path), file.size));
        let on_both_sides =
            pairs.into_iter().filter(|(_, pair)| !pair.old.is_empty() && !pair.new.is_empty());
        on_both_sides.map(|(checkpoint, pair)| Self { checkpoint, ..pair }).collect()
    }

    fn compare(
        &self,
        old: &Current,
        new: &Current,
        observe: &mut dyn FnMut(u64) -> std::ops::ControlFlow<()>,
    ) -> anyhow::Result<TensorDiff> {
        let (old, new) = (table(old, &self.old)?, table(new, &self.new)?);
        Ok(diff_observed(&old, &new, observe)?)
    }
}

fn table(version: &Current, paths: &[PayloadPath]) -> anyhow::Result<TensorTable> {
    let read = |path: &PayloadPath| -> anyhow::Result<TensorTable> {
        let name = format!("{}/{}/{path}", version.agent(), version.version());
        Ok(TensorTable::read(name, version.open(path)?)?)
    };
    let tables = paths.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    TensorTable::unite(tables).context("the shards of a checkpoint could not be united")
}

fn print(answer: &Answer) -> anyhow::Result<()> {
    let mut out = out::stdout();
    let files = &answer.files;
    let (old, new) = (&files.versions.old, &files.versions.new);
    let title = format!("{}  {} → {}", new.agent, old.version, new.version);
    writeln!(out, "{}", out::styled(out::BOLD, title))?;
    for side in [old, new].into_iter().filter(|side| side.hashed_now) {
        writeln!(out, "{} has no list of files: they were read as they are now", side.version)?;
    }
    for problem in &files.not_compared {
        writeln!(
            out,
            "{} {}",
            out::styled(out::LOOK, "not compared"),
            human::harmless(&problem.to_string())
        )?;
    }
    if files.is_empty() {
        writeln!(out, "the same {}", sum(files.unchanged_files, files.unchanged_bytes))?;
        return Ok(());
    }
    let rows = rows(files);
    if !rows.is_empty() {
        for line in human::table(&["", "OLD", "NEW", "PATH"], &[1, 2], rows) {
            writeln!(out, "{line}")?;
        }
    }
    for line in link_lines(files) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "{} as before", sum(files.unchanged_files, files.unchanged_bytes))?;
    answer.tensors.iter().try_for_each(|checkpoint| print_tensors(&mut out, checkpoint))
}

fn sum(files: usize, bytes: u64) -> String {
    format!("{}, {}", human::count(files, "file"), human_size(bytes))
}

/// In the order of the new paths, a removed file where it was.
fn rows(files: &VersionDiff) -> Vec<Vec<String>> {
    let none = || "-".to_owned();
    let row = |what: &str, old: String, new: String, path: String| {
        vec![what.to_owned(), old, new, human::harmless(&path)]
    };
    let alone = |file: &FileEntry| (human_size(file.size), file.path.to_string());
    let mut rows = Vec::new();
    for file in &files.added {
        let (size, path) = alone(file);
        rows.push((file.path.clone(), row("added", none(), size, path)));
    }
    for file in &files.removed {
        let (size, path) = alone(file);
        rows.push((file.path.clone(), row("removed", size, none(), path)));
    }
    for file in &files.changed {
        let (old, new) = (human_size(file.size.old), human_size(file.size.new));
        rows.push((file.path.clone(), row("changed", old, new, file.path.to_string())));
    }
    for file in &files.renamed {
        let (size, paths) = (human_size(file.size), format!("{} → {}", file.path.old, file.path.new));
        rows.push((file.path.new.clone(), row("renamed", size.clone(), size, paths)));
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    rows.into_iter().map(|(_, row)| row).collect()
}

fn link_lines(files: &VersionDiff) -> Vec<String> {
    let added = files.links_added.iter().map(|link| format!("link added    {} → {}", link.path, link.target));
    let removed =
        files.links_removed.iter().map(|link| format!("link removed  {} → {}", link.path, link.target));
    let changed = files
        .links_changed
        .iter()
        .map(|link| format!("link changed  {} → {}   (was {})", link.path, link.target.new, link.target.old));
    added.chain(removed).chain(changed).map(|line| human::harmless(&line)).collect()
}

fn print_tensors(out: &mut impl Write, checkpoint: &Comparison) -> anyhow::Result<()> {
    let name = human::harmless(&checkpoint.checkpoint);
    let found = match (&checkpoint.found, &checkpoint.error) {
        (Some(found), _) => found,
        (None, error) => {
            let why = human::harmless(error.as_deref().unwrap_or_default());
            writeln!(out, "\n{} {why}", out::styled(out::LOOK, format!("tensors of {name} not compared:")))?;
            return Ok(());
        }
    };
    let (changed, added, removed) = (found.changed.len(), found.added.len(), found.removed.len());
    let counts =
        format!("{changed} changed, {added} added, {removed} removed, {} as before", found.unchanged);
    writeln!(out, "\n{}  {counts}", out::styled(out::BOLD, format!("tensors of {name}")))?;
    if found.metadata_differs {
        writeln!(out, "the header's __metadata__ differs")?;
    }
    if found.is_empty() {
        if !found.metadata_differs {
            writeln!(out, "only their places in the files differ")?;
        }
        return Ok(());
    }
    let rows = tensor_rows(found);
    let more = rows.len().saturating_sub(TENSORS_SHOWN);
    let shown = rows.into_iter().take(TENSORS_SHOWN).collect();
    for line in human::table(&["", "OLD", "NEW", "MAX |Δ|", "TENSOR"], &[3], shown) {
        writeln!(out, "{line}")?;
    }
    if more > 0 {
        writeln!(out, "and {more} more; --json has all")?;
    }
    Ok(())
}

fn tensor_rows(found: &TensorDiff) -> Vec<Vec<String>> {
    let none = || "-".to_owned();
    let one = |tensor: &Tensor| shortened(format!("{} {:?}", tensor.dtype, tensor.shape));
    let changed = found.changed.iter().map(|tensor| {
        let (old, new) = (&tensor.dtype.old, &tensor.dtype.new);
        let distance = match tensor.max_abs_difference {
            Some(distance) => format!("{distance:.3e}"),
            None if tensor.bytes_differ => none(),
            None => "same bytes".to_owned(),
        };
        (
            &tensor.name,
            [
                "changed".into(),
                shortened(format!("{old} {:?}", tensor.shape.old)),
                shortened(format!("{new} {:?}", tensor.shape.new)),
                distance,
            ],
        )
    });
    let added = found.added.iter().map(|t| (&t.name, ["added".into(), none(), one(&t.tensor), none()]));
    let removed = found.removed.iter().map(|t| (&t.name, ["removed".into(), one(&t.tensor), none(), none()]));
    let rows = changed.chain(added).chain(removed);
    rows.map(|(name, cells)| cells.into_iter().chain([shortened(human::harmless(name))]).collect()).collect()
}

/// A cell that fits a screen: a name or a shape may be as long as its file.
fn shortened(text: String) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

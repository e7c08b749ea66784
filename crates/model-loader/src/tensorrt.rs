//! A version's TensorRT engine in the place of its encoder, on a GPU.

use std::fs;
use std::path::{Path, PathBuf};

use engine_runtime::{DESCRIPTION_FILE, Engine, EngineRecord, Input, RuntimeError, RuntimeOptions, Values};
use model_store::with_causes;

use crate::graph::{Graph, Runs};
use crate::{Backend, Device, LoadError, LoadOptions, Output, TokenBatch};

/// Where a version's engines are.
const FOLDER: &str = "engines";
/// How deep below that: the kind and version of TensorRT, then GPU generations and precision.
const DEPTH: usize = 3;
/// Rows are padded to a multiple of this, so that there are few shapes to compile kernels for and to record.
const STEP: usize = 16;
const INPUTS: [&str; 3] = ["input_ids", "attention_mask", "token_type_ids"];

/// Loads the first engine of a version that runs on the GPU asked for and gives one of the outputs `(name, axes)`; with
/// it, the most tokens of a text that it takes.
pub(crate) fn find(
    version: &Path,
    outputs: &[(&str, usize)],
    pad_id: u32,
    options: &LoadOptions,
) -> Result<(Graph, usize), LoadError> {
    let device = match options.device {
        Device::Cpu => 0,
        Device::Cuda(device) => device,
    };
    let mut folders = Vec::new();
    engines_below(&version.join(FOLDER), DEPTH, &mut folders);
    folders.sort();
    if folders.is_empty() {
        let next = "`build-engine --agent AGENT` builds one, or take the backend `auto`";
        return Err(unusable(format!("{} holds no engine; {next}", version.display())));
    }
    let mut reasons = Vec::new();
    for folder in folders {
        let how = RuntimeOptions { device, version: Some(version.to_owned()), ..RuntimeOptions::default() };
        match open(&folder, &how, outputs, pad_id) {
            Ok(found) => return Ok(found),
            Err(reason) => {
                let name = folder.strip_prefix(version).unwrap_or(&folder);
                reasons.push(format!("{}: {reason}", name.display()));
            }
        }
    }
    Err(unusable(reasons.join("; ")))
}

fn unusable(reason: String) -> LoadError {
    LoadError::Backend { backend: Backend::TensorRt, reason }
}

fn engines_below(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if folder.join(DESCRIPTION_FILE).is_file() {
        found.push(folder.to_owned());
    }
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // A link is not followed: a version holds none.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            engines_below(&entry.path(), depth, found);
        }
    }
}

fn open(
    folder: &Path,
    how: &RuntimeOptions,
    outputs: &[(&str, usize)],
    pad_id: u32,
) -> Result<(Graph, usize), String> {
    let told = |error: RuntimeError| with_causes(&error);
    let record = EngineRecord::of_folder(folder).map_err(told)?;
    let (output, axes) = wanted(&record, outputs)?;
    let profiles = profiles(&record)?;
    // Asked first, since it costs nothing: the plan is read only where it can run.
    engine_runtime::fit(&record, how.library.as_deref(), how.device).map_err(told)?;
    let engine = Engine::open(folder, how).map_err(told)?;
    let longest = profiles.iter().map(|profile| profile.longest).max().unwrap_or_default();
    let runner = InTensorRt { engine, profiles, pad_id };
    // What loads may still not run, and whoever may take another backend has to know it now.
    let trial = TokenBatch::from_parts(1, 1, vec![pad_id], vec![1], vec![0]);
    trial.and_then(|batch| runner.run(&batch, &output)).map_err(|error| with_causes(&error))?;
    let gpu = &runner.engine.fit().gpu;
    tracing::info!(path = %folder.display(), %gpu, output, longest, "engine loaded in TensorRT");
    Ok((Graph::new(Box::new(runner), output, axes, pad_id), longest))
}

/// The first of the outputs that the engine has: `(name, axes)`.
fn wanted(record: &EngineRecord, outputs: &[(&str, usize)]) -> Result<(String, usize), String> {
    let has = |(name, axes): &&(&str, usize)| {
        record.outputs.iter().any(|output| output.name == *name && output.shape.len() == *axes)
    };
    let found = outputs.iter().find(has).map(|(name, axes)| ((*name).to_owned(), *axes));
    found.ok_or_else(|| {
        let names: Vec<_> = outputs.iter().map(|(name, axes)| format!("`{name}` of {axes} axes")).collect();
        format!("it has no output {}", names.join(" or "))
    })
}

/// The sizes of one profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sizes {
    /// The fewest texts.
    fewest: usize,
    /// The most texts.
    most: usize,
    /// The fewest tokens of a text.
    shortest: usize,
    /// The most tokens of a text.
    longest: usize,
}

fn profiles(record: &EngineRecord) -> Result<Vec<Sizes>, String> {
    let sizes = |inputs: Vec<engine_runtime::InputShape>| {
        for input in &inputs {
            if !INPUTS.contains(&input.name.as_str()) || input.dims.len() != 2 {
                let names = INPUTS.join(", ");
                return Err(format!("its input `{}` is none of {names} of two dimensions", input.name));
            }
        }
        let dims = inputs.first().map(|input| (input.dims[0], input.dims[1]));
        let (batch, sequence) = dims.ok_or("it has no inputs")?;
        Ok(Sizes {
            fewest: batch.min as usize,
            most: batch.max as usize,
            shortest: sequence.min as usize,
            longest: sequence.max as usize,
        })
    };
    record.profiles().into_iter().map(sizes).collect()
}

/// An engine on a GPU.
#[derive(Debug)]
struct InTensorRt {
    engine: Engine,
    profiles: Vec<Sizes>,
    pad_id: u32,
}

impl Runs for InTensorRt {
    fn backend(&self) -> Backend {
        Backend::TensorRt
    }

    fn path(&self) -> &Path {
        self.engine.folder()
    }

    /// Batches larger than any profile run in parts.
    fn run(&self, batch: &TokenBatch, name: &str) -> Result<Output, LoadError> {
        let seq = batch.seq();
        let Some(most) = most_rows(&self.profiles, seq) else {
            let longest = self.profiles.iter().map(|profile| profile.longest).max().unwrap_or_default();
            let path = self.path().display();
            return Err(LoadError::Tokens(format!("{path} takes {longest} tokens in a row, not {seq}")));
        };
        let mut whole: Option<Output> = None;
        for first in (0..batch.rows()).step_by(most) {
            let rows = most.min(batch.rows() - first);
            let part = self.run_part(batch, first, rows, name)?;
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => {
                    whole.shape[0] += rows;
                    whole.values.extend(part.values);
                }
            }
        }
        whole.ok_or_else(|| LoadError::Tokens("there are no rows".to_owned()))
    }

    fn groups(&self, lengths: &[usize]) -> Vec<Vec<usize>> {
        groups(&self.profiles, lengths)
    }
}

impl InTensorRt {
    fn run_part(
        &self,
        batch: &TokenBatch,
        first: usize,
        rows: usize,
        name: &str,
    ) -> Result<Output, LoadError> {
        let seq = batch.seq();
        let (full_rows, full_seq) = padded(&self.profiles, rows, seq);
        let array = |values: &[u32], fill: u32| {
            let row = |row: usize| {
                // A row too many is the last one again: one without any token would make NaN of its softmax.
                let start = (first + row.min(rows - 1)) * seq;
                let values = values[start..start + seq].iter().copied();
                values.chain(std::iter::repeat_n(fill, full_seq - seq)).map(i64::from)
            };
            Values::I64((0..full_rows).flat_map(row).collect())
        };
        let inputs = self.engine.record().inputs.iter().map(|input| {
            let values = match input.name.as_str() {
                "input_ids" => array(batch.ids(), self.pad_id),
                "attention_mask" => array(batch.mask(), 0),
                _ => array(batch.type_ids(), 0),
            };
            Input { name: input.name.clone(), shape: vec![full_rows, full_seq], values }
        });
        let outputs = self.engine.run(inputs.collect()).map_err(|error| unusable(with_causes(&error)))?;
        let output = outputs.into_iter().find(|output| output.name == name);
        let output = output.ok_or_else(|| unusable(format!("it gave no `{name}`")))?;
        Ok(unpadded(output.shape, output.values, rows, (full_seq, seq)))
    }
}

/// The most texts of this length that run at once; `None` for texts that are too long.
fn most_rows(profiles: &[Sizes], seq: usize) -> Option<usize> {
    profiles.iter().filter(|profile| seq <= profile.longest).map(|profile| profile.most.max(1)).max()
}

/// Texts of like length together, longest first, as many as run at once.
fn groups(profiles: &[Sizes], lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(lengths[*index]));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for index in order {
        match groups.last_mut() {
            Some(group) if room > 0 => {
                group.push(index);
                room -= 1;
            }
            _ => {
                groups.push(vec![index]);
                // What is too long is refused where it runs.
                room = most_rows(profiles, lengths[index]).unwrap_or(1) - 1;
            }
        }
    }
    groups
}

/// The size that a batch is padded to: the next multiple of [`STEP`] tokens, and no less than a profile takes.
fn padded(profiles: &[Sizes], rows: usize, seq: usize) -> (usize, usize) {
    let takes = |profile: &&Sizes| rows <= profile.most && seq <= profile.longest;
    let Some(profile) = profiles.iter().filter(takes).min_by_key(|profile| profile.most * profile.longest)
    else {
        return (rows, seq);
    };
    let seq = seq.next_multiple_of(STEP).min(profile.longest).max(profile.shortest);
    (rows.max(profile.fewest), seq)
}

/// An output without the rows and tokens that were padding.
fn unpadded(mut shape: Vec<usize>, mut values: Vec<f32>, rows: usize, seq: (usize, usize)) -> Output {
    let (full_seq, seq) = seq;
    let row: usize = shape.iter().skip(1).product();
    values.truncate(rows * row);
    if let Some(first) = shape.first_mut() {
        *first = rows;
    }
    if shape.len() == 3 && shape[1] == full_seq && seq < full_seq {
        let width = shape[2];
        let kept = values.chunks_exact((full_seq * width).max(1)).flat_map(|row| &row[..seq * width]);
        values = kept.copied().collect();
        shape[1] = seq;
    }
    Output { shape, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: Sizes = Sizes { fewest: 1, most: 64, shortest: 1, longest: 512 };
    const SMALL: Sizes = Sizes { fewest: 2, most: 4, shortest: 8, longest: 40 };

    #[test]
    fn batches_are_padded_to_few_shapes_within_a_profile() {
        let check = |profiles: &[Sizes], size: (usize, usize), expected: (usize, usize)| {
            assert_eq!(padded(profiles, size.0, size.1), expected, "{profiles:?} {size:?}");
        };
        check(&[LARGE], (3, 17), (3, 32));
        check(&[LARGE], (3, 32), (3, 32));
        check(&[LARGE], (3, 509), (3, 512));
        check(&[LARGE, SMALL], (1, 3), (2, 16));
        check(&[LARGE, SMALL], (4, 39), (4, 40));
        check(&[LARGE, SMALL], (5, 39), (5, 48));
    }

    #[test]
    fn texts_run_in_groups_as_large_as_their_length_allows() {
        let profiles = [Sizes { most: 2, ..LARGE }, Sizes { longest: 10, ..SMALL }];
        assert_eq!(groups(&profiles, &[5, 100, 6, 7, 90, 8, 9]), [vec![1, 4], vec![6, 5, 3, 2], vec![0]]);
        assert_eq!(groups(&profiles, &[600, 5]), [vec![0], vec![1]]);
        assert!(groups(&profiles, &[]).is_empty());
    }

    #[test]
    fn padding_leaves_no_trace() {
        let values = |count: u8| (0..count).map(f32::from).collect::<Vec<f32>>();
        let tokens = unpadded(vec![3, 2, 2], values(12), 2, (2, 1));
        assert_eq!((tokens.shape, tokens.values), (vec![2, 1, 2], vec![0.0, 1.0, 4.0, 5.0]));
        let rows = unpadded(vec![3, 2], values(6), 1, (4, 1));
        assert_eq!((rows.shape, rows.values), (vec![1, 2], vec![0.0, 1.0]));
        let as_is = unpadded(vec![1, 2, 2], values(4), 1, (2, 2));
        assert_eq!((as_is.shape, as_is.values), (vec![1, 2, 2], values(4)));
    }
}

//! The engine itself through the gate: what a plan gives on a GPU, beside what the reference gives.
//!
//! The gate of a build judges the graph, because no plan runs on a CPU. Where there is a GPU the plan is judged as well,
//! on the same texts and by the same thresholds: a mistake inside TensorRT shows here and nowhere else.

use std::path::Path;

use engine_runtime::{Engine, Input, InputShape, RuntimeError, Values};
use model_loader::{Output, TokenBatch, Tokens};
use onnx_export::{Checkpoint, Head, Precision};

use crate::error::CompileError;
use crate::gate::{Gate, ThresholdWishes, Verdict};
use crate::interrupt::Interrupt;
use crate::job::{KvCache, head_of, thresholds};
use crate::subject::{Subject, Words};

/// Tokens in one batch of the check, padding included, as long as a profile takes fewer.
const CHECK_TOKENS: usize = 512;

/// Runs the texts through a loaded engine and through the model in `folder` in fp32, and judges how far they are apart.
///
/// Texts are cut at the longest sequence of the engine's profiles. The thresholds are those of the engine's precision,
/// with `wishes` in their place.
pub fn judge_engine(
    engine: &Engine,
    folder: &Path,
    texts: &[String],
    wishes: ThresholdWishes,
    interrupt: &Interrupt,
) -> Result<Verdict, CompileError> {
    let model = Model::open(engine, folder)?;
    let reference = Subject::open(folder, &model.head)?;
    let scores = matches!(
        model.head,
        Head::SequenceClassification | Head::TokenClassification | Head::CausalLm { .. }
    );
    let mut gate = Gate::new(model.head.output(), scores);
    for (numbers, batch) in model.batches(texts)? {
        interrupt.check()?;
        gate.add(&batch, &numbers, &reference.run(&batch)?, &model.run(&batch)?);
    }
    Ok(gate.judge(wishes.over(thresholds(model.precision, &model.head))))
}

/// A loaded engine and the tokens that it is fed.
pub(crate) struct Model<'a> {
    engine: &'a Engine,
    words: Words,
    head: Head,
    precision: Precision,
    /// The fewest and most texts and tokens of the profile that takes the longest texts.
    sizes: Sizes,
}

/// What a profile takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) rows: (usize, usize),
    pub(crate) tokens: (usize, usize),
}

impl Sizes {
    /// Those of each profile; an input of other than two dimensions has none.
    pub(crate) fn of(profiles: &[Vec<InputShape>]) -> Vec<Self> {
        let sizes = profiles.iter().filter_map(|inputs| match inputs.first()?.dims.as_slice() {
            [batch, sequence] => Some(Self {
                rows: (batch.min as usize, batch.max as usize),
                tokens: (sequence.min as usize, sequence.max as usize),
            }),
            _ => None,
        });
        sizes.collect()
    }
}

impl<'a> Model<'a> {
    pub(crate) fn open(engine: &'a Engine, folder: &Path) -> Result<Self, CompileError> {
        let has_cache = engine.record().inputs.iter().any(InputShape::is_cache);
        let kv_cache = if has_cache { KvCache::With } else { KvCache::Without };
        let head = head_of(&Checkpoint::open(folder)?, kv_cache)?;
        let words = Words::open(folder, &head)?;
        let described = |reason: String| RuntimeError::Description {
            path: engine.folder().join(engine_runtime::DESCRIPTION_FILE),
            reason,
        };
        let record = engine.record();
        let precision = record.precision.parse().map_err(|_| {
            CompileError::Runtime(described(format!("{:?} is no precision", record.precision)))
        })?;
        let profiles = Sizes::of(&record.profiles());
        let sizes = profiles.into_iter().max_by_key(|profile| (profile.tokens.1, profile.rows.1));
        let sizes = sizes.ok_or_else(|| described("its inputs are no rows of tokens".to_owned()))?;
        Ok(Self { engine, words, head, precision, sizes })
    }

    /// What the engine gives for a batch.
    pub(crate) fn run(&self, batch: &TokenBatch) -> Result<Output, CompileError> {
        let name = self.head.output();
        let outputs = self.engine.run(inputs(self.engine, batch)?)?;
        let output = outputs.into_iter().find(|output| output.name == name);
        let output = output.ok_or_else(|| RuntimeError::Batch(format!("it gives no `{name}`")))?;
        Ok(Output { shape: output.shape, values: output.values })
    }

    /// The texts as batches that the engine takes, short ones first, each with the numbers of its texts, from 1.
    fn batches(&self, texts: &[String]) -> Result<Vec<(Vec<usize>, TokenBatch)>, CompileError> {
        let mut texts: Vec<(usize, Tokens)> = (1..).zip(self.words.encode(texts)?).collect();
        for (_, tokens) in &mut texts {
            tokens.ids.truncate(self.sizes.tokens.1);
            tokens.type_ids.truncate(self.sizes.tokens.1);
        }
        texts.sort_by_key(|(_, tokens)| tokens.len());
        let mut groups: Vec<Vec<(usize, Tokens)>> = Vec::new();
        for (number, tokens) in texts {
            match groups.last_mut() {
                // The text at hand is the longest so far, so the rectangle is as wide as it.
                Some(group)
                    if group.len() < self.sizes.rows.1
                        && (group.len() + 1) * tokens.len() <= CHECK_TOKENS =>
                {
                    group.push((number, tokens));
                }
                _ => groups.push(vec![(number, tokens)]),
            }
        }
        groups.into_iter().map(|group| self.full(group)).collect()
    }

    /// A batch no smaller than the engine takes: texts come again, and rows are padded.
    fn full(&self, mut group: Vec<(usize, Tokens)>) -> Result<(Vec<usize>, TokenBatch), CompileError> {
        let texts = group.clone();
        group.extend(texts.iter().cycle().take(self.sizes.rows.0.saturating_sub(texts.len())).cloned());
        let batch = TokenBatch::pad(group.iter().map(|(_, tokens)| tokens), self.words.pad_id());
        let batch = widened(&batch, self.sizes.tokens.0, self.words.pad_id())?;
        Ok((group.into_iter().map(|(number, _)| number).collect(), batch))
    }

    /// A full batch of this size, of the tokens of these texts over and over.
    pub(crate) fn filled(
        &self,
        texts: &[String],
        rows: usize,
        seq: usize,
    ) -> Result<TokenBatch, CompileError> {
        let tokens: Vec<u32> = self.words.encode(texts)?.into_iter().flat_map(|tokens| tokens.ids).collect();
        if tokens.is_empty() {
            return Err(RuntimeError::Batch("there are no texts".to_owned()).into());
        }
        let ids = tokens.iter().copied().cycle().take(rows * seq).collect();
        TokenBatch::from_parts(rows, seq, ids, vec![1; rows * seq], vec![0; rows * seq])
            .map_err(CompileError::Reference)
    }
}

/// The same rows, padded to at least this length.
fn widened(batch: &TokenBatch, seq: usize, pad_id: u32) -> Result<TokenBatch, CompileError> {
    if batch.seq() >= seq {
        return Ok(batch.clone());
    }
    let wide = |values: &[u32], fill: u32| {
        let rows = values.chunks_exact(batch.seq());
        rows.flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(fill, seq - row.len()))).collect()
    };
    let (ids, mask, types) = (wide(batch.ids(), pad_id), wide(batch.mask(), 0), wide(batch.type_ids(), 0));
    TokenBatch::from_parts(batch.rows(), seq, ids, mask, types).map_err(CompileError::Reference)
}

/// A batch as the engine's inputs; a cache is empty, so a language model takes whole texts.
fn inputs(engine: &Engine, batch: &TokenBatch) -> Result<Vec<Input>, RuntimeError> {
    let shape = vec![batch.rows(), batch.seq()];
    let input = |input: &InputShape| {
        let values = match input.name.as_str() {
            "input_ids" => batch.ids_i64(),
            "attention_mask" => batch.mask_i64(),
            "token_type_ids" => batch.type_ids_i64(),
            _ if input.is_cache() => {
                // [batch, heads, tokens, size], of which the second and the last are fixed.
                let fixed = |at: usize| input.dims.get(at).map_or(0, |span| span.max as usize);
                let shape = vec![batch.rows(), fixed(1), 0, fixed(3)];
                return Ok(Input { name: input.name.clone(), shape, values: Values::F32(Vec::new()) });
            }
            other => {
                let reason = format!("its input `{other}` is none that a tokenizer gives");
                return Err(RuntimeError::Batch(reason));
            }
        };
        Ok(Input { name: input.name.clone(), shape: shape.clone(), values: Values::I64(values) })
    };
    engine.record().inputs.iter().map(input).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    #[test]
    fn rows_are_padded_as_they_would_have_been() -> Result<(), CompileError> {
        let tokens = [1_u32, 2].map(|id| Tokens { ids: vec![id; 2], type_ids: vec![0; 2] });
        let batch = TokenBatch::pad(&tokens, 9);
        let wide = widened(&batch, 3, 9)?;
        assert_eq!((wide.rows(), wide.seq()), (2, 3));
        assert_eq!(wide.ids(), [1, 1, 9, 2, 2, 9]);
        assert_eq!(wide.mask(), [1, 1, 0, 1, 1, 0]);
        assert_eq!(widened(&batch, 1, 9)?, batch);
        Ok(())
    }

    #[test]
    fn the_sizes_of_a_profile_are_those_of_its_rows_of_tokens() {
        let input = |profile: &Profile| InputShape::new("input_ids", onnx_export::DataType::I64, profile);
        let found = Sizes::of(&[vec![input(&Profile::DEFAULT)], vec![input(&Profile::DECODER)], vec![]]);
        let default = Sizes { rows: (1, 64), tokens: (1, 512) };
        assert_eq!(found, [default, Sizes { rows: (1, 1), tokens: (1, 1024) }]);
    }
}

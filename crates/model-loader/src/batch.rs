//! Tokens of texts, and the padded rectangles that models take.

use crate::LoadError;

/// The tokens of one text, special tokens included, without padding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Ids in the model's vocabulary.
    pub ids: Vec<u32>,
    /// Segment ids, as long as `ids`; all 0 for single texts.
    pub type_ids: Vec<u32>,
}

impl Tokens {
    /// How many tokens there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// A batch of token rows of one length: `[rows, seq]`, row-major, padded on the right.
///
/// ```
/// use model_loader::{TokenBatch, Tokens};
///
/// let short = Tokens { ids: vec![101, 102], type_ids: vec![0, 0] };
/// let long = Tokens { ids: vec![101, 7592, 102], type_ids: vec![0, 0, 0] };
/// let batch = TokenBatch::pad(&[short, long], 0);
/// assert_eq!((batch.rows(), batch.seq()), (2, 3));
/// assert_eq!(batch.ids(), [101, 102, 0, 101, 7592, 102]);
/// assert_eq!(batch.mask(), [1, 1, 0, 1, 1, 1]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    rows: usize,
    seq: usize,
    ids: Vec<u32>,
    mask: Vec<u32>,
    type_ids: Vec<u32>,
}

impl TokenBatch {
    /// Pads the texts to the longest of them (at least one token) with the padding id of the tokenizer.
    #[must_use]
    pub fn pad<'a, T>(texts: T, pad_id: u32) -> Self
    where
        T: IntoIterator<Item = &'a Tokens>,
        T::IntoIter: Clone,
    {
        let texts = texts.into_iter();
        let seq = texts.clone().map(Tokens::len).max().unwrap_or_default().max(1);
        let mut batch = Self {
            rows: texts.clone().count(),
            seq,
            ids: Vec::new(),
            mask: Vec::new(),
            type_ids: Vec::new(),
        };
        for (row, text) in (1..).zip(texts) {
            batch.ids.extend(&text.ids);
            batch.type_ids.extend(&text.type_ids);
            batch.mask.resize(batch.ids.len(), 1);
            batch.ids.resize(row * seq, pad_id);
            batch.type_ids.resize(row * seq, 0);
            batch.mask.resize(row * seq, 0);
        }
        batch
    }

    /// Takes a batch as it is: three row-major `[rows, seq]` arrays. `mask` is 1 for a token and 0 for padding, which
    /// may be on either side.
    pub fn from_parts(
        rows: usize,
        seq: usize,
        ids: Vec<u32>,
        mask: Vec<u32>,
        type_ids: Vec<u32>,
    ) -> Result<Self, LoadError> {
        let size = rows.checked_mul(seq).filter(|size| *size > 0);
        if [ids.len(), mask.len(), type_ids.len()].iter().any(|len| Some(*len) != size) {
            let lens = format!("{}, {} and {}", ids.len(), mask.len(), type_ids.len());
            return Err(LoadError::Tokens(format!(
                "ids, mask and type ids have {lens} elements where [{rows}, {seq}] was announced"
            )));
        }
        if let Some(bad) = mask.iter().find(|m| **m > 1) {
            return Err(LoadError::Tokens(format!(
                "the mask holds {bad}; it is 1 for a token and 0 for padding"
            )));
        }
        Ok(Self { rows, seq, ids, mask, type_ids })
    }

    /// How many texts.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens per row, padding included.
    #[must_use]
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Token ids, `[rows, seq]`.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// 1 for a token, 0 for padding, `[rows, seq]`.
    #[must_use]
    pub fn mask(&self) -> &[u32] {
        &self.mask
    }

    /// Segment ids, `[rows, seq]`.
    #[must_use]
    pub fn type_ids(&self) -> &[u32] {
        &self.type_ids
    }

    /// The rows without their padding.
    pub(crate) fn texts(&self) -> Vec<Tokens> {
        let row = |row: usize| {
            let kept = (row * self.seq..(row + 1) * self.seq).filter(|index| self.mask[*index] == 1);
            let (ids, type_ids) = kept.map(|index| (self.ids[index], self.type_ids[index])).unzip();
            Tokens { ids, type_ids }
        };
        (0..self.rows).map(row).collect()
    }

    /// The ids as ONNX graphs take them.
    #[must_use]
    pub fn ids_i64(&self) -> Vec<i64> {
        self.ids.iter().map(|x| i64::from(*x)).collect()
    }

    /// The mask as ONNX graphs take it.
    #[must_use]
    pub fn mask_i64(&self) -> Vec<i64> {
        self.mask.iter().map(|x| i64::from(*x)).collect()
    }

    /// The segment ids as ONNX graphs take them.
    #[must_use]
    pub fn type_ids_i64(&self) -> Vec<i64> {
        self.type_ids.iter().map(|x| i64::from(*x)).collect()
    }
}

/// Tokens that are run together: enough rows for the products, few enough for a layer's buffers to stay near the cache.
const GROUP_TOKENS: usize = 768;

/// Groups texts of like length, by their numbers of tokens: lists of indices, every index in one of them, longest texts
/// first. No more than is good for one run, and where there is little to do, a part for each worker.
pub(crate) fn groups(lengths: &[usize], workers: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<_> = (0..lengths.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(lengths[*index]));
    let total: usize = lengths.iter().sum();
    let budget = total.div_ceil(workers).min(GROUP_TOKENS);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for index in order {
        match groups.last_mut() {
            Some(group) if lengths[index] <= room => {
                group.push(index);
                room -= lengths[index];
            }
            _ => {
                groups.push(vec![index]);
                room = budget.saturating_sub(lengths[index]);
            }
        }
    }
    groups
}

/// Padded tokens of a rectangle on the CPU: what keeps a layer's buffers near the cache and its products large.
pub(crate) const CPU_TOKENS: usize = 1024;

/// Padded tokens of a rectangle on a GPU: enough to keep it busy, and no more, since larger ones hold more padding and the
/// host copies them. Of 1, 4, 16 and 64 thousand this was the fastest on an H100 (docs/gpu.md).
pub(crate) const GPU_TOKENS: usize = 4096;

/// Groups texts of like length for what computes on padded rectangles: lists of indices whose rectangle has no more than so
/// many tokens (or is one text), every index in one of them, longest texts first, so that the largest buffers come first.
pub(crate) fn rectangles(lengths: &[usize], tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<_> = (0..lengths.len()).collect();
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
                room = (tokens / lengths[index].max(1)).saturating_sub(1);
            }
        }
    }
    groups
}

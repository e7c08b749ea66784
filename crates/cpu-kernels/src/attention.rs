//! Attention of each token of a text to those of the same text.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use pulp::{Arch, Simd, WithSimd};

use crate::aligned::Aligned;
use crate::product::{Product, Rows, VECTORS};
use crate::rows::softmax_row;

/// Queries that are answered together: what keeps the scores of a long text in the cache.
const QUERY_BLOCK: usize = 48;

/// What an attention layer is, besides its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// How many heads.
    pub heads: usize,
    /// Elements of a head.
    pub width: usize,
    /// What the products of queries and keys are multiplied by.
    pub scale: f32,
    /// How far from a token, to either side, are those that it looks at; `None` is every token of the text.
    pub window: Option<usize>,
    /// Added to the scores by head and distance: `[heads, 2 · span + 1]`, for a key `span` before its query up to `span`
    /// after it, `span` at least as long as any text; empty where there is none.
    pub distance_bias: Vec<f32>,
}

/// What a layer makes of the place of a key, seen from its query, beside what both say: disentangled attention (He et al.,
/// "`DeBERTa`", 2021, eq. 4). Its scores are multiplied by [`Attention::scale`] like the others.
#[derive(Clone, PartialEq)]
pub struct Relative {
    /// The row of `keys` and `queries` by distance: `[2 · span + 1]`, for a key `span` before its query up to `span` after it,
    /// `span` at least as long as any text.
    pub rows: Arc<[usize]>,
    /// What a query is multiplied with: `[places, heads · width]`; empty where queries do not look at places.
    pub keys: Vec<f32>,
    /// What a key is multiplied with: `[places, heads · width]`; empty where keys do not look at places.
    pub queries: Vec<f32>,
}

impl fmt::Debug for Relative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relative").field("distances", &self.rows.len()).finish_non_exhaustive()
    }
}

/// Memory that is used again from text to text.
#[derive(Debug)]
pub struct Scratch {
    keys: Aligned<f32>,
    values: Aligned<f32>,
    scores: Vec<f32>,
    /// Packed places.
    places: Aligned<f32>,
    /// A block's queries at every place.
    at_queries: Vec<f32>,
    /// Every key at every place.
    at_keys: Vec<f32>,
}

impl Scratch {
    /// Nothing yet; it grows with the texts.
    #[must_use]
    pub fn new() -> Self {
        Self {
            keys: Aligned::zeros(0),
            values: Aligned::zeros(0),
            scores: Vec::new(),
            places: Aligned::zeros(0),
            at_queries: Vec::new(),
            at_keys: Vec::new(),
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Attention {
    /// One text, or some of its queries: `qkv` is `[tokens, 3 · heads · width]`, each row a token's queries, keys and
    /// values; `out` is `[queries, heads · width]`, for the queries from `first` on.
    ///
    /// # Panics
    /// If the sizes do not fit each other, or the text is longer than the distance bias or the places reach.
    pub fn run(
        &self,
        qkv: &[f32],
        relative: Option<&Relative>,
        first: usize,
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let hidden = self.heads * self.width;
        assert!(
            qkv.len().is_multiple_of(3 * hidden) && out.len().is_multiple_of(hidden),
            "a row for each token"
        );
        let (tokens, queries) = (qkv.len() / 3 / hidden, out.len() / hidden);
        assert!(first + queries <= tokens, "queries are tokens of the text");
        assert!(
            self.distance_bias.is_empty()
                || self.distance_bias.len() / self.heads > 2 * tokens.saturating_sub(1),
            "the distance bias reaches as far as the text"
        );
        let places = relative.filter(|_| queries > 0).map(|relative| Places::new(relative, tokens, hidden));
        if queries > 0 {
            Arch::new().dispatch(Op {
                attention: self,
                qkv,
                places,
                scratch,
                out,
                tokens,
                queries: first..first + queries,
            });
        }
    }
}

/// The places that the keys of one text can have.
#[derive(Clone, Copy)]
struct Places<'a> {
    relative: &'a Relative,
    /// The row by distance, from `tokens - 1` before the query on.
    rows: &'a [usize],
    /// The rows that occur.
    first: usize,
    count: usize,
}

impl<'a> Places<'a> {
    fn new(relative: &'a Relative, tokens: usize, hidden: usize) -> Self {
        let Relative { rows, keys, queries } = relative;
        let middle = rows.len() / 2;
        assert!(rows.len() % 2 == 1 && middle + 1 >= tokens, "the places reach as far as the text");
        let rows = &rows[middle + 1 - tokens..middle + tokens];
        let (first, last) =
            rows.iter().fold((usize::MAX, 0), |(low, high), row| (low.min(*row), high.max(*row)));
        let fits = |table: &[f32]| table.is_empty() || table.len() >= (last + 1) * hidden;
        assert!(fits(keys) && fits(queries), "there is a row for each place");
        Self { relative, rows, first, count: last + 1 - first }
    }

    /// Adds what places say to the scores of one query.
    fn add(&self, query: usize, at_query: &[f32], at_keys: &[f32], stride: usize, scores: &mut [f32]) {
        let tokens = scores.len();
        let rows = &self.rows[tokens - 1 - query..][..tokens];
        if !at_query.is_empty() {
            for (score, row) in scores.iter_mut().zip(rows) {
                *score += at_query[row - self.first];
            }
        }
        for ((score, row), at_key) in scores.iter_mut().zip(rows).zip(at_keys.chunks_exact(stride)) {
            *score += at_key[row - self.first];
        }
    }

    /// Packs the rows of one head as the columns of panels.
    fn pack(
        &self,
        table: &[f32],
        [from, width, hidden]: [usize; 3],
        columns: usize,
        into: &mut Aligned<f32>,
    ) {
        let size = self.count.next_multiple_of(columns) * width;
        if into.as_slice().len() != size {
            *into = Aligned::zeros(size);
        }
        let places = self.first..self.first + self.count;
        let rows = places.map(|place| &table[place * hidden + from..][..width]);
        pack_keys(rows, columns, into.as_mut_slice());
    }
}

struct Op<'a> {
    attention: &'a Attention,
    qkv: &'a [f32],
    places: Option<Places<'a>>,
    scratch: &'a mut Scratch,
    out: &'a mut [f32],
    tokens: usize,
    queries: Range<usize>,
}

impl WithSimd for Op<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { attention, qkv, places, scratch, out, tokens, queries } = self;
        let Attention { heads, width, scale, .. } = *attention;
        let hidden = heads * width;
        let columns = VECTORS * S::F32_LANES;
        let padded = tokens.next_multiple_of(columns);
        let width_padded = width.next_multiple_of(columns);
        if scratch.keys.as_slice().len() != padded * width {
            scratch.keys = Aligned::zeros(padded * width);
        }
        if scratch.values.as_slice().len() != tokens * width_padded {
            scratch.values = Aligned::zeros(tokens * width_padded);
        }
        scratch.scores.resize(QUERY_BLOCK.min(queries.len()) * padded, 0.0);
        let (keys, values) = (scratch.keys.as_mut_slice(), scratch.values.as_mut_slice());
        let places_padded = places.map_or(0, |places| places.count.next_multiple_of(columns));

        for head in 0..heads {
            let rows_of = |part: usize, first: usize| Rows {
                values: &qkv[first * 3 * hidden + part * hidden + head * width..],
                stride: 3 * hidden,
            };
            // Rows of the text at every place: the first so many of a table's columns.
            let at_places = |rows: Rows<'_>, count: usize, panels: &Aligned<f32>, out: &mut Vec<f32>| {
                out.resize(count * places_padded, 0.0);
                let product = Product::plain(rows, width, panels.as_slice(), places_padded);
                product.run(simd, count, out, places_padded);
            };
            let sizes = [head * width, width, hidden];
            scratch.at_keys.clear();
            if let Some(places) = places.filter(|places| !places.relative.queries.is_empty()) {
                places.pack(&places.relative.queries, sizes, columns, &mut scratch.places);
                at_places(rows_of(1, 0), tokens, &scratch.places, &mut scratch.at_keys);
            }
            let looks_at_places = places.filter(|places| !places.relative.keys.is_empty());
            if let Some(places) = looks_at_places {
                places.pack(&places.relative.keys, sizes, columns, &mut scratch.places);
            }
            pack_keys((0..tokens).map(|token| &rows_of(1, token).values[..width]), columns, keys);
            // Values as panels of columns of elements: each row a token.
            for (index, panel) in values.chunks_exact_mut(tokens * columns).enumerate() {
                for (token, row) in panel.chunks_exact_mut(columns).enumerate() {
                    let from = index * columns;
                    let value = &rows_of(2, token).values[from..width.min(from + columns)];
                    row[..value.len()].copy_from_slice(value);
                }
            }
            for first in queries.clone().step_by(QUERY_BLOCK) {
                let count = QUERY_BLOCK.min(queries.end - first);
                let scores = &mut scratch.scores[..count * padded];
                Product::plain(rows_of(0, first), width, keys, padded).run(simd, count, scores, padded);
                scratch.at_queries.clear();
                if looks_at_places.is_some() {
                    at_places(rows_of(0, first), count, &scratch.places, &mut scratch.at_queries);
                }
                if let Some(places) = places {
                    for (index, row) in scores.chunks_exact_mut(padded).enumerate() {
                        let at_query = scratch.at_queries.get(index * places_padded..).unwrap_or_default();
                        places.add(
                            first + index,
                            at_query,
                            &scratch.at_keys,
                            places_padded,
                            &mut row[..tokens],
                        );
                    }
                }
                for (query, row) in (first..).zip(scores.chunks_exact_mut(padded)) {
                    attention.weigh(simd, head, query, &mut row[..tokens], scale);
                }
                let sums = Product::plain(Rows { values: scores, stride: padded }, tokens, values, width);
                sums.run(simd, count, &mut out[(first - queries.start) * hidden + head * width..], hidden);
            }
        }
    }
}

/// Vectors as the columns of panels: each row an element of all of them.
#[inline(always)]
fn pack_keys<'k>(keys: impl Iterator<Item = &'k [f32]>, columns: usize, panels: &mut [f32]) {
    for (index, key) in keys.enumerate() {
        let panel = &mut panels[index / columns * key.len() * columns..][..key.len() * columns];
        for (row, x) in panel.chunks_exact_mut(columns).zip(key) {
            row[index % columns] = *x;
        }
    }
}

impl Attention {
    /// Scores of one query to what is taken of each value.
    #[inline(always)]
    fn weigh<S: Simd>(&self, simd: S, head: usize, query: usize, row: &mut [f32], mut scale: f32) {
        let tokens = row.len();
        if !self.distance_bias.is_empty() {
            let reach = self.distance_bias.len() / self.heads;
            let bias = &self.distance_bias[head * reach..][..reach];
            // The middle is the query itself.
            let bias = &bias[reach / 2 - query..][..tokens];
            for (x, bias) in row.iter_mut().zip(bias) {
                *x = *x * scale + bias;
            }
            scale = 1.0;
        }
        if let Some(window) = self.window {
            let from = query.saturating_sub(window);
            let to = (query + window + 1).min(tokens);
            row[..from].fill(f32::NEG_INFINITY);
            row[to..].fill(f32::NEG_INFINITY);
        }
        softmax_row(simd, row, scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As long as the longest text of the test.
    const SPAN: usize = 130;

    fn number(i: usize) -> f32 {
        ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0
    }

    /// Attention as its definition has it, in float64.
    fn exact(attention: &Attention, relative: Option<&Relative>, qkv: &[f32], tokens: usize) -> Vec<f64> {
        let Attention { heads, width, scale, window, ref distance_bias } = *attention;
        let hidden = heads * width;
        let at = |token: usize, part: usize, head: usize, i: usize| {
            f64::from(qkv[token * 3 * hidden + part * hidden + head * width + i])
        };
        let mut out = vec![0.0; tokens * hidden];
        for head in 0..heads {
            for query in 0..tokens {
                let score = |key: usize| {
                    if window.is_some_and(|window| key.abs_diff(query) > window) {
                        return f64::NEG_INFINITY;
                    }
                    let product: f64 = (0..width).map(|i| at(query, 0, head, i) * at(key, 1, head, i)).sum();
                    let reach = distance_bias.len() / heads;
                    let bias = match reach {
                        0 => 0.0,
                        _ => f64::from(distance_bias[head * reach + reach / 2 + key - query]),
                    };
                    let places = relative.map_or(0.0, |Relative { rows, keys, queries }| {
                        let row = rows[rows.len() / 2 + key - query];
                        let with = |table: &[f32], part: usize, token: usize| -> f64 {
                            let row = table.get(row * hidden + head * width..).unwrap_or_default();
                            (0..width).zip(row).map(|(i, x)| at(token, part, head, i) * f64::from(*x)).sum()
                        };
                        with(keys, 0, query) + with(queries, 1, key)
                    });
                    (product + places) * f64::from(scale) + bias
                };
                let weights: Vec<f64> = (0..tokens).map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..width {
                    let sum: f64 = (0..tokens).map(|key| weights[key] * at(key, 2, head, i)).sum();
                    out[query * hidden + head * width + i] = sum / total;
                }
            }
        }
        out
    }

    #[test]
    fn attention_is_that_of_float64() {
        let mut scratch = Scratch::new();
        let mut check = |[heads, width, tokens]: [usize; 3],
                         window: Option<usize>,
                         biased: bool,
                         relative: Option<&Relative>| {
            let span = SPAN;
            let distance_bias: Vec<f32> =
                if biased { (0..heads * (2 * span + 1)).map(number).collect() } else { Vec::new() };
            let attention = Attention { heads, width, scale: 0.7, window, distance_bias };
            let qkv: Vec<f32> = (0..tokens * 3 * heads * width).map(number).collect();
            let mut out = vec![f32::NAN; tokens * heads * width];
            // In two parts, as two workers share it.
            let (before, after) = out.split_at_mut(tokens / 3 * heads * width);
            attention.run(&qkv, relative, 0, &mut scratch, before);
            attention.run(&qkv, relative, tokens / 3, &mut scratch, after);
            for (i, (found, expected)) in
                out.iter().zip(exact(&attention, relative, &qkv, tokens)).enumerate()
            {
                let off = (f64::from(*found) - expected).abs();
                assert!(
                    off < 2e-6,
                    "{heads} heads of {width}, {tokens} tokens, {window:?}, {biased}, at {i}: {found}, not {expected}"
                );
            }
        };
        for tokens in [1, 2, 15, 16, 17, 49, 100, 130] {
            for (heads, width) in [(1, 8), (2, 32), (3, 20)] {
                let sizes = [heads, width, tokens];
                check(sizes, None, false, None);
                check(sizes, None, true, None);
                check(sizes, Some(5), false, None);
                // Places near the query have a row each, the others share one.
                let rows = (0..=2 * SPAN).map(|at| (2 * SPAN - at).clamp(SPAN - 20, SPAN + 19) + 20 - SPAN);
                let table = |from: usize| (from..from + 40 * heads * width).map(number).collect::<Vec<_>>();
                let both = Relative { rows: rows.collect(), keys: table(3), queries: table(500) };
                check(sizes, None, false, Some(&both));
                check(sizes, None, false, Some(&Relative { keys: Vec::new(), ..both.clone() }));
                check(sizes, None, false, Some(&Relative { queries: Vec::new(), ..both }));
            }
        }
    }
}

//! The numeric gate: what an exported graph gives, beside what the reference gives, and whether that is near enough.

mod decades;

use model_loader::{Output, TokenBatch};
use onnx_export::Precision;
use serde::{Deserialize, Serialize};

pub use decades::Bucket;
use decades::Decades;

/// How far an output may be from the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Largest absolute difference of a value, as a share of the largest reference value (of 1 if that is smaller).
    pub max_abs: f64,
    /// Smallest cosine between a row and its reference.
    pub min_cosine: f64,
    /// Smallest mean of all these cosines.
    pub mean_cosine: f64,
    /// Smallest share of rows whose largest value is at the same place; class scores only.
    pub min_top1: f64,
}

impl Thresholds {
    /// The one table of thresholds.
    ///
    /// | precision | max abs | cosine | mean cosine | top-1 |
    /// |---|---|---|---|---|
    /// | fp32 | 1e-3 | 0.99999 | 0.99999 | 1.00 |
    /// | tf32 | 5e-3 | 0.9999 | 0.9999 | 0.98 |
    /// | fp16 | 2e-2 | 0.9999 | 0.9999 | 0.98 |
    /// | bf16 | 1e-1 | 0.999 | 0.999 | 0.95 |
    /// | w8a16 | 1e-1 | 0.998 | 0.999 | 0.98 |
    /// | fp8 | 3e-1 | 0.97 | 0.99 | 0.95 |
    /// | int8 | 3e-1 | 0.97 | 0.99 | 0.95 |
    /// | w4a16 | 5e-1 | 0.93 | 0.96 | 0.90 |
    ///
    /// fp16 and TF32 have 10 bits of mantissa (a rounding error of 5e-4 for each operation), bf16 has 7 (4e-3); over the
    /// twelve layers of a BERT they add up to about twenty times that. fp32 leaves room for another order of summation. For
    /// 8 bits the mean cosine decides: single values are off by hundredths of the range, and an embedding is used by its
    /// direction, a classifier by its largest score. Weights in 4 bits are off by a tenth of their size; models of billions
    /// bear that, small ones show it (all-MiniLM-L6-v2: mean 0.969, worst 0.955).
    #[must_use]
    pub fn of(precision: Precision) -> Self {
        let (max_abs, min_cosine, mean_cosine, min_top1) = match precision {
            Precision::Fp32 => (1e-3, 0.999_99, 0.999_99, 1.0),
            Precision::Tf32 => (5e-3, 0.999_9, 0.999_9, 0.98),
            Precision::Fp16 => (2e-2, 0.999_9, 0.999_9, 0.98),
            Precision::Bf16 => (1e-1, 0.999, 0.999, 0.95),
            Precision::W8a16 => (1e-1, 0.998, 0.999, 0.98),
            Precision::Fp8 | Precision::Int8 => (3e-1, 0.97, 0.99, 0.95),
            Precision::W4a16 => (5e-1, 0.93, 0.96, 0.90),
        };
        Self { max_abs, min_cosine, mean_cosine, min_top1 }
    }

    /// For outputs with a row for each token: of thousands the worst is a matter of luck, so its cosine may be ten times
    /// as far from 1. The mean may not.
    #[must_use]
    pub fn by_token(self) -> Self {
        // Of a few digits, as people read it.
        let min_cosine = ((1.0 - 10.0 * (1.0 - self.min_cosine)) * 1e9).round() / 1e9;
        Self { min_cosine, ..self }
    }
}

/// What is asked for otherwise than the table has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ThresholdWishes {
    /// See [`Thresholds::max_abs`].
    pub max_abs: Option<f64>,
    /// See [`Thresholds::min_cosine`].
    pub min_cosine: Option<f64>,
    /// See [`Thresholds::mean_cosine`].
    pub mean_cosine: Option<f64>,
    /// See [`Thresholds::min_top1`].
    pub min_top1: Option<f64>,
}

impl ThresholdWishes {
    /// The table's thresholds with these in their place.
    #[must_use]
    pub fn over(self, table: Thresholds) -> Thresholds {
        let Self { max_abs, min_cosine, mean_cosine, min_top1 } = self;
        // A mean is at least the least: who asks for less of each asks for less of all.
        let mean_cosine = mean_cosine.or(min_cosine.filter(|least| *least < table.mean_cosine));
        Thresholds {
            max_abs: max_abs.unwrap_or(table.max_abs),
            min_cosine: min_cosine.unwrap_or(table.min_cosine),
            mean_cosine: mean_cosine.unwrap_or(table.mean_cosine),
            min_top1: min_top1.unwrap_or(table.min_top1),
        }
    }
}

/// How an output compares with the reference. Rows are sentences, or tokens where the output has one row a token;
/// padding does not count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Name of the output.
    pub output: String,
    /// Number of rows compared.
    pub rows: usize,
    /// Number of values in a row.
    pub columns: usize,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Where the largest difference is.
    pub worst: Worst,
    /// Mean absolute difference.
    pub mean_abs: f64,
    /// Largest absolute value of the reference.
    pub reference_max: f64,
    /// Smallest cosine of a row with its reference.
    pub cosine_min: f64,
    /// Mean cosine.
    pub cosine_mean: f64,
    /// Rows whose largest value is at the same place; class scores only.
    pub top1: Option<usize>,
    /// Values that are not a number.
    pub nan: usize,
    /// Values that are infinite.
    pub infinite: usize,
    /// Absolute differences by size.
    pub differences: Vec<Bucket>,
    /// Rows by 1 − cosine.
    pub angles: Vec<Bucket>,
    /// Whether all rows are the same, which no model of text gives for different texts.
    pub constant: bool,
}

/// Where two outputs differ most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// The text, counted from 1: its line where the texts came from a file.
    pub text: usize,
    /// Column, counted from 0.
    pub column: usize,
    /// What the reference has there.
    pub reference: f32,
    /// What the checked graph has there.
    pub found: f32,
}

impl Comparison {
    /// The same figures as JSON can hold them, which knows neither infinity nor NaN: the largest number stands for both.
    /// What is wrong is in the verdict's words and in the counts.
    #[cfg(any(feature = "tensorrt", test))]
    pub(crate) fn in_numbers(mut self) -> Self {
        let Self { max_abs, mean_abs, reference_max, cosine_min, cosine_mean, worst, .. } = &mut self;
        for figure in [max_abs, mean_abs, reference_max, cosine_min, cosine_mean] {
            *figure = if figure.is_finite() { *figure } else { f64::MAX };
        }
        for value in [&mut worst.reference, &mut worst.found] {
            *value = if value.is_finite() { *value } else { f32::MAX };
        }
        self
    }

    /// What is wrong with the output by itself, whatever the reference.
    fn broken(&self) -> Vec<String> {
        let Worst { text, column, reference, .. } = self.worst;
        let mut failures = Vec::new();
        if self.nan + self.infinite > 0 {
            failures.push(format!(
                "{} values are NaN and {} infinite, of {}; one is at text {text}, column {column}, where the reference has {reference}",
                self.nan,
                self.infinite,
                self.rows * self.columns
            ));
        }
        if self.constant {
            failures.push(format!("all {} rows are the same", self.rows));
        }
        failures
    }
}

/// The verdict on an output: what was measured, what was allowed, and what is wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What was measured.
    pub comparison: Comparison,
    /// What was allowed.
    pub thresholds: Thresholds,
    /// What is wrong, in words; empty if the gate passed.
    pub failures: Vec<String>,
}

impl Verdict {
    /// Whether the output is near enough.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// In which measures the output is too far from the reference.
    fn too_far(&self) -> Vec<String> {
        let (measured, allowed) = (&self.comparison, self.allowed_abs());
        let Worst { text, column, reference, found } = measured.worst;
        let mut failures = Vec::new();
        if measured.max_abs > allowed {
            failures.push(format!(
                "max abs {:.2e} (allowed {allowed:.2e}) at text {text}, column {column}: {found} where the reference has {reference}",
                measured.max_abs,
            ));
        }
        // Rows of one value have no direction: their cosine is a sign, and their largest value always the first.
        if measured.columns == 1 {
            return failures;
        }
        if measured.cosine_min < self.thresholds.min_cosine {
            failures
                .push(format!("cosine {:.6} (at least {})", measured.cosine_min, self.thresholds.min_cosine));
        }
        if measured.cosine_mean < self.thresholds.mean_cosine {
            failures.push(format!(
                "mean cosine {:.6} (at least {})",
                measured.cosine_mean, self.thresholds.mean_cosine
            ));
        }
        if let Some(agree) = measured.top1
            && (agree as f64) < self.thresholds.min_top1 * measured.rows as f64
        {
            failures.push(format!(
                "top-1 agreement {agree}/{} (at least {:.0} %)",
                measured.rows,
                self.thresholds.min_top1 * 100.0
            ));
        }
        failures
    }

    /// Largest absolute difference that was allowed.
    #[must_use]
    pub fn allowed_abs(&self) -> f64 {
        self.thresholds.max_abs * self.comparison.reference_max.max(1.0)
    }
}

/// Compares outputs as they come, batch by batch, and keeps what it measures and not the outputs.
#[derive(Debug)]
pub struct Gate {
    scores: bool,
    sofar: Comparison,
    difference_sum: f64,
    cosine_sum: f64,
    agree: usize,
    differences: Decades,
    angles: Decades,
    /// What every row so far is.
    same: Option<Vec<f32>>,
    /// Of the reference and of the output, where they differ.
    shapes: Option<(Vec<usize>, Vec<usize>)>,
}

impl Gate {
    /// A gate for the output `output`; `scores` says whether its rows are scores, whose largest is what counts.
    #[must_use]
    pub fn new(output: impl Into<String>, scores: bool) -> Self {
        let sofar = Comparison {
            output: output.into(),
            rows: 0,
            columns: 0,
            max_abs: 0.0,
            worst: Worst::default(),
            mean_abs: 0.0,
            reference_max: 0.0,
            cosine_min: 1.0,
            cosine_mean: 0.0,
            top1: None,
            nan: 0,
            infinite: 0,
            differences: Vec::new(),
            angles: Vec::new(),
            constant: false,
        };
        Self {
            scores,
            sofar,
            difference_sum: 0.0,
            cosine_sum: 0.0,
            agree: 0,
            differences: Decades::default(),
            angles: Decades::default(),
            same: None,
            shapes: None,
        }
    }

    /// Adds what reference and graph gave for `batch`, whose rows are the texts with these numbers.
    pub fn add(&mut self, batch: &TokenBatch, texts: &[usize], reference: &Output, found: &Output) {
        if reference.shape != found.shape {
            self.shapes = Some((reference.shape.clone(), found.shape.clone()));
            return;
        }
        let columns = reference.shape.last().copied().unwrap_or_default().max(1);
        let by_token = reference.shape.len() == 3;
        let rows = reference.values.chunks_exact(columns).zip(found.values.chunks_exact(columns));
        for (index, (reference, found)) in rows.enumerate() {
            if by_token && batch.mask().get(index) != Some(&1) {
                continue;
            }
            let row = if by_token { index / batch.seq() } else { index };
            self.add_row(texts.get(row).copied().unwrap_or(row), reference, found);
        }
    }

    fn add_row(&mut self, text: usize, reference: &[f32], found: &[f32]) {
        let sofar = &mut self.sofar;
        sofar.columns = reference.len();
        for (column, (&expected, &got)) in reference.iter().zip(found).enumerate() {
            sofar.nan += usize::from(got.is_nan());
            sofar.infinite += usize::from(got.is_infinite());
            sofar.reference_max = sofar.reference_max.max(f64::from(expected.abs()));
            let difference = f64::from(expected - got).abs();
            // A NaN counts as the largest difference of all, so that it is the place that is named.
            let difference = if difference.is_nan() { f64::INFINITY } else { difference };
            self.difference_sum += difference;
            self.differences.add(difference);
            if difference > sofar.max_abs {
                sofar.max_abs = difference;
                sofar.worst = Worst { text, column, reference: expected, found: got };
            }
        }
        let cosine = cosine(reference, found);
        sofar.cosine_min = sofar.cosine_min.min(cosine);
        self.cosine_sum += cosine;
        self.angles.add(1.0 - cosine);
        self.agree += usize::from(largest(reference) == largest(found));
        match &self.same {
            None if sofar.rows == 0 => self.same = Some(found.to_vec()),
            Some(same) if same != found => self.same = None,
            _ => {}
        }
        sofar.rows += 1;
    }

    /// Judges everything that was added.
    #[must_use]
    pub fn judge(self, thresholds: Thresholds) -> Verdict {
        let (shapes, comparison) = (self.shapes.clone(), self.comparison());
        let mut verdict = Verdict { comparison, thresholds, failures: Vec::new() };
        let Thresholds { max_abs, min_cosine, mean_cosine, min_top1 } = thresholds;
        if ![max_abs, min_cosine, mean_cosine, min_top1].iter().all(|x| x.is_finite()) {
            // Nothing is larger or smaller than NaN: such a threshold would let everything pass.
            verdict.failures.push(format!("cannot be judged by {thresholds:?}"));
        }
        if let Some((reference, found)) = shapes {
            verdict.failures.push(format!("has shape {found:?} where the reference has {reference:?}"));
        } else if verdict.comparison.rows == 0 {
            verdict.failures.push("there is nothing to compare".to_owned());
        }
        verdict.failures.extend(verdict.comparison.broken());
        if verdict.failures.is_empty() {
            verdict.failures = verdict.too_far();
        }
        verdict
    }

    fn comparison(self) -> Comparison {
        let Self { scores, sofar, difference_sum, cosine_sum, agree, differences, angles, same, .. } = self;
        let rows = sofar.rows;
        Comparison {
            mean_abs: difference_sum / (rows * sofar.columns).max(1) as f64,
            cosine_mean: cosine_sum / rows.max(1) as f64,
            top1: scores.then_some(agree),
            differences: differences.buckets(),
            angles: angles.buckets(),
            constant: rows > 1 && same.is_some(),
            ..sofar
        }
    }
}

/// Cosine of the angle between two rows, in double precision; 1 for two rows of zeros, -1 where a row has no direction.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot =
        |x: &[f32], y: &[f32]| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    let cosine = if lengths == 0.0 && a == b { 1.0 } else { dot(a, b) / lengths };
    if cosine.is_nan() { -1.0 } else { cosine }
}

fn largest(row: &[f32]) -> Option<usize> {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(column, _)| column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_loader::Tokens;

    fn batch(rows: usize) -> TokenBatch {
        let tokens = vec![Tokens { ids: vec![1, 2], type_ids: vec![0, 0] }; rows];
        TokenBatch::pad(&tokens, 0)
    }

    fn judge(reference: &[[f32; 2]], found: &[[f32; 2]], scores: bool) -> Verdict {
        let output = |rows: &[[f32; 2]]| Output { shape: vec![rows.len(), 2], values: rows.concat() };
        let mut gate = Gate::new("logits", scores);
        gate.add(&batch(reference.len()), &[1, 2], &output(reference), &output(found));
        gate.judge(Thresholds::of(Precision::Fp16))
    }

    #[test]
    fn each_way_to_be_wrong_is_named() {
        let reference = [[1.0, 0.0], [0.0, 1.0]];
        let check = |name: &str, found: [[f32; 2]; 2], expected: &[&str]| {
            let verdict = judge(&reference, &found, true);
            assert_eq!(verdict.passed(), expected.is_empty(), "{name}: {:?}", verdict.failures);
            for part in expected {
                assert!(verdict.failures.iter().any(|f| f.contains(part)), "{name}: {:?}", verdict.failures);
            }
        };
        check("the same", reference, &[]);
        check("rounded", [[1.001, 0.0], [0.0, 0.999]], &[]);
        check("off", [[1.5, 0.0], [0.0, 1.0]], &["max abs 5.00e-1"]);
        check("turned", [[0.5, 1.0], [0.0, 1.0]], &["max abs 1.00e0", "cosine 0.44", "top-1 agreement 1/2"]);
        check("not a number", [[f32::NAN, 0.0], [0.0, 1.0]], &["1 values are NaN", "text 1, column 0"]);
        check("infinite", [[1.0, 0.0], [f32::INFINITY, 1.0]], &["1 infinite", "text 2, column 0"]);
        check("zeros", [[0.0, 0.0], [0.0, 0.0]], &["all 2 rows"]);
    }

    /// A child that judges an engine reports by JSON; a verdict about NaN was lost on the way.
    #[test]
    fn a_verdict_about_nan_survives_json() -> Result<(), serde_json::Error> {
        let verdict = judge(&[[1.0, 0.0], [0.0, 1.0]], &[[f32::NAN, 0.0], [f32::INFINITY, 1.0]], true);
        let comparison = verdict.comparison.in_numbers();
        let verdict = Verdict { comparison, ..verdict };
        let read: Verdict = serde_json::from_str(&serde_json::to_string(&verdict)?)?;
        assert_eq!(read, verdict);
        assert!(!read.passed());
        Ok(())
    }

    #[test]
    fn thresholds_that_are_no_numbers_let_nothing_pass() {
        let mut gate = Gate::new("logits", true);
        let output = Output { shape: vec![1, 2], values: vec![1.0, 2.0] };
        gate.add(&batch(1), &[1], &output, &output);
        let verdict = gate.judge(Thresholds { max_abs: f64::NAN, ..Thresholds::of(Precision::Fp32) });
        assert!(!verdict.passed());
    }

    #[test]
    fn a_single_score_near_zero_may_change_its_sign() {
        let output = |values: &[f32]| Output { shape: vec![2, 1], values: values.to_vec() };
        let judge = |found: &[f32]| {
            let mut gate = Gate::new("logits", true);
            gate.add(&batch(2), &[1, 2], &output(&[1e-4, 0.5]), &output(found));
            gate.judge(Thresholds::of(Precision::Bf16))
        };
        assert!(judge(&[-1e-4, 0.5]).passed());
        assert!(!judge(&[-0.5, 0.5]).passed());
    }

    #[test]
    fn nothing_to_compare_is_no_pass() {
        let verdict = Gate::new("logits", true).judge(Thresholds::of(Precision::Fp32));
        assert!(!verdict.passed());
    }

    #[test]
    fn another_shape_is_no_pass() {
        let mut gate = Gate::new("logits", true);
        let reference = Output { shape: vec![1, 2], values: vec![1.0, 2.0] };
        let found = Output { shape: vec![2, 1], values: vec![1.0, 2.0] };
        gate.add(&batch(1), &[1], &reference, &found);
        let verdict = gate.judge(Thresholds::of(Precision::Fp32));
        assert!(verdict.failures.iter().any(|failure| failure.contains("[2, 1]")), "{:?}", verdict.failures);
    }

    #[test]
    fn padding_does_not_count() {
        let tokens =
            [Tokens { ids: vec![1], type_ids: vec![0] }, Tokens { ids: vec![1, 2], type_ids: vec![0, 0] }];
        let batch = TokenBatch::pad(&tokens, 0);
        let reference = Output { shape: vec![2, 2, 1], values: vec![1.0, 7.0, 2.0, 3.0] };
        let found = Output { shape: vec![2, 2, 1], values: vec![1.0, f32::NAN, 2.0, 3.0] };
        let mut gate = Gate::new("last_hidden_state", false);
        gate.add(&batch, &[1, 2], &reference, &found);
        let verdict = gate.judge(Thresholds::of(Precision::Fp32));
        assert!(verdict.passed(), "{:?}", verdict.failures);
        assert_eq!(verdict.comparison.rows, 3);
    }
}

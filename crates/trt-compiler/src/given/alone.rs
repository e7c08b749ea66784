//! The gate where there is nothing to compare with: what is wrong with an output by itself.

use model_loader::{Output, TokenBatch};

use crate::gate::{Comparison, Thresholds, Verdict, Worst};

/// Looks at outputs as they come, batch by batch. Rows are sentences, or tokens where the output has one row a token.
#[derive(Debug)]
pub(crate) struct Alone {
    output: String,
    rows: usize,
    columns: usize,
    nan: usize,
    infinite: usize,
    largest: f64,
    /// The first value that is no finite number: its text and column.
    first: Option<(usize, usize)>,
    /// What every row so far is.
    same: Option<Vec<f32>>,
    /// A shape that no answer to a batch has.
    odd_shape: Option<Vec<usize>>,
}

impl Alone {
    pub(crate) fn new(output: &str) -> Self {
        Self {
            output: output.to_owned(),
            rows: 0,
            columns: 0,
            nan: 0,
            infinite: 0,
            largest: 0.0,
            first: None,
            same: None,
            odd_shape: None,
        }
    }

    /// Adds what the graph gave for `batch`, whose rows are the texts with these numbers.
    pub(crate) fn add(&mut self, batch: &TokenBatch, texts: &[usize], found: &Output) {
        let by_token = found.shape.len() == 3;
        let fits = found.shape.first() == Some(&batch.rows())
            && (!by_token || found.shape.get(1) == Some(&batch.seq()))
            && matches!(found.shape.len(), 2 | 3);
        let columns = found.shape.last().copied().unwrap_or_default();
        if !fits || columns == 0 {
            self.odd_shape = Some(found.shape.clone());
            return;
        }
        self.columns = columns;
        for (index, values) in found.values.chunks_exact(columns).enumerate() {
            if by_token && batch.mask().get(index) != Some(&1) {
                continue;
            }
            let row = if by_token { index / batch.seq() } else { index };
            self.add_row(texts.get(row).copied().unwrap_or(row), values);
        }
    }

    fn add_row(&mut self, text: usize, values: &[f32]) {
        for (column, value) in values.iter().enumerate() {
            self.nan += usize::from(value.is_nan());
            self.infinite += usize::from(value.is_infinite());
            if value.is_finite() {
                self.largest = self.largest.max(f64::from(value.abs()));
            } else {
                self.first.get_or_insert((text, column));
            }
        }
        match &self.same {
            None if self.rows == 0 => self.same = Some(values.to_vec()),
            Some(same) if same != values => self.same = None,
            _ => {}
        }
        self.rows += 1;
    }

    /// Judges everything that was added. What only a comparison gives is not a number.
    pub(crate) fn judge(self, thresholds: Thresholds) -> Verdict {
        let mut failures = Vec::new();
        if let Some(shape) = &self.odd_shape {
            failures.push(format!("has shape {shape:?}, which is no answer to a batch"));
        } else if self.rows == 0 {
            failures.push("there is nothing to look at".to_owned());
        }
        if let Some((text, column)) = self.first {
            failures.push(format!(
                "{} values are NaN and {} infinite, of {}; the first is at text {text}, column {column}",
                self.nan,
                self.infinite,
                self.rows * self.columns
            ));
        }
        let constant = self.rows > 1 && self.same.is_some();
        if constant {
            failures.push(format!("all {} rows are the same", self.rows));
        }
        let (text, column) = self.first.unwrap_or_default();
        let comparison = Comparison {
            output: self.output,
            rows: self.rows,
            columns: self.columns,
            max_abs: f64::NAN,
            worst: Worst { text, column, ..Worst::default() },
            mean_abs: f64::NAN,
            reference_max: self.largest,
            cosine_min: f64::NAN,
            cosine_mean: f64::NAN,
            top1: None,
            nan: self.nan,
            infinite: self.infinite,
            differences: Vec::new(),
            angles: Vec::new(),
            constant,
        };
        Verdict { comparison, thresholds, failures }
    }
}

#[cfg(test)]
mod tests {
    use model_loader::{Output, TokenBatch, Tokens};
    use onnx_export::Precision;

    use super::Alone;
    use crate::gate::Thresholds;

    #[test]
    fn what_is_wrong_by_itself_shows_and_nothing_else_is_claimed() {
        let tokens =
            [Tokens { ids: vec![1], type_ids: vec![0] }, Tokens { ids: vec![1, 2], type_ids: vec![0; 2] }];
        let batch = TokenBatch::pad(&tokens, 0);
        let check = |row: &str, shape: &[usize], values: &[f32], expected: &[&str]| {
            let mut gate = Alone::new("logits");
            gate.add(&batch, &[1, 2], &Output { shape: shape.to_vec(), values: values.to_vec() });
            let verdict = gate.judge(Thresholds::of(Precision::Fp32));
            assert_eq!(verdict.passed(), expected.is_empty(), "{row}: {:?}", verdict.failures);
            for part in expected {
                assert!(verdict.failures.iter().any(|it| it.contains(part)), "{row}: {:?}", verdict.failures);
            }
            assert!(verdict.comparison.max_abs.is_nan() && verdict.comparison.cosine_min.is_nan(), "{row}");
        };
        check("sound", &[2, 2], &[1.0, 0.0, 0.0, 1.0], &[]);
        check("not a number", &[2, 2], &[1.0, f32::NAN, 0.0, 1.0], &["1 values are NaN", "text 1, column 1"]);
        check("infinite", &[2, 2], &[1.0, 0.0, f32::INFINITY, 1.0], &["1 infinite", "text 2, column 0"]);
        check("constant", &[2, 2], &[1.0, 2.0, 1.0, 2.0], &["all 2 rows"]);
        check("zeros", &[2, 2], &[0.0; 4], &["all 2 rows"]);
        check("padding does not count", &[2, 2, 1], &[1.0, f32::NAN, 2.0, 3.0], &[]);
        check("a row too few", &[1, 2], &[1.0, 2.0], &["no answer to a batch"]);
        check("no batch", &[4], &[1.0, 2.0, 3.0, 4.0], &["no answer to a batch"]);
    }
}

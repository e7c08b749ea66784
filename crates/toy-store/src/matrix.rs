//! Row-major `f32` matrices and the one matrix product everything is made of.
//!
//! Each output element is a sum in ascending order of the inner index, without fused multiply-add: the compiler may
//! vectorise over columns but may not reorder a sum, so the bits are the same whatever the vector width.

/// A dense row-major matrix; a vector is a matrix of one row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) data: Vec<f32>,
}

/// Columns of an accumulator tile; with [`TILE_ROWS`] it fills half of sixteen 128-bit registers.
const TILE_COLS: usize = 8;
const TILE_ROWS: usize = 4;

impl Matrix {
    pub(crate) fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    pub(crate) fn from_fn(rows: usize, cols: usize, mut value: impl FnMut() -> f32) -> Self {
        Self { rows, cols, data: (0..rows * cols).map(|_| value()).collect() }
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..(row + 1) * self.cols]
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..(row + 1) * self.cols]
    }

    pub(crate) fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        Self { rows: self.rows, cols: self.cols, data: self.data.iter().map(|x| f(*x)).collect() }
    }

    /// Element by element; both have one shape.
    pub(crate) fn zip(&self, other: &Self, f: impl Fn(f32, f32) -> f32) -> Self {
        debug_assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        let data = self.data.iter().zip(&other.data).map(|(a, b)| f(*a, *b)).collect();
        Self { rows: self.rows, cols: self.cols, data }
    }

    /// `self = f(self, other)`, element by element.
    pub(crate) fn zip_assign(&mut self, other: &Self, f: impl Fn(f32, f32) -> f32) {
        debug_assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        for (a, b) in self.data.iter_mut().zip(&other.data) {
            *a = f(*a, *b);
        }
    }

    pub(crate) fn add_assign(&mut self, other: &Self) {
        debug_assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        for (a, b) in self.data.iter_mut().zip(&other.data) {
            *a += b;
        }
    }

    pub(crate) fn transposed(&self) -> Self {
        let mut out = Self::zeros(self.cols, self.rows);
        for (row, values) in self.data.chunks_exact(self.cols.max(1)).enumerate() {
            for (col, value) in values.iter().enumerate() {
                out.data[col * self.rows + row] = *value;
            }
        }
        out
    }

    /// The sum over rows, as one row.
    pub(crate) fn column_sums(&self) -> Self {
        let mut out = Self::zeros(1, self.cols);
        for row in self.data.chunks_exact(self.cols.max(1)) {
            for (sum, value) in out.data.iter_mut().zip(row) {
                *sum += value;
            }
        }
        out
    }

    /// `self · other`, `[m, k] · [k, n] → [m, n]`.
    pub(crate) fn matmul(&self, other: &Self) -> Self {
        assert_eq!(self.cols, other.rows, "inner dimensions of a product");
        let panel = |first: usize, width: usize, panel: &mut [[f32; TILE_COLS]]| {
            for (packed, row) in panel.iter_mut().zip(other.data.chunks_exact(other.cols)) {
                packed[..width].copy_from_slice(&row[first..first + width]);
            }
        };
        self.product(other.cols, panel)
    }

    /// `self · otherᵀ`, `[m, k] · [n, k]ᵀ → [m, n]`.
    pub(crate) fn matmul_transposed(&self, other: &Self) -> Self {
        assert_eq!(self.cols, other.cols, "inner dimensions of a product");
        let panel = |first: usize, width: usize, panel: &mut [[f32; TILE_COLS]]| {
            for column in 0..width {
                for (packed, value) in panel.iter_mut().zip(other.row(first + column)) {
                    packed[column] = *value;
                }
            }
        };
        self.product(other.rows, panel)
    }

    /// The product with a matrix of `cols` columns; `pack(first, width, panel)` copies `width` of them, row by row.
    fn product(&self, cols: usize, pack: impl Fn(usize, usize, &mut [[f32; TILE_COLS]])) -> Self {
        let inner = self.cols;
        let mut out = Self::zeros(self.rows, cols);
        let mut panel = vec![[0.0; TILE_COLS]; inner];
        for first_col in (0..cols).step_by(TILE_COLS) {
            let width = TILE_COLS.min(cols - first_col);
            pack(first_col, width, &mut panel);
            for first_row in (0..self.rows).step_by(TILE_ROWS) {
                let height = TILE_ROWS.min(self.rows - first_row);
                let left = &self.data[first_row * inner..(first_row + height) * inner];
                let tile = if height == TILE_ROWS {
                    tile_of_four(left, inner, &panel)
                } else {
                    short_tile(left, inner, &panel)
                };
                for (offset, values) in tile.iter().take(height).enumerate() {
                    let start = (first_row + offset) * cols + first_col;
                    out.data[start..start + width].copy_from_slice(&values[..width]);
                }
            }
        }
        out
    }
}

type Tile = [[f32; TILE_COLS]; TILE_ROWS];

fn tile_of_four(left: &[f32], inner: usize, panel: &[[f32; TILE_COLS]]) -> Tile {
    let (upper, lower) = left.split_at(2 * inner);
    let (row0, row1) = upper.split_at(inner);
    let (row2, row3) = lower.split_at(inner);
    let mut tile = Tile::default();
    let pairs = row0.iter().zip(row1).zip(row2.iter().zip(row3));
    for (((a, b), (c, d)), right) in pairs.zip(panel) {
        for (sums, factor) in tile.iter_mut().zip([*a, *b, *c, *d]) {
            for (sum, value) in sums.iter_mut().zip(right) {
                *sum += factor * value;
            }
        }
    }
    tile
}

fn short_tile(left: &[f32], inner: usize, panel: &[[f32; TILE_COLS]]) -> Tile {
    let mut tile = Tile::default();
    for (sums, row) in tile.iter_mut().zip(left.chunks_exact(inner)) {
        for (factor, right) in row.iter().zip(panel) {
            for (sum, value) in sums.iter_mut().zip(right) {
                *sum += factor * value;
            }
        }
    }
    tile
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// Element by element, each sum in ascending order.
    fn naive(a: &Matrix, b: &Matrix) -> Matrix {
        let mut out = Matrix::zeros(a.rows, b.cols);
        for row in 0..a.rows {
            for col in 0..b.cols {
                let terms = (0..a.cols).map(|k| a.row(row)[k] * b.row(k)[col]);
                out.row_mut(row)[col] = terms.fold(0.0, |sum, term| sum + term);
            }
        }
        out
    }

    #[test]
    fn products_have_the_bits_of_plain_sums() {
        let mut rng = Rng::new(0, "products");
        for (rows, inner, cols) in [(1, 1, 1), (4, 3, 8), (5, 7, 9), (3, 16, 17), (9, 2, 1), (13, 5, 24)] {
            let a = Matrix::from_fn(rows, inner, || rng.normal());
            let b = Matrix::from_fn(inner, cols, || rng.normal());
            assert_eq!(a.matmul(&b), naive(&a, &b), "{rows} x {inner} x {cols}");
            assert_eq!(
                a.matmul_transposed(&b.transposed()),
                naive(&a, &b),
                "{rows} x {inner} x {cols}, transposed"
            );
        }
    }
}

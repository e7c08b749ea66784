//! Memory that starts at a cache line.

/// A cache line, which vectors of 64 bytes must not straddle.
const LINE_BYTES: usize = 64;

/// Numbers that start at a cache line.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    values: Vec<T>,
    start: usize,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    pub(crate) fn zeros(len: usize) -> Self {
        let line = LINE_BYTES / size_of::<T>();
        let values = vec![T::default(); len + line];
        let start = values.as_ptr().align_offset(LINE_BYTES).min(line);
        Self { values, start, len }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        &self.values[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.values[self.start..self.start + self.len]
    }
}

impl<T: Copy + Default> Clone for Aligned<T> {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.len);
        copy.as_mut_slice().copy_from_slice(self.as_slice());
        copy
    }
}

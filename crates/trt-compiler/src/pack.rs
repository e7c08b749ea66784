//! Weights in few bits: symmetric integers, and scales that lose the least.

use std::io::{self, Write};

use half::f16;
use onnx_export::{Checkpoint, Packed, PackedBits, PackedLayer};
use rayon::prelude::*;
use serde::Serialize;

use crate::calibrate::each_row;
use crate::error::CompileError;
use crate::interrupt::Interrupt;

/// Weights that are turned at a time: what is held is this many in fp32 and their integers, whatever the model's size.
const PIECE: usize = 1 << 20;

/// The steps that a scale is tried with, as shares of what would reach the largest weight of its block. Cutting the largest
/// off makes all others finer; which share is best differs from block to block.
const SHARES_4: [f32; 13] = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72, 0.68, 0.64, 0.6, 0.56, 0.52];
/// The same for 8 bits, where there is little to gain.
const SHARES_8: [f32; 5] = [1.0, 0.97, 0.94, 0.91, 0.88];

/// What was written, for whoever audits the version.
#[derive(Clone, Debug, Serialize)]
pub struct PackedRecord {
    /// The file.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Bits of a weight.
    pub bits: usize,
    /// Weights that share a scale at most; a whole row in 8 bits.
    pub block: usize,
    /// Layers whose weights are in it.
    pub layers: usize,
    /// Root of the mean square error of the weights, as a share of the root of their mean square.
    pub error: f64,
    /// The layer with the largest such error, and that.
    pub worst: Option<(String, f64)>,
}

/// Writes the file of a layout, a piece of a tensor at a time. `progress` hears how many of how many layers are done.
pub(crate) fn write(
    checkpoint: &Checkpoint,
    packed: &Packed,
    out: &mut impl Write,
    interrupt: &Interrupt,
    progress: impl Fn(usize, usize),
) -> Result<PackedRecord, CompileError> {
    let failed = |source: io::Error| CompileError::Io {
        doing: "write",
        path: checkpoint.folder().join(packed.file),
        source,
    };
    out.write_all(&packed.header).map_err(failed)?;
    let (mut all, mut worst) = (Loss::default(), None::<(String, f64)>);
    for (done, layer) in packed.layers.iter().enumerate() {
        progress(done, packed.layers.len());
        let loss = write_layer(checkpoint, layer, packed.bits, out, interrupt, &failed)?;
        let error = loss.share();
        if worst.as_ref().is_none_or(|(_, known)| *known < error) {
            worst = Some((layer.layer.clone(), error));
        }
        all.add(&loss);
    }
    Ok(PackedRecord {
        file: packed.file.to_owned(),
        bytes: packed.length_bytes(),
        bits: packed.bits.count(),
        block: packed.layers.iter().map(|layer| layer.block).max().unwrap_or_default(),
        layers: packed.layers.len(),
        error: all.share(),
        worst,
    })
}

fn write_layer(
    checkpoint: &Checkpoint,
    layer: &PackedLayer,
    bits: PackedBits,
    out: &mut impl Write,
    interrupt: &Interrupt,
    failed: &impl Fn(io::Error) -> CompileError,
) -> Result<Loss, CompileError> {
    let mut scales = Vec::new();
    let mut loss = Loss::default();
    let mut piece = Vec::with_capacity(PIECE + layer.inputs);
    let mut flush = |piece: &mut Vec<f32>| -> Result<(), CompileError> {
        interrupt.check()?;
        let blocks: Vec<Block> = piece.par_chunks(layer.block).map(|block| Block::of(block, bits)).collect();
        for block in &blocks {
            out.write_all(&block.bytes(bits)).map_err(failed)?;
            scales.extend_from_slice(&block.scale.to_le_bytes());
            loss.add(&block.loss);
        }
        piece.clear();
        Ok(())
    };
    let mut outcome = Ok(());
    each_row(checkpoint, &layer.layer, |row| {
        piece.extend_from_slice(row);
        if piece.len() >= PIECE && outcome.is_ok() {
            outcome = flush(&mut piece);
        }
    })?;
    outcome?;
    flush(&mut piece)?;
    out.write_all(&scales).map_err(failed)?;
    Ok(loss)
}

/// How far numbers are from what they were.
#[derive(Clone, Copy, Debug, Default)]
struct Loss {
    off: f64,
    length: f64,
}

impl Loss {
    fn add(&mut self, other: &Self) {
        self.off += other.off;
        self.length += other.length;
    }

    fn share(&self) -> f64 {
        (self.off / self.length.max(f64::MIN_POSITIVE)).sqrt()
    }
}

/// Weights that share a scale.
struct Block {
    scale: f16,
    integers: Vec<i8>,
    loss: Loss,
}

impl Block {
    /// The integers and the scale that are nearest to the weights, by the square of the difference, of those tried.
    fn of(weights: &[f32], bits: PackedBits) -> Self {
        let (least, most, shares) = match bits {
            PackedBits::Eight => (-127.0, 127.0, &SHARES_8[..]),
            PackedBits::Four => (-8.0, 7.0, &SHARES_4[..]),
        };
        let largest = weights.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
        let length = weights.iter().map(|w| f64::from(*w).powi(2)).sum();
        let mut best = (f64::INFINITY, f16::ONE);
        for share in shares {
            // As the graph holds it.
            let scale = f16::from_f32(largest * share / most);
            let step = scale.to_f32();
            if step == 0.0 || !step.is_finite() {
                continue;
            }
            let reach = step.recip();
            let off: f32 = weights.iter().map(|w| (w - integer(w * reach, least, most) * step).powi(2)).sum();
            if f64::from(off) < best.0 {
                best = (off.into(), scale);
            }
        }
        // Zeros, or weights that are nothing to fp16: any scale does.
        let (off, scale) = if best.0.is_finite() { best } else { (length, f16::ONE) };
        let reach = scale.to_f32().recip();
        #[expect(clippy::cast_possible_truncation, reason = "cut to the range of the bits")]
        let integers = weights.iter().map(|w| integer(w * reach, least, most) as i8).collect();
        Self { scale, integers, loss: Loss { off, length } }
    }

    fn bytes(&self, bits: PackedBits) -> Vec<u8> {
        let byte = |x: &i8| x.to_le_bytes()[0];
        match bits {
            PackedBits::Eight => self.integers.iter().map(byte).collect(),
            PackedBits::Four => {
                let nibbles = self.integers.chunks(2);
                nibbles.map(|pair| pair.iter().rev().fold(0, |all, x| (all << 4) | (byte(x) & 0xf))).collect()
            }
        }
    }
}

/// The nearest integer within the bits; to even where two are as near, as `QuantizeLinear` rounds.
fn integer(x: f32, least: f32, most: f32) -> f32 {
    x.round_ties_even().clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `DequantizeLinear` makes of the bytes.
    fn back(block: &Block, bits: PackedBits) -> Vec<f32> {
        let of = |x: i8| f32::from(x) * block.scale.to_f32();
        let bytes = block.bytes(bits);
        match bits {
            PackedBits::Eight => bytes.into_iter().map(|byte| of(i8::from_le_bytes([byte]))).collect(),
            PackedBits::Four => {
                let signed = |nibble: u8| i8::from_le_bytes([nibble << 4]) >> 4;
                bytes.into_iter().flat_map(|byte| [of(signed(byte)), of(signed(byte >> 4))]).collect()
            }
        }
    }

    #[test]
    fn blocks_come_back_as_near_as_their_bits_allow() {
        let even: Vec<f32> = (-64_i16..64).map(|i| f32::from(i) / 64.0).collect();
        let mut outlier = even.clone();
        outlier[5] = 3.0;
        let check = |row: &str, weights: &[f32], bits, most: f64| {
            let block = Block::of(weights, bits);
            let found = back(&block, bits);
            assert_eq!(found.len(), weights.len(), "{row}");
            let off: f64 = found.iter().zip(weights).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            assert!((off - block.loss.off).abs() <= 1e-6 + off * 1e-3, "{row}: {off} for {}", block.loss.off);
            assert!(block.loss.share() <= most, "{row}: {}", block.loss.share());
        };
        check("even, 8", &even, PackedBits::Eight, 5e-3);
        check("even, 4", &even, PackedBits::Four, 8e-2);
        check("outlier, 8", &outlier, PackedBits::Eight, 2e-2);
        check("outlier, 4", &outlier, PackedBits::Four, 2.5e-1);
        check("one", &[1.0; 16], PackedBits::Four, 1e-3);
        check("zeros", &[0.0; 16], PackedBits::Four, 0.0);
        check("too small for fp16", &[1e-12; 16], PackedBits::Eight, 1.0);
    }

    /// Cutting off is worth it where one weight is far from the others, and never makes it worse.
    #[test]
    fn a_scale_that_cuts_off_is_taken_where_it_is_nearer() {
        let mut weights = vec![0.1_f32; 127];
        weights.iter_mut().enumerate().for_each(|(i, w)| *w *= ((i * 37 % 19) as f32 - 9.0) / 9.0);
        weights.push(0.16);
        let block = Block::of(&weights, PackedBits::Four);
        assert!(block.scale.to_f32() < 0.95 * 0.16 / 7.0, "{}", block.scale);
    }
}

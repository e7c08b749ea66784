//! The shapes an engine is built for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Smallest, most usual and largest size of one dynamic dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The smallest the engine takes.
    pub min: u32,
    /// What its kernels are chosen for.
    pub opt: u32,
    /// The largest the engine takes.
    pub max: u32,
}

/// Batch × sequence length, each with its span. Written `1,8,64x1,128,512`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Sentences in one call.
    pub batch: Span,
    /// Tokens in a sentence, special tokens included.
    pub sequence: Span,
}

impl Profile {
    /// 1 to 64 sentences, best at 8; 1 to 512 tokens, best at 128.
    pub const DEFAULT: Self =
        Self { batch: Span { min: 1, opt: 8, max: 64 }, sequence: Span { min: 1, opt: 128, max: 512 } };

    /// For a language model, which gives a number for each word of its vocabulary after each token: 1 text of 1 to 1024
    /// tokens, best at 128.
    pub const DECODER: Self =
        Self { batch: Span { min: 1, opt: 1, max: 1 }, sequence: Span { min: 1, opt: 128, max: 1024 } };

    /// The same profile with no sequence longer than the model's positions.
    #[must_use]
    pub fn capped(mut self, max_sequence: usize) -> Self {
        let cap = u32::try_from(max_sequence).unwrap_or(u32::MAX).max(1);
        let sequence = &mut self.sequence;
        sequence.max = sequence.max.min(cap);
        sequence.opt = sequence.opt.min(cap);
        sequence.min = sequence.min.min(cap);
        self
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.min, self.opt, self.max)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.batch, self.sequence)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let sizes: Result<Vec<u32>, _> = text.split(',').map(|size| size.trim().parse::<u32>()).collect();
        let span = match sizes.as_deref() {
            Ok([size]) => Self { min: *size, opt: *size, max: *size },
            Ok([min, opt, max]) => Self { min: *min, opt: *opt, max: *max },
            _ => return Err(format!("{text:?} is not one size or MIN,OPT,MAX")),
        };
        // TensorRT counts in 32 bits with a sign.
        if i32::try_from(span.max).is_err() {
            return Err(format!("{text:?}: no size may be over {}", i32::MAX));
        }
        if span.min == 0 || span.min > span.opt || span.opt > span.max {
            return Err(format!("{text:?}: sizes must rise from at least 1, MIN ≤ OPT ≤ MAX"));
        }
        Ok(span)
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (batch, sequence) = text
            .split_once('x')
            .ok_or_else(|| format!("{text:?} is not BATCHxSEQUENCE, such as {}", Self::DEFAULT))?;
        Ok(Self { batch: batch.parse()?, sequence: sequence.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_parse_or_say_why_not() {
        let check = |text: &str, expected: Result<&str, &str>| match (text.parse::<Profile>(), expected) {
            (Ok(profile), Ok(shown)) => assert_eq!(profile.to_string(), shown, "{text}"),
            (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
            (got, _) => panic!("{text}: {got:?}"),
        };
        check("1,8,64x1,128,512", Ok("1,8,64x1,128,512"));
        check("8x128", Ok("8,8,8x128,128,128"));
        check("1, 2, 4x16", Ok("1,2,4x16,16,16"));
        check("8", Err("BATCHxSEQUENCE"));
        check("1,8x4", Err("MIN,OPT,MAX"));
        check("0x4", Err("at least 1"));
        check("8,4,16x4", Err("MIN ≤ OPT"));
        check("-1x4", Err("MIN,OPT,MAX"));
        check("4294967295x4", Err("2147483647"));
    }
}

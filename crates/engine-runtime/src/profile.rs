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

/// Batch × sequence length, each with its span, and × tokens in the cache where the engine has one. Written
/// `1,8,64x1,128,512` and `1x1,128,1024x0,512,3072`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Sentences in one call.
    pub batch: Span,
    /// Tokens in a sentence, special tokens included. With a cache: those that come in with one call.
    pub sequence: Span,
    /// Tokens that the cache holds already, padding included; 0 before the first call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past: Option<Span>,
}

impl Profile {
    /// 1 to 64 sentences, best at 8; 1 to 512 tokens, best at 128.
    pub const DEFAULT: Self = Self {
        batch: Span { min: 1, opt: 8, max: 64 },
        sequence: Span { min: 1, opt: 128, max: 512 },
        past: None,
    };

    /// For a language model, which gives a number for each word of its vocabulary after each token: 1 text of 1 to 1024
    /// tokens, best at 128.
    pub const DECODER: Self = Self {
        batch: Span { min: 1, opt: 1, max: 1 },
        sequence: Span { min: 1, opt: 128, max: 1024 },
        past: None,
    };

    /// The same with a cache of up to 3072 tokens, best at 512. A prompt of more than 1024 goes in in pieces.
    pub const CACHED: Self = Self { past: Some(Self::PAST), ..Self::DECODER };

    /// What a cache holds where nothing else is asked for.
    const PAST: Span = Span { min: 0, opt: 512, max: 3072 };

    /// The same profile with no sequence longer than the model's positions, of which a cache may take half.
    #[must_use]
    pub fn capped(mut self, max_sequence: usize) -> Self {
        let cap = u32::try_from(max_sequence).unwrap_or(u32::MAX).max(1);
        self.sequence = self.sequence.capped(if self.past.is_some() { (cap / 2).max(1) } else { cap });
        self.past = self.past.map(|past| past.capped(cap.saturating_sub(self.sequence.max)));
        self
    }

    /// The same profile with a cache, which where it is not given takes the positions that sequences leave.
    #[must_use]
    pub fn cached(mut self, max_sequence: usize) -> Self {
        let left = u32::try_from(max_sequence).unwrap_or(u32::MAX).saturating_sub(self.sequence.max);
        self.past.get_or_insert(Self::PAST.capped(left));
        self
    }

    /// Tokens of a whole text: those in the cache and those that come in.
    #[must_use]
    pub fn total(&self) -> Span {
        let past = self.past.unwrap_or(Span { min: 0, opt: 0, max: 0 });
        Span {
            min: self.sequence.min.saturating_add(past.min),
            opt: self.sequence.opt.saturating_add(past.opt),
            max: self.sequence.max.saturating_add(past.max),
        }
    }

    /// The profile with a word for each of its parts.
    #[must_use]
    pub fn in_words(&self) -> String {
        let past = self.past.map(|past| format!(" × past {past}")).unwrap_or_default();
        format!("batch {} × seq {}{past}", self.batch, self.sequence)
    }
}

impl Span {
    /// No larger than `cap`.
    fn capped(self, cap: u32) -> Self {
        Self { min: self.min.min(cap), opt: self.opt.min(cap), max: self.max.min(cap) }
    }

    /// The span that is written as `text`, whose sizes are at least `least`.
    fn parse(text: &str, least: u32) -> Result<Self, String> {
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
        if span.min < least || span.min > span.opt || span.opt > span.max {
            return Err(format!("{text:?}: sizes must rise from at least {least}, MIN ≤ OPT ≤ MAX"));
        }
        Ok(span)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{},{}", self.min, self.opt, self.max)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.batch, self.sequence)?;
        self.past.map_or(Ok(()), |past| write!(f, "x{past}"))
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text, 1)
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('x').collect();
        let (batch, sequence, past) = match parts.as_slice() {
            [batch, sequence] => (batch, sequence, None),
            [batch, sequence, past] => (batch, sequence, Some(Span::parse(past, 0)?)),
            _ => {
                return Err(format!(
                    "{text:?} is not BATCHxSEQUENCE or, with a cache, BATCHxSEQUENCExPAST, such as {} and {}",
                    Self::DEFAULT,
                    Self::CACHED
                ));
            }
        };
        Ok(Self { batch: batch.parse()?, sequence: sequence.parse()?, past })
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
        check("1x1,128,1024x0,512,3072", Ok("1,1,1x1,128,1024x0,512,3072"));
        check("1x1x7", Ok("1,1,1x1,1,1x7,7,7"));
        check("1x1x2x3", Err("BATCHxSEQUENCExPAST"));
        check("1x0,1,2x0", Err("at least 1"));
        check("1,8x4", Err("MIN,OPT,MAX"));
        check("0x4", Err("at least 1"));
        check("8,4,16x4", Err("MIN ≤ OPT"));
        check("-1x4", Err("MIN,OPT,MAX"));
        check("4294967295x4", Err("2147483647"));
    }

    #[test]
    fn caches_and_sequences_share_the_models_positions() {
        let check = |profile: Profile, positions: usize, expected: &str| {
            assert_eq!(profile.capped(positions).to_string(), expected, "{positions}");
        };
        check(Profile::CACHED, 131_072, "1,1,1x1,128,1024x0,512,3072");
        check(Profile::CACHED, 2048, "1,1,1x1,128,1024x0,512,1024");
        check(Profile::CACHED, 512, "1,1,1x1,128,256x0,256,256");
        check(Profile::CACHED, 1, "1,1,1x1,1,1x0,0,0");
        check(Profile::DECODER, 512, "1,1,1x1,128,512");
        let wished = Profile { sequence: Span { min: 1, opt: 8, max: 400 }, ..Profile::DECODER }.cached(512);
        assert_eq!(wished.to_string(), "1,1,1x1,8,400x0,112,112");
        assert_eq!(wished.total().to_string(), "1,120,512");
    }
}

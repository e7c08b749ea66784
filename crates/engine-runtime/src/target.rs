//! The GPU generations an engine is built for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::library::Flavour;

/// A GPU generation by its compute capability: 89 is SM 8.9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Target(u16);

impl Target {
    /// What TensorRT-RTX 1.7 can build for: Turing, Ampere (two), Ada, Blackwell (two). `NvInfer.h`, `ComputeCapability`.
    #[cfg(not(feature = "tensorrt-enterprise"))]
    pub const SUPPORTED: [Self; 6] = [Self(75), Self(80), Self(86), Self(89), Self(120), Self(121)];

    /// What the TensorRT 11 of data-centre GPUs can build for, each on a host with such a GPU: from Turing to Blackwell.
    #[cfg(feature = "tensorrt-enterprise")]
    pub const SUPPORTED: [Self; 11] = [
        Self(75),
        Self(80),
        Self(86),
        Self(87),
        Self(89),
        Self(90),
        Self(100),
        Self(103),
        Self(110),
        Self(120),
        Self(121),
    ];

    /// What is built for when nothing is said: everything from Ampere on.
    pub const DEFAULT: [Self; 5] = [Self(80), Self(86), Self(89), Self(120), Self(121)];

    /// What is built for on this host when nothing is said: [`DEFAULT`](Self::DEFAULT) by TensorRT-RTX; by the TensorRT of
    /// data-centre GPUs, which builds for the GPU at hand, the generation of that, if there is one.
    #[must_use]
    pub fn defaults() -> Vec<Self> {
        let here = || {
            let sm = crate::native::gpus().ok()?.first()?.sm;
            Self::SUPPORTED.into_iter().find(|target| target.sm() == sm)
        };
        let here = if Flavour::HERE == Flavour::Enterprise { here() } else { None };
        here.map_or(Self::DEFAULT.to_vec(), |target| vec![target])
    }

    /// The compute capability, times ten.
    #[must_use]
    pub fn sm(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim().trim_start_matches("sm").trim_start_matches('_').replace('.', "");
        let supported = || Self::SUPPORTED.map(|target| target.to_string()).join(", ");
        let sm = digits.parse().map_err(|_| format!("{text:?} is no SM; one of {}", supported()))?;
        if Self::SUPPORTED.contains(&Self(sm)) {
            return Ok(Self(sm));
        }
        let hint = match sm {
            _ if Flavour::HERE == Flavour::Enterprise => "",
            90 | 100 | 103 => "; data-centre GPUs of that generation need the enterprise TensorRT",
            _ => "",
        };
        let title = Flavour::HERE.title();
        Err(format!("{title} builds no engines for SM {sm}, only for {}{hint}", supported()))
    }
}

/// How a list of targets is written in a path: `sm89`, `sm80+` for all from 80 on, else `sm75-89-120`.
#[must_use]
pub fn label(targets: &[Target]) -> String {
    let mut sorted = targets.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let Some(lowest) = sorted.first() else {
        return "sm-none".to_owned();
    };
    let all_above: Vec<Target> = Target::SUPPORTED.into_iter().filter(|target| target >= lowest).collect();
    if sorted.len() > 1 && sorted == all_above {
        return format!("sm{lowest}+");
    }
    format!("sm{}", sorted.iter().map(Target::to_string).collect::<Vec<_>>().join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_parse_in_every_common_spelling() {
        let check = |text: &str, expected: Option<u16>| {
            assert_eq!(text.parse::<Target>().ok().map(Target::sm), expected, "{text}");
        };
        check("89", Some(89));
        check("8.9", Some(89));
        check("sm_89", Some(89));
        check("sm120", Some(120));
        check("90", None);
        check("ada", None);
    }

    #[test]
    fn labels_are_short_and_distinct() {
        let check = |sms: &[u16], expected: &str| {
            let targets: Vec<Target> = sms.iter().map(|sm| Target(*sm)).collect();
            assert_eq!(label(&targets), expected, "{sms:?}");
        };
        check(&[89], "sm89");
        check(&[121, 80, 86, 89, 120], "sm80+");
        check(&[75, 89], "sm75-89");
        check(&[121], "sm121");
        check(&[], "sm-none");
    }
}

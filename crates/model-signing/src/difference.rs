//! What differs between a model and what was signed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::statement::Statement;

/// One way in which a model is not what was signed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// A file has other bytes.
    Altered {
        /// Which.
        path: String,
        /// What was signed.
        signed: [u8; 32],
        /// What it has.
        found: [u8; 32],
    },
    /// A file is there that was not signed.
    Extra {
        /// Which.
        path: String,
    },
    /// A file is not there.
    Missing {
        /// Which.
        path: String,
    },
    /// A file has another name.
    Renamed {
        /// The one that was signed.
        from: String,
        /// The one that it has.
        to: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Altered { path, .. } => write!(f, "{path} has other bytes than were signed"),
            Self::Extra { path } => write!(f, "{path} was not signed"),
            Self::Missing { path } => write!(f, "{path} was signed and is missing"),
            Self::Renamed { from, to } => write!(f, "{from} is called {to} now"),
        }
    }
}

/// A model is not what was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// How, in the order of paths; never empty.
    pub differences: Vec<Difference>,
}

impl std::error::Error for Mismatch {}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        f.write_str("the files are not those that were signed: ")?;
        for (i, difference) in self.differences.iter().take(SHOWN).enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{difference}")?;
        }
        match self.differences.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Statement {
    /// Whether a model's files, given by path and SHA-256, are those that were signed.
    ///
    /// What the signer left out may be there or not; a caller to whom that matters asks
    /// [`ignores`](Self::ignores).
    pub fn matches<P: Into<String>>(
        &self,
        files: impl IntoIterator<Item = (P, [u8; 32])>,
    ) -> Result<(), Mismatch> {
        let mut found: BTreeMap<String, [u8; 32]> =
            files.into_iter().map(|(path, sha256)| (path.into(), sha256)).collect();
        let mut differences = Vec::new();
        let mut missing = Vec::new();
        for resource in &self.resources {
            match found.remove(&resource.path) {
                Some(sha256) if sha256 == resource.sha256 => {}
                Some(sha256) => differences.push(Difference::Altered {
                    path: resource.path.clone(),
                    signed: resource.sha256,
                    found: sha256,
                }),
                None => missing.push(resource),
            }
        }
        found.retain(|path, _| !self.ignores(path));
        // Of the same bytes under a new name nothing is missing; of several such names, the first is taken.
        let mut by_digest: HashMap<[u8; 32], Vec<String>> = HashMap::new();
        for (path, sha256) in found.iter().rev() {
            by_digest.entry(*sha256).or_default().push(path.clone());
        }
        for resource in missing {
            match by_digest.get_mut(&resource.sha256).and_then(Vec::pop) {
                Some(to) => {
                    found.remove(&to);
                    differences.push(Difference::Renamed { from: resource.path.clone(), to });
                }
                None => differences.push(Difference::Missing { path: resource.path.clone() }),
            }
        }
        differences.extend(found.into_keys().map(|path| Difference::Extra { path }));
        if differences.is_empty() { Ok(()) } else { Err(Mismatch { differences }) }
    }
}

//! The toy: three agents, two versions each.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use model_store::{AgentName, VersionName};

use crate::folder::Folder;
use crate::train::{analyst, memory, roberta, synthesizer};

/// The seed of everything that is made without naming one.
pub const DEFAULT_SEED: u64 = 0;

/// An agent of the toy store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `analyst`: a BERT classifier into negative, neutral and positive.
    Analyst,
    /// `memory`: a sentence-transformers embedder.
    Memory,
    /// `synthesizer`: a Llama-type language model.
    Synthesizer,
}

/// A version of an agent; the second was trained on from where the first stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToyVersion {
    /// `v1`
    V1,
    /// `v2`
    V2,
}

impl Kind {
    /// All agents, in name order.
    pub const ALL: [Self; 3] = [Self::Analyst, Self::Memory, Self::Synthesizer];

    /// The agent's name.
    #[expect(clippy::missing_panics_doc, reason = "the names are fixed and valid")]
    #[must_use]
    pub fn agent(self) -> AgentName {
        let name = match self {
            Self::Analyst => "analyst",
            Self::Memory => "memory",
            Self::Synthesizer => "synthesizer",
        };
        name.parse().unwrap_or_else(|e| panic!("a fixed agent name is valid: {e}"))
    }

    /// What it is, in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Analyst => "bert classifier",
            Self::Memory => "sentence embedder",
            Self::Synthesizer => "llama",
        }
    }

    /// The versions up to `last`.
    fn train(self, seed: u64, last: ToyVersion) -> Vec<Arc<Folder>> {
        let folders = match self {
            Self::Analyst => analyst::train(seed, last),
            Self::Memory => memory::train(seed, last),
            Self::Synthesizer => synthesizer::train(seed, last),
        };
        folders.into_iter().map(Arc::new).collect()
    }
}

impl ToyVersion {
    /// Both, in the order they are published.
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];

    /// The version's name.
    #[expect(clippy::missing_panics_doc, reason = "the names are fixed and valid")]
    #[must_use]
    pub fn name(self) -> VersionName {
        let name = match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        };
        name.parse().unwrap_or_else(|e| panic!("a fixed version name is valid: {e}"))
    }
}

/// The versions of one agent, up to the last that anybody asked for.
type Versions = Vec<Arc<Folder>>;

/// What was trained in this process for the default seed. The lock is held while training, so that callers wait for one
/// training instead of each doing their own.
static KEPT: [Mutex<Versions>; Kind::ALL.len()] = [const { Mutex::new(Vec::new()) }; Kind::ALL.len()];

fn versions(kind: Kind, seed: u64, last: ToyVersion) -> Versions {
    if seed != DEFAULT_SEED {
        return kind.train(seed, last);
    }
    // A training that panicked left what was there before.
    let mut kept = KEPT[kind as usize].lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() <= last as usize {
        *kept = kind.train(seed, last);
    }
    kept.clone()
}

/// Every folder of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toy {
    seed: u64,
    folders: [Versions; Kind::ALL.len()],
}

impl Toy {
    /// The seed it was made from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// One version of one agent.
    #[must_use]
    pub fn folder(&self, kind: Kind, version: ToyVersion) -> &Arc<Folder> {
        &self.folders[kind as usize][version as usize]
    }
}

/// Trains all agents of a seed, one thread each. The result depends on the seed alone.
#[must_use]
pub fn generate(seed: u64) -> Toy {
    let folders = thread::scope(|scope| {
        let running = Kind::ALL.map(|kind| scope.spawn(move || versions(kind, seed, ToyVersion::V2)));
        running.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    Toy { seed, folders }
}

/// `analyst`: a BERT classifier into negative, neutral and positive.
#[must_use]
pub fn analyst(seed: u64, version: ToyVersion) -> Arc<Folder> {
    folder(Kind::Analyst, seed, version)
}

/// `memory`: a sentence-transformers embedder.
#[must_use]
pub fn memory(seed: u64, version: ToyVersion) -> Arc<Folder> {
    folder(Kind::Memory, seed, version)
}

/// `synthesizer`: a Llama-type language model.
#[must_use]
pub fn synthesizer(seed: u64, version: ToyVersion) -> Arc<Folder> {
    folder(Kind::Synthesizer, seed, version)
}

/// One version of one agent. Only that agent is trained, and no longer than the version needs; what the default seed gives is
/// kept for the rest of the process.
#[must_use]
pub fn folder(kind: Kind, seed: u64, version: ToyVersion) -> Arc<Folder> {
    versions(kind, seed, version).swap_remove(version as usize)
}

/// A RoBERTa-type classifier (byte-level BPE, positions from 2, one token type, the two-layer head), for tests of a second
/// family. It belongs to no agent. **Its weights are seeded random numbers**: its answers mean nothing, but every reader must
/// find the same ones.
#[must_use]
pub fn roberta_classifier() -> Folder {
    roberta::folder(DEFAULT_SEED)
}

/// Writes the second version of an agent, of the default seed, into `dir`.
pub fn write_model(kind: Kind, dir: &Path) -> io::Result<()> {
    folder(kind, DEFAULT_SEED, ToyVersion::V2).write_to(dir)
}

/// `count` sentences with their labels that `analyst` was never trained on, for measuring how well it does.
#[must_use]
pub fn held_out_sentences(seed: u64, count: usize) -> Vec<(String, &'static str)> {
    analyst::held_out(seed, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever wants only the first version does not wait for the second, and must get the same bytes.
    #[test]
    fn the_first_version_does_not_depend_on_the_second() {
        let [alone, both] = ToyVersion::ALL.map(|last| Kind::Memory.train(12, last));
        assert_eq!((alone.len(), both.len()), (1, 2));
        assert_eq!(alone[0], both[0]);
        assert_ne!(both[0], both[1]);
    }
}

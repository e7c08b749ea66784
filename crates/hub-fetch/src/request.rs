//! What is asked for.

use crate::DEFAULT_REVISION;

/// A model at a revision.
#[derive(Clone, Debug)]
pub struct Request {
    /// `organisation/name`.
    pub model_id: String,
    /// A branch, a tag, `refs/pr/<number>` or a commit.
    pub revision: String,
    /// What to do about graphs that the repository has.
    pub graphs: Graphs,
    /// How far files that the cache has are trusted.
    pub existing: Existing,
    /// How many files are downloaded at once, from 1 on.
    pub files_at_once: usize,
}

/// Whether a repository's own ONNX graphs are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Graphs {
    /// They are left where they are.
    #[default]
    Leave,
    /// `model.onnx` with its data, at the top and in `onnx/`; not the variants in other precisions.
    Take,
}

/// How far files that the cache has are trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// One of the right name and size is right: whoever put it there has checked it.
    #[default]
    BySize,
    /// Each is hashed again, and downloaded again if it is damaged.
    ByDigest,
}

impl Request {
    /// The model at `main`, without graphs, four files at once.
    #[must_use]
    pub fn new(model_id: impl Into<String>) -> Self {
        Self {
            model_id: model_id.into(),
            revision: DEFAULT_REVISION.to_owned(),
            graphs: Graphs::default(),
            existing: Existing::default(),
            files_at_once: 4,
        }
    }

    /// The same at another revision.
    #[must_use]
    pub fn at(self, revision: impl Into<String>) -> Self {
        Self { revision: revision.into(), ..self }
    }
}

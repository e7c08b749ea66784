//! What a graph computes in which type: the part of the report that says what was cast, and what was kept in fp32.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::DataType;

/// A module that computes something in fp32 although the precision is a lower one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeptModule {
    /// Its name as Hugging Face has it; `*` stands for the number of any layer.
    pub module: String,
    /// What it does in fp32, or who asked for it.
    pub why: String,
}

/// How many values are turned from one element type into another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CastCount {
    /// The element type before.
    pub from: DataType,
    /// The element type after.
    pub to: DataType,
    /// Number of values, weights included.
    pub count: usize,
}

/// Collects both while a graph is written.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    kept: RefCell<BTreeSet<(String, String)>>,
    casts: BTreeMap<(DataType, DataType), usize>,
}

impl Ledger {
    pub(crate) fn keep(&self, module: String, why: &str) {
        self.kept.borrow_mut().insert((module, why.to_owned()));
    }

    pub(crate) fn cast(&mut self, from: DataType, to: DataType) {
        *self.casts.entry((from, to)).or_default() += 1;
    }

    /// By module, and by type.
    pub(crate) fn finish(self) -> (Vec<KeptModule>, Vec<CastCount>) {
        let kept = self.kept.into_inner().into_iter().map(|(module, why)| KeptModule { module, why });
        let casts = self.casts.into_iter().map(|((from, to), count)| CastCount { from, to, count });
        (kept.collect(), casts.collect())
    }
}

//! What would be loaded, and what every place says: a report, without loading anything.

use std::fmt;
use std::path::PathBuf;

use model_store::with_causes;
use serde::Serialize;

use super::{Found, Place, ResolveOptions, ResolvedModel, Scope, Search, Strictness};
use crate::LoadError;

/// Every place that was looked at, and which of them serves the agent.
#[derive(Debug, Clone, Serialize)]
pub struct Resolution {
    /// The agent asked for.
    pub agent: String,
    /// Whether only the store may serve.
    pub strict: bool,
    /// The places, in the order in which they are asked.
    pub places: Vec<Looked>,
    /// What would be loaded; `None` where no place has it.
    pub model: Option<ResolvedModel>,
}

/// One place that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Looked {
    /// `store`, `folder`, `agent-map`, `map-hub` (the agent map's `hf_id` in the Hub cache) `hub-cache` or (with the feature
    /// `hub`) `hub`.
    pub place: &'static str,
    /// What came of it.
    pub outcome: Outcome,
    /// Where the model is, or would be.
    pub path: Option<PathBuf>,
    /// What is there or missing, for people.
    pub what: String,
}

/// What came of looking at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It has the model; the first of these serves.
    Found,
    /// It does not have it.
    Missing,
    /// It could not be asked.
    Failed,
    /// It would be asked, and a report asks nobody.
    #[cfg(feature = "hub")]
    WouldFetch,
    /// Nobody named such a place.
    NotAsked,
    /// `STRICT_MODEL_STORE` forbids it.
    Forbidden,
}

/// Looks at every place, and loads nothing. What is missing is part of the report; an error is a name or an agent map
/// that makes no sense.
pub fn dry_run(agent: &str, options: &ResolveOptions) -> Result<Resolution, LoadError> {
    let search = Search::new(agent, options, Scope::Allowed)?;
    let mut model = None;
    let mut places = Vec::new();
    for place in Place::ALL.iter().copied() {
        let looked = |outcome, path, what: String| Looked { place: place.name(), outcome, path, what };
        if !search.asks(place) {
            places.push(looked(Outcome::Forbidden, None, "STRICT_MODEL_STORE forbids it".to_owned()));
            continue;
        }
        #[cfg(feature = "hub")]
        if place == Place::Hub {
            places.push(match search.hub_in_words() {
                Ok(Some((path, what))) => looked(Outcome::WouldFetch, Some(path), what),
                Ok(None) => looked(Outcome::NotAsked, None, "not asked for".to_owned()),
                Err(error) => looked(Outcome::Failed, None, with_causes(&error)),
            });
            continue;
        }
        places.push(match search.look(place) {
            Ok(Found::Model(found)) => {
                let row = looked(Outcome::Found, Some(found.path().to_owned()), found.to_string());
                model.get_or_insert(*found);
                row
            }
            Ok(Found::Absent(missing)) => looked(Outcome::Missing, Some(missing.path), missing.what),
            Ok(Found::NotAsked) => looked(Outcome::NotAsked, None, "not asked for".to_owned()),
            Err(error @ (LoadError::Name { .. } | LoadError::Config { .. })) => return Err(error),
            Err(error) => looked(Outcome::Failed, None, with_causes(&error)),
        });
    }
    let strict = options.strictness == Strictness::Strict;
    Ok(Resolution { agent: agent.to_owned(), strict, places, model })
}

impl fmt::Display for Resolution {
    /// One line a place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, looked) in self.places.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{:<10} {}", looked.place, looked.what)?;
        }
        Ok(())
    }
}

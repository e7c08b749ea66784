//! Who may read what: the rules file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Which models are not for everybody, and which tokens open them.
///
/// ```json
/// {
///   "tokens": {"hf_…": ["acme/secret", "acme/gated"]},
///   "private": ["acme/secret"],
///   "gated": ["acme/gated"],
///   "renamed": {"acme/old": "acme/new"}
/// }
/// ```
///
/// A token is a key of `tokens`, and its value the models that it opens. Without any token every token is taken, as
/// a mirror wants it that knows nobody. The tokens are kept out of `Debug` output.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Tokens, and the private and gated models that each of them opens.
    pub tokens: BTreeMap<String, BTreeSet<String>>,
    /// Models that do not exist for who has no token for them. A name without a slash stands for what is below it too.
    pub private: BTreeSet<String>,
    /// Models that everybody may list, and only who has a token for them may download.
    pub gated: BTreeSet<String>,
    /// Old names of models, and what they are called now.
    pub renamed: BTreeMap<String, String>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules")
            .field("tokens", &format_args!("{} of them", self.tokens.len()))
            .field("private", &self.private)
            .field("gated", &self.gated)
            .field("renamed", &self.renamed)
            .finish()
    }
}

/// A rules file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// It cannot be read.
    #[error("cannot read the rules in {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no rules file.
    #[error("{} holds no rules; see `hub-server --help` for what they look like", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller<'a> {
    /// Without a token.
    Nobody,
    /// With one that is known.
    Known(&'a str),
    /// With one that is not.
    Unknown,
}

impl Rules {
    /// Reads a rules file.
    pub fn read(path: &Path) -> Result<Self, RulesError> {
        let text =
            std::fs::read(path).map_err(|source| RulesError::Read { path: path.to_owned(), source })?;
        serde_json::from_slice(&text).map_err(|source| RulesError::Parse { path: path.to_owned(), source })
    }

    /// Who says this in the `Authorization` header.
    pub(crate) fn caller<'a>(&self, authorization: Option<&'a str>) -> Caller<'a> {
        let Some(header) = authorization else { return Caller::Nobody };
        match header.strip_prefix("Bearer ").map(str::trim) {
            Some(token) if self.tokens.is_empty() || self.tokens.contains_key(token) => Caller::Known(token),
            _ => Caller::Unknown,
        }
    }

    /// The models that are private or gated.
    pub(crate) fn restricted(&self) -> BTreeSet<String> {
        self.private.union(&self.gated).cloned().collect()
    }

    /// Whether the model exists for the caller.
    pub(crate) fn may_see(&self, caller: Caller<'_>, id: &str) -> bool {
        covering(id).all(|name| !self.private.contains(name) || self.opens(caller, id, name))
    }

    /// Whether the caller may download the model's files.
    pub(crate) fn may_download(&self, caller: Caller<'_>, id: &str) -> bool {
        covering(id).all(|name| !self.gated.contains(name) || self.opens(caller, id, name))
    }

    fn opens(&self, caller: Caller<'_>, id: &str, name: &str) -> bool {
        match caller {
            Caller::Known(token) => {
                self.tokens.get(token).is_some_and(|models| models.contains(id) || models.contains(name))
            }
            Caller::Nobody | Caller::Unknown => false,
        }
    }
}

/// The names whose rules hold for a model: its own, and what is before the slash, which may be a model that holds it.
fn covering(id: &str) -> impl Iterator<Item = &str> {
    [Some(id), id.split_once('/').map(|(before, _)| before)].into_iter().flatten()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_what_is_written_beside_it() {
        let rules: Rules = serde_json::from_str(
            r#"{"tokens": {"reader": ["a/secret", "a/gated"], "other": []}, "private": ["a/secret", "b"], "gated": ["a/gated"]}"#,
        )
        .unwrap();
        let check = |header: Option<&str>, id: &str, see: bool, download: bool| {
            let caller = rules.caller(header);
            let found = (rules.may_see(caller, id), rules.may_download(caller, id));
            assert_eq!(found, (see, download), "{header:?} {id}");
        };
        check(None, "a/open", true, true);
        check(None, "a/secret", false, true);
        check(None, "b", false, true);
        check(None, "b/below", false, true);
        check(None, "a/gated", true, false);
        check(Some("Bearer reader"), "a/secret", true, true);
        check(Some("Bearer reader"), "a/gated", true, true);
        check(Some("Bearer other"), "a/secret", false, true);
        check(Some("Bearer other"), "a/gated", true, false);
        assert_eq!(rules.caller(Some("Bearer stranger")), Caller::Unknown);
        assert_eq!(rules.caller(Some("Basic reader")), Caller::Unknown);
        assert!(!format!("{rules:?}").contains("reader"));
    }
}

//! What a request's path means.

use percent_encoding::percent_decode_str;

/// Something that can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/api/models`: what there is.
    List,
    /// `/api/models/{id}` and `/api/models/{id}/revision/{revision}`.
    Info { id: String, revision: String },
    /// `/api/models/{id}/tree/{revision}[/{folder}]`.
    Tree { id: String, revision: String, folder: String },
    /// `/{id}/resolve/{revision}/{path}`.
    Resolve { id: String, revision: String, path: String },
}

/// The branch that is meant where none is named.
pub(crate) const MAIN: &str = "main";

impl Route {
    /// The model that is asked for.
    pub(crate) fn id(&self) -> Option<&str> {
        match self {
            Self::List => None,
            Self::Info { id, .. } | Self::Tree { id, .. } | Self::Resolve { id, .. } => Some(id),
        }
    }
}

/// Reads a path, without its query. `None` for what this server does not have.
pub(crate) fn route(path: &str) -> Option<Route> {
    let parts: Vec<String> = path
        .strip_prefix('/')?
        .split('/')
        .map(|part| Some(percent_decode_str(part).decode_utf8().ok()?.into_owned()))
        .collect::<Option<_>>()?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["api", "models"] => Some(Route::List),
        ["api", "models", rest @ ..] => api(rest),
        rest => {
            let (id, rest) = split(rest, &["resolve"])?;
            let [_, revision, path @ ..] = rest else { return None };
            let path = joined(path)?;
            (!path.is_empty()).then(|| Route::Resolve { id, revision: (*revision).to_owned(), path })
        }
    }
}

fn api(rest: &[&str]) -> Option<Route> {
    let Some((id, rest)) = split(rest, &["revision", "tree"]) else {
        return (rest.len() <= 2)
            .then(|| joined(rest))
            .flatten()
            .map(|id| Route::Info { id, revision: MAIN.to_owned() });
    };
    match rest {
        ["revision", revision] => Some(Route::Info { id, revision: (*revision).to_owned() }),
        ["tree", revision, folder @ ..] => {
            Some(Route::Tree { id, revision: (*revision).to_owned(), folder: joined(folder)? })
        }
        _ => None,
    }
}

/// A model's name of one or two parts before one of `words`, and what follows from the word on.
fn split<'a, 'b>(parts: &'a [&'b str], words: &[&str]) -> Option<(String, &'a [&'b str])> {
    let at = (1..=2).find(|at| parts.get(*at).is_some_and(|part| words.contains(part)))?;
    Some((joined(&parts[..at])?, &parts[at..]))
}

/// The parts as one path, if each of them is the name of something.
fn joined(parts: &[&str]) -> Option<String> {
    let named = |part: &&str| !matches!(*part, "" | "." | "..") && !part.contains(['/', '\\', '\0']);
    parts.iter().all(named).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let info = |id: &str, revision: &str| Some(Route::Info { id: id.into(), revision: revision.into() });
        let tree = |id: &str, revision: &str, folder: &str| {
            Some(Route::Tree { id: id.into(), revision: revision.into(), folder: folder.into() })
        };
        let resolve = |id: &str, revision: &str, path: &str| {
            Some(Route::Resolve { id: id.into(), revision: revision.into(), path: path.into() })
        };
        let check = |path: &str, expected: Option<Route>| assert_eq!(route(path), expected, "{path}");
        check("/api/models", Some(Route::List));
        check("/api/models/gpt2", info("gpt2", "main"));
        check("/api/models/a/b", info("a/b", "main"));
        check("/api/models/a/b/revision/v1", info("a/b", "v1"));
        check("/api/models/gpt2/revision/v1", info("gpt2", "v1"));
        check("/api/models/a/b/revision/refs%2Fpr%2F1", info("a/b", "refs/pr/1"));
        check("/api/models/a/b/tree/main", tree("a/b", "main", ""));
        check("/api/models/a/b/tree/main/1_Pooling", tree("a/b", "main", "1_Pooling"));
        check("/a/b/resolve/main/1_Pooling/config.json", resolve("a/b", "main", "1_Pooling/config.json"));
        check("/gpt2/resolve/main/config.json", resolve("gpt2", "main", "config.json"));
        check("/a/b/resolve/main/a%20b.json", resolve("a/b", "main", "a b.json"));
        check("/a/b/resolve/main/", None);
        check("/a/b/resolve/main/../../etc/passwd", None);
        check("/a/b/resolve/main/%2e%2e/secret", None);
        check("/a/b/resolve/main/x%2F..%2F..%2Fsecret", None);
        check("/a/b/resolve/main/%ff", None);
        check("/../b/resolve/main/x", None);
        check("/api/models/a/b/c", None);
        check("/api/datasets/a/b", None);
        check("/", None);
        check("", None);
    }
}

//! From a request to its answer.

use std::io;
use std::sync::Arc;

use hyper::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HOST, LINK, RANGE,
};
use hyper::{HeaderMap, Method, Response, StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::access::{Caller, Rules};
use crate::answer::{LINKED_ETAG, LINKED_SIZE, REPO_COMMIT, Refusal, insert, moved, with_json};
use crate::body::{Body, full, part_of};
use crate::catalogue::{Catalogue, CatalogueError, Found};
use crate::cdn::{Cdn, Linked};
use crate::pages;
use crate::range::{Part, part};
use crate::route::{Route, route};
use crate::snapshot::{Entry, Snapshot};

/// What answers.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) catalogue: Catalogue,
    pub(crate) rules: Rules,
    pub(crate) cdn: Option<Cdn>,
}

/// Which of the two addresses was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The Hub's.
    Hub,
    /// The one that large files are redirected to.
    Cdn,
}

/// The part of a request that matters here.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

impl Ask {
    pub(crate) fn header(&self, name: impl hyper::header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn flag(&self, name: &str) -> bool {
        self.value(name).is_some_and(|value| matches!(value, "true" | "True" | "1"))
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.uri.query()?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
}

impl Service {
    /// Answers. Reads the disk, so it is called where that may block.
    pub(crate) fn answer(self: &Arc<Self>, ask: &Ask, side: Side) -> Response<Body> {
        if ask.method != Method::GET && ask.method != Method::HEAD {
            return Refusal::ReadOnly.answer();
        }
        let answered = match side {
            Side::Hub => self.hub(ask),
            Side::Cdn => self.linked(ask),
        };
        answered.unwrap_or_else(|failure| match failure {
            Failure::Refused(refusal) => refusal.answer(),
            Failure::Catalogue(error) => broken(ask, &error),
            Failure::Io(error) => broken(ask, &error),
        })
    }

    fn hub(&self, ask: &Ask) -> Result<Response<Body>, Failure> {
        let route = route(ask.uri.path()).ok_or(Refusal::NoPage)?;
        let caller = self.rules.caller(ask.header(AUTHORIZATION));
        if caller == Caller::Unknown {
            return Err(Refusal::UnknownToken.into());
        }
        if let Some(new) = route.id().and_then(|id| self.rules.renamed.get(id)) {
            return Ok(renamed(&ask.uri, route.id().unwrap_or_default(), new));
        }
        match route {
            Route::List => {
                let models = self.catalogue.models()?;
                let mut seen = Vec::with_capacity(models.len());
                for id in models {
                    if self.allows(&id, |id| self.rules.may_see(caller, id))? {
                        seen.push(id);
                    }
                }
                Ok(with_json(&pages::list(&seen)))
            }
            Route::Info { id, revision } => {
                let snapshot = self.find(caller, &id, &revision)?;
                let value = pages::info(&id, &snapshot, &self.rules, ask.flag("blobs"));
                Ok(with_commit(with_json(&value), &snapshot))
            }
            Route::Tree { id, revision, folder } => {
                let snapshot = self.find(caller, &id, &revision)?;
                tree(ask, &snapshot, &folder)
            }
            Route::Resolve { id, revision, path } => {
                let snapshot = self.find(caller, &id, &revision)?;
                if !self.allows(&id, |id| self.rules.may_download(caller, id))? {
                    let page = format!("http://{}/{id}", ask.header(HOST).unwrap_or_default());
                    let with_token = caller != Caller::Nobody;
                    return Err(Refusal::Gated { id, page, with_token }.into());
                }
                let entry = entry_of(&snapshot, &path)?;
                if let (Some(cdn), Some(_)) = (&self.cdn, &entry.sha256) {
                    let link = cdn.link(&Linked { id, commit: snapshot.commit.clone(), path });
                    let answer = moved(StatusCode::FOUND, &link);
                    Ok(with_commit(described(answer, entry), &snapshot))
                } else {
                    let answer = described(file(ask, entry, &path)?, entry);
                    Ok(with_commit(answer, &snapshot))
                }
            }
        }
    }

    /// Whether a rule allows a model by the name it was asked for, and by the one that an alias stands for.
    fn allows(&self, id: &str, rule: impl Fn(&str) -> bool) -> Result<bool, Failure> {
        if !rule(id) {
            return Ok(false);
        }
        Ok(self.catalogue.meant_by(id)?.is_none_or(|target| rule(&target)))
    }

    fn find(&self, caller: Caller<'_>, id: &str, revision: &str) -> Result<Snapshot, Failure> {
        let with_token = caller != Caller::Nobody;
        if !self.allows(id, |id| self.rules.may_see(caller, id))? {
            return Err(Refusal::NoModel { with_token }.into());
        }
        match self.catalogue.find(id, revision)? {
            Found::Snapshot(snapshot) => Ok(snapshot),
            Found::NoRevision => Err(Refusal::NoRevision { revision: revision.to_owned() }.into()),
            Found::NoModel => Err(Refusal::NoModel { with_token }.into()),
        }
    }

    fn linked(&self, ask: &Ask) -> Result<Response<Body>, Failure> {
        let link = self.cdn.as_ref().zip(ask.uri.query()).and_then(|(cdn, query)| cdn.read(query));
        let Some(link) = link.filter(|_| ask.uri.path() == "/file") else {
            return Ok(plain(StatusCode::FORBIDDEN, "the link is not signed here, or has expired"));
        };
        if ask.headers.contains_key(AUTHORIZATION) {
            return Ok(plain(StatusCode::BAD_REQUEST, "only one way to authenticate is allowed"));
        }
        match self.catalogue.find(&link.id, &link.commit)? {
            Found::Snapshot(snapshot) => file(ask, entry_of(&snapshot, &link.path)?, &link.path),
            Found::NoRevision | Found::NoModel => Err(Refusal::NoPage.into()),
        }
    }
}

enum Failure {
    Refused(Refusal),
    Catalogue(CatalogueError),
    Io(io::Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<CatalogueError> for Failure {
    fn from(error: CatalogueError) -> Self {
        Self::Catalogue(error)
    }
}

fn broken(ask: &Ask, error: &(dyn std::error::Error + 'static)) -> Response<Body> {
    tracing::error!(path = ask.uri.path(), error, "cannot answer");
    Refusal::Broken.answer()
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut answer = Response::new(full(text));
    *answer.status_mut() = status;
    answer
}

fn entry_of<'a>(snapshot: &'a Snapshot, path: &str) -> Result<&'a Entry, Failure> {
    let missing = || Refusal::NoEntry { path: path.to_owned(), commit: snapshot.commit.clone() };
    Ok(snapshot.files.get(path).ok_or_else(missing)?)
}

/// The same path with the new name of the model, which a client follows with its token.
fn renamed(uri: &Uri, old: &str, new: &str) -> Response<Body> {
    let path = uri.path().replacen(&format!("/{old}"), &format!("/{new}"), 1);
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    moved(StatusCode::TEMPORARY_REDIRECT, &format!("{path}{query}"))
}

fn with_commit(mut answer: Response<Body>, snapshot: &Snapshot) -> Response<Body> {
    insert(&mut answer, REPO_COMMIT, &snapshot.commit);
    answer
}

/// What a client learns of a file before it has any of it.
fn described(mut answer: Response<Body>, entry: &Entry) -> Response<Body> {
    insert(&mut answer, ETAG, &format!("\"{}\"", entry.etag()));
    if let Some(sha256) = &entry.sha256 {
        insert(&mut answer, LINKED_ETAG, &format!("\"{sha256}\""));
        insert(&mut answer, LINKED_SIZE, &entry.size.to_string());
    }
    answer
}

fn tree(ask: &Ask, snapshot: &Snapshot, folder: &str) -> Result<Response<Body>, Failure> {
    let entries = pages::tree(snapshot, folder, ask.flag("recursive"))
        .ok_or_else(|| Refusal::NoEntry { path: folder.to_owned(), commit: snapshot.commit.clone() })?;
    let limit = ask.value("limit").and_then(|limit| limit.parse().ok()).unwrap_or(pages::PAGE);
    let limit = limit.clamp(1, pages::PAGE);
    let start = ask.value("cursor").and_then(|at| at.parse().ok()).unwrap_or(0).min(entries.len());
    let end = (start + limit).min(entries.len());
    let mut answer = with_json(&entries[start..end].into());
    if end < entries.len() {
        let host = ask.header(HOST).unwrap_or_default();
        let recursive = ask.flag("recursive");
        let next = format!("{}?recursive={recursive}&limit={limit}&cursor={end}", ask.uri.path());
        insert(&mut answer, LINK, &format!("<http://{host}{next}>; rel=\"next\""));
    }
    Ok(with_commit(answer, snapshot))
}

/// The bytes of a file, or as many of them as are asked for.
fn file(ask: &Ask, entry: &Entry, path: &str) -> Result<Response<Body>, Failure> {
    let file = entry.place.open().map_err(Failure::Io)?;
    let size = file.metadata().map_err(Failure::Io)?.len();
    if size != entry.size {
        let what = format!("the file has {size} bytes now, and had {} when it was listed", entry.size);
        return Err(Failure::Io(io::Error::other(what)));
    }
    let (status, first, length) = match part(ask.header(RANGE), size) {
        Part::Whole => (StatusCode::OK, 0, size),
        Part::Bytes(first, last) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
        Part::Unsatisfiable => {
            let mut answer = plain(StatusCode::RANGE_NOT_SATISFIABLE, "");
            insert(&mut answer, CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(answer);
        }
    };
    let body = if ask.method == Method::HEAD { full("") } else { part_of(file, first, length) };
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    insert(&mut answer, CONTENT_LENGTH, &length.to_string());
    insert(&mut answer, CONTENT_TYPE, "application/octet-stream");
    insert(&mut answer, ACCEPT_RANGES, "bytes");
    insert(&mut answer, ETAG, &format!("\"{}\"", entry.etag()));
    if status == StatusCode::PARTIAL_CONTENT {
        insert(&mut answer, CONTENT_RANGE, &format!("bytes {first}-{}/{size}", first + length - 1));
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
    insert(&mut answer, CONTENT_DISPOSITION, &format!("inline; filename*=UTF-8''{name}"));
    Ok(answer)
}

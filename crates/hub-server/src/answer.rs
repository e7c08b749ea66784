//! Answers as the Hub words them: clients go by `X-Error-Code`.

use http_body_util::BodyExt;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::body::{Body, full};

pub(crate) const REPO_COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
pub(crate) const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
pub(crate) const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No such model, or not for this caller: nobody is told which of the two.
    NoModel { with_token: bool },
    /// A token that nobody gave out.
    UnknownToken,
    /// The terms of the model are not accepted.
    Gated { id: String, page: String, with_token: bool },
    /// No such revision.
    NoRevision { revision: String },
    /// No such file at this commit.
    NoEntry { path: String, commit: String },
    /// Nothing that this server has.
    NoPage,
    /// Something other than GET and HEAD.
    ReadOnly,
    /// The bytes cannot be read; the log says why.
    Broken,
}

impl Refusal {
    fn parts(&self) -> (StatusCode, Option<&'static str>, String) {
        let denied = |with_token: bool| {
            if with_token { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED }
        };
        match self {
            Self::NoModel { with_token: false } => {
                let message = "Invalid username or password.".to_owned();
                (StatusCode::UNAUTHORIZED, Some("RepoNotFound"), message)
            }
            Self::NoModel { with_token: true } => {
                (StatusCode::NOT_FOUND, Some("RepoNotFound"), "Repository not found".to_owned())
            }
            Self::UnknownToken => {
                let message = "Invalid credentials in Authorization header".to_owned();
                (StatusCode::UNAUTHORIZED, None, message)
            }
            Self::Gated { id, page, with_token } => {
                let next = if *with_token {
                    format!("you are not in the authorized list. Visit {page} to ask for access.")
                } else {
                    "you must be authenticated to access it. Please log in.".to_owned()
                };
                let message = format!("Access to model {id} is restricted and {next}");
                (denied(*with_token), Some("GatedRepo"), message)
            }
            Self::NoRevision { revision } => {
                (StatusCode::NOT_FOUND, Some("RevisionNotFound"), format!("Invalid rev id: {revision}"))
            }
            Self::NoEntry { path, .. } => {
                (StatusCode::NOT_FOUND, Some("EntryNotFound"), format!("{path} does not exist"))
            }
            Self::NoPage => {
                let message = "Sorry, we can't find the page you are looking for.".to_owned();
                (StatusCode::NOT_FOUND, None, message)
            }
            Self::ReadOnly => (StatusCode::METHOD_NOT_ALLOWED, None, "This server only reads.".to_owned()),
            Self::Broken => {
                let message = "The server cannot read the file; its log says why.".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, None, message)
            }
        }
    }

    pub(crate) fn answer(&self) -> Response<Body> {
        let (status, code, message) = self.parts();
        let mut answer = with_json(&json!({ "error": message }));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        if let Some(code) = code {
            headers.insert(ERROR_CODE, HeaderValue::from_static(code));
        }
        if let Ok(message) = HeaderValue::from_str(&message) {
            headers.insert(ERROR_MESSAGE, message);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Self::NoEntry { commit, .. } = self {
            insert(&mut answer, REPO_COMMIT, commit);
        }
        answer
    }
}

/// A JSON document.
pub(crate) fn with_json(value: &Value) -> Response<Body> {
    let text = value.to_string();
    let mut answer = Response::new(full(String::new()));
    insert(&mut answer, CONTENT_LENGTH, &text.len().to_string());
    insert(&mut answer, CONTENT_TYPE, "application/json; charset=utf-8");
    *answer.body_mut() = full(text);
    answer
}

/// A redirection.
pub(crate) fn moved(status: StatusCode, location: &str) -> Response<Body> {
    let mut answer = Response::new(full(String::new()));
    *answer.status_mut() = status;
    insert(&mut answer, LOCATION, location);
    insert(&mut answer, CONTENT_LENGTH, "0");
    answer
}

/// Sets a header, unless it cannot be written in one: then the header is left out.
pub(crate) fn insert(answer: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

/// The same answer without its body, as HEAD has it.
pub(crate) fn without_body(answer: Response<Body>) -> Response<Body> {
    answer.map(|_| full(String::new()).boxed())
}

//! What the Hub's API says: which commit, with which files.

use std::io::Read;
use std::sync::atomic::AtomicBool;

use crate::client::{Answer, Ask, Client, Kind, Subject, Trouble, body_failure};
use crate::environment::Hub;
use crate::error::FetchError;
use crate::listing::{Facts, Info, Wanted};
use crate::names::{check_model_id, is_commit};
use crate::progress::Progress;
use crate::request::Request;
use crate::retry::{Retry, sleep};
use crate::url;

/// No list of files is longer.
const MOST_BYTES: u64 = 64 << 20;

/// A revision as the Hub resolved it.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) commit: String,
    pub(crate) renamed_to: Option<String>,
    pub(crate) info: Info,
}

/// What asking takes.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) client: &'a Client<'a>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) halt: &'a AtomicBool,
}

impl Asking<'_> {
    /// Which commit a revision is, and what it has: the one request that names a branch.
    pub(crate) fn resolve(&self, request: &Request, retry: &Retry) -> Result<Resolved, FetchError> {
        let (id, revision) = (&request.model_id, &request.revision);
        let address =
            format!("{}/api/models/{id}/revision/{}?blobs=true", self.hub.endpoint, url::part(revision));
        let subject = Subject { model_id: id, revision, path: None };
        let ask = Ask { url: &address, kind: Kind::Document, subject };
        let (answer, text) = self.repeated(retry, || {
            let mut answer = self.client.ask(&ask)?;
            let text = self.text(&mut answer)?;
            Ok((answer, text))
        })?;
        let protocol = |what: &str| FetchError::Protocol { url: answer.url.clone(), what: what.to_owned() };
        let info: Info = serde_json::from_slice(&text)
            .map_err(|error| protocol(&format!("its answer is no description of a model ({error})")))?;
        let commit =
            info.sha.clone().filter(|sha| is_commit(sha)).ok_or_else(|| protocol("it names no commit"))?;
        if is_commit(revision) && commit != *revision {
            return Err(protocol("it answers with another commit than was asked for"));
        }
        let name = info.id.clone().filter(|name| name != id && check_model_id(name).is_ok());
        Ok(Resolved { commit, renamed_to: name, info })
    }

    /// The name and size of a file that the API said too little of.
    pub(crate) fn look_up(
        &self,
        model_id: &str,
        commit: &str,
        path: &str,
        facts: &Facts,
    ) -> Result<Wanted, FetchError> {
        let address = resolve_url(&self.hub.endpoint, model_id, commit, path);
        let subject = Subject { model_id, revision: commit, path: Some(path) };
        let ask = Ask { url: &address, kind: Kind::Headers, subject };
        let answer = self.repeated(&self.hub.retry, || self.client.ask(&ask))?;
        let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag"));
        let length = answer.header("content-length").filter(|_| !answer.status.is_redirection());
        let size = answer.header("x-linked-size").or(length).and_then(|size| size.parse().ok());
        let protocol = |what: String| FetchError::Protocol { url: answer.url.clone(), what };
        let etag = etag.filter(|etag| !etag.trim().is_empty());
        let etag = etag.ok_or_else(|| protocol(format!("it has no ETag that names {path}")))?;
        let wanted = Wanted::of_tag(path, facts.size.or(size), etag, commit);
        if wanted.digest.is_none() && path.ends_with(".safetensors") {
            return Err(protocol(format!(
                "it names no digest of {path}, so nobody could tell whether the weights came whole; take another mirror, \
                 one that hands on the Hub's ETag and X-Linked-ETag"
            )));
        }
        Ok(wanted)
    }

    fn text(&self, answer: &mut Answer) -> Result<Vec<u8>, Trouble> {
        let mut text = Vec::new();
        let read = answer.body.as_reader().take(MOST_BYTES).read_to_end(&mut text);
        read.map_err(|error| body_failure(&answer.url, &error, self.hub.etag_timeout))?;
        Ok(text)
    }

    /// Tries again what fails by accident.
    fn repeated<T>(
        &self,
        retry: &Retry,
        mut attempt: impl FnMut() -> Result<T, Trouble>,
    ) -> Result<T, FetchError> {
        let mut count = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(trouble) => self.wait_after(trouble, &mut count, retry)?,
            }
        }
    }

    /// Waits before repetition `count`, or gives up.
    pub(crate) fn wait_after(
        &self,
        trouble: Trouble,
        count: &mut u32,
        retry: &Retry,
    ) -> Result<(), FetchError> {
        // A request that a stop has ended looks like a network that failed.
        sleep(std::time::Duration::ZERO, self.halt)?;
        let (error, asked) = match trouble {
            Trouble::Passing { error, wait } => (error, wait),
            Trouble::Final(error) => return Err(error),
        };
        if *count >= retry.times {
            return Err(error);
        }
        let wait = asked.unwrap_or_else(|| retry.wait(*count));
        *count += 1;
        tracing::warn!(%error, wait_ms = wait.as_millis(), "trying again");
        self.progress.waiting(&error.to_string(), wait);
        sleep(wait, self.halt)
    }
}

/// Where a file's bytes are.
pub(crate) fn resolve_url(endpoint: &str, model_id: &str, commit: &str, path: &str) -> String {
    format!("{endpoint}/{model_id}/resolve/{commit}/{}", url::path(path))
}

//! Requests: through the right proxy, with the token for the Hub alone, and errors told apart.

use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

use crate::environment::Hub;
use crate::error::FetchError;
use crate::retry::asked_wait;
use crate::url::{Origin, join, shown};

const MOST_REDIRECTS: usize = 10;
/// Of a server's own words as much is shown.
const MOST_WORDS: usize = 300;
/// And as many bytes read, looking for them.
const ERROR_BYTES: u64 = 64 << 10;

/// Sends requests. Cheap to share between threads.
#[derive(Debug)]
pub(crate) struct Client<'a> {
    hub: &'a Hub,
    direct: Agent,
    http: Option<Agent>,
    https: Option<Agent>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) url: &'a str,
    pub(crate) kind: Kind,
    /// What is asked about, for messages.
    pub(crate) subject: Subject<'a>,
}

/// How something is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A document of the API.
    Document,
    /// A file's headers, from the Hub itself: where it would redirect to another host is an answer.
    Headers,
    /// A file's bytes from one on.
    Bytes(u64),
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) model_id: &'a str,
    pub(crate) revision: &'a str,
    /// `None` for the model as a whole.
    pub(crate) path: Option<&'a str>,
}

/// An answer that is none of an error's.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body,
    /// Where it came from in the end, without the query.
    pub(crate) url: String,
}

/// A request that failed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// By accident, perhaps: the same may succeed soon, after `wait` if the server says so.
    Passing { error: FetchError, wait: Option<Duration> },
    /// For good.
    Final(FetchError),
}

impl From<FetchError> for Trouble {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl<'a> Client<'a> {
    pub(crate) fn new(hub: &'a Hub) -> Result<Self, FetchError> {
        let through = |address: &Option<String>, variable: &str| {
            let Some(address) = address else { return Ok(None) };
            let proxy = Proxy::new(address).map_err(|_| FetchError::Environment {
                variable: variable.to_owned(),
                reason: "write http://host:port; with a user and password if it must be, percent-encoded"
                    .to_owned(),
            })?;
            Ok(Some(agent(hub, Some(proxy))))
        };
        Ok(Self {
            hub,
            direct: agent(hub, None),
            http: through(&hub.proxies.http, "HTTP_PROXY")?,
            https: through(&hub.proxies.https, "HTTPS_PROXY")?,
        })
    }

    /// Ends every request that is under way, and lets none begin.
    pub(crate) fn shut_down(&self) {
        for agent in [Some(&self.direct), self.http.as_ref(), self.https.as_ref()].into_iter().flatten() {
            agent.clone().shutdown();
        }
    }

    /// Asks, follows redirections, and tells errors apart.
    pub(crate) fn ask(&self, ask: &Ask<'_>) -> Result<Answer, Trouble> {
        let mut url = ask.url.to_owned();
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.ask_once(&url, ask)?;
            let location = answer.header("location").filter(|_| answer.status.is_redirection());
            let Some(location) = location else { return self.judge(answer, ask) };
            let target = join(&url, location);
            let Some(origin) = Origin::of(&target) else {
                return Err(protocol(&url, "it redirects to what is no address".to_owned()).into());
            };
            if is_downgrade(&url, &origin) {
                let what =
                    format!("it redirects from https to {}, where anybody could read along", shown(&target));
                return Err(protocol(&url, what).into());
            }
            if ask.kind == Kind::Headers && origin != self.hub.origin {
                return Ok(answer);
            }
            tracing::debug!(from = shown(&url), to = shown(&target), "redirected");
            url = target;
        }
        Err(protocol(ask.url, format!("it redirects more than {MOST_REDIRECTS} times")).into())
    }

    fn ask_once(&self, url: &str, ask: &Ask<'_>) -> Result<Answer, Trouble> {
        let origin = Origin::of(url).ok_or_else(|| protocol(url, "that is no address".to_owned()))?;
        let agent = self.agent_for(&origin);
        let mut request = if ask.kind == Kind::Headers { agent.head(url) } else { agent.get(url) };
        request = request.header("accept-encoding", "identity");
        if let Kind::Bytes(first) = ask.kind
            && first > 0
        {
            request = request.header("range", format!("bytes={first}-"));
        }
        // To the Hub and to nobody it redirects to.
        if origin == self.hub.origin
            && let Some(token) = &self.hub.token
        {
            request = request.header("authorization", token.authorization());
        }
        let silence = match ask.kind {
            Kind::Document | Kind::Headers => self.hub.etag_timeout,
            Kind::Bytes(_) => self.hub.download_timeout,
        };
        let request = request
            .config()
            .timeout_connect(Some(silence))
            .timeout_recv_response(Some(silence))
            .timeout_per_read(Some(silence))
            .build();
        let answer = request.call().map_err(|error| failure(url, error, silence))?;
        let (parts, body) = answer.into_parts();
        tracing::debug!(url = shown(url), status = parts.status.as_u16(), "answered");
        Ok(Answer { status: parts.status, headers: parts.headers, body, url: shown(url).to_owned() })
    }

    fn agent_for(&self, origin: &Origin) -> &Agent {
        let proxied = if origin.scheme == "https" { &self.https } else { &self.http };
        proxied.as_ref().filter(|_| !self.hub.proxies.is_direct(origin)).unwrap_or(&self.direct)
    }

    /// An answer that is one, or the error that it means.
    fn judge(&self, mut answer: Answer, ask: &Ask<'_>) -> Result<Answer, Trouble> {
        if answer.status.is_success() || answer.status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(answer);
        }
        let at_hub = Origin::of(&answer.url).is_some_and(|origin| origin == self.hub.origin);
        let message = words(&mut answer);
        let status = answer.status.as_u16();
        let error = FetchError::Status { url: answer.url.clone(), status, message: message.clone() };
        if matches!(status, 408 | 429 | 500 | 502 | 503 | 504) {
            let wait = asked_wait(answer.header("retry-after"), answer.header("ratelimit"));
            if let Some(wait) = wait.filter(|wait| *wait > self.hub.retry.patience) {
                return Err(FetchError::RateLimited { url: answer.url, wait }.into());
            }
            return Err(Trouble::Passing { error, wait });
        }
        if !at_hub {
            // The signature of the link has run out; the Hub gives a new one.
            let wait = None;
            return Err(if status == 403 { Trouble::Passing { error, wait } } else { error.into() });
        }
        let subject = ask.subject;
        let with_token = self.hub.token.is_some();
        let model_id = subject.model_id.to_owned();
        let endpoint = self.hub.endpoint.clone();
        let revision = subject.revision.to_owned();
        let code = answer.header("x-error-code").unwrap_or_default();
        Err(Trouble::Final(match (code, status, subject.path) {
            ("GatedRepo", ..) => {
                FetchError::Gated { page: format!("{endpoint}/{model_id}"), model_id, with_token }
            }
            ("RevisionNotFound", ..) => FetchError::RevisionNotFound { model_id, revision },
            ("EntryNotFound", _, Some(path)) | ("", 404, Some(path)) => {
                FetchError::EntryNotFound { model_id, commit: revision, path: path.to_owned() }
            }
            _ if message == "Access to this resource is disabled." => {
                FetchError::Disabled { model_id, message }
            }
            ("", 401, _) if with_token => FetchError::BadToken { endpoint },
            ("RepoNotFound", ..) | ("", 401 | 404, _) => {
                FetchError::NotFound { model_id, endpoint, with_token }
            }
            _ => error,
        }))
    }
}

/// Whether a redirection leads from a connection that nobody can listen in on to one that anybody can.
fn is_downgrade(from: &str, to: &Origin) -> bool {
    Origin::of(from).is_none_or(|from| from.scheme == "https") && to.scheme != "https"
}

fn agent(hub: &Hub, proxy: Option<Proxy>) -> Agent {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    Agent::config_builder()
        .proxy(proxy)
        .tls_config(tls)
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("hub-fetch/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(hub.etag_timeout))
        .build()
        .into()
}

fn protocol(url: &str, what: String) -> FetchError {
    FetchError::Protocol { url: shown(url).to_owned(), what }
}

/// What went wrong before there was an answer, or while its body came.
pub(crate) fn failure(url: &str, error: ureq::Error, silence: Duration) -> Trouble {
    let unreachable = |what: String| FetchError::Unreachable { url: host_of(url), what };
    let passing = |what: String| Trouble::Passing { error: unreachable(what), wait: None };
    match error {
        ureq::Error::Timeout(_) => passing(format!("it said nothing for {} s", silence.as_secs())),
        ureq::Error::HostNotFound => passing("there is no such host".to_owned()),
        ureq::Error::Io(error) => body_failure(url, &error, silence),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            protocol(url, "that is no address".to_owned()).into()
        }
        ureq::Error::Protocol(error) => passing(error.to_string()),
        ureq::Error::ConnectProxyFailed(what) => passing(format!("the proxy does not connect: {what}")),
        // A certificate does not become better by waiting.
        error @ (ureq::Error::Tls(_) | ureq::Error::Rustls(_)) => {
            let what = format!("{error}; a company's own certificate is given with SSL_CERT_FILE");
            unreachable(what).into()
        }
        error => passing(error.to_string()),
    }
}

/// What went wrong while bytes came.
pub(crate) fn body_failure(url: &str, error: &std::io::Error, silence: Duration) -> Trouble {
    let certificate = error.kind() == std::io::ErrorKind::InvalidData;
    let what = match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(ureq::Error::Timeout(_)) => format!("it said nothing for {} s", silence.as_secs()),
        _ if error.kind() == std::io::ErrorKind::UnexpectedEof => "the connection was cut".to_owned(),
        _ if certificate => format!("{error}; a company's own certificate is given with SSL_CERT_FILE"),
        _ => error.to_string(),
    };
    let error = FetchError::Unreachable { url: host_of(url), what };
    if certificate { error.into() } else { Trouble::Passing { error, wait: None } }
}

fn host_of(url: &str) -> String {
    let authority = url.parse::<Uri>().ok().and_then(|uri| Some(uri.authority()?.to_string()));
    authority.unwrap_or_else(|| shown(url).to_owned())
}

/// A server's own words about an error, made fit for a terminal.
fn words(answer: &mut Answer) -> String {
    let header = answer.header("x-error-message").map(str::to_owned);
    let said = header.or_else(|| {
        let is_json = answer.header("content-type").is_some_and(|kind| kind.contains("json"));
        let text = answer.body.with_config().limit(ERROR_BYTES).read_to_string().ok().filter(|_| is_json)?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(value.get("error")?.as_str()?.to_owned())
    });
    let said = said.unwrap_or_default();
    said.chars().filter(|c| !c.is_control()).take(MOST_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_redirection_may_lead() {
        let check = |from: &str, to: &str, expected: bool| {
            let found = Origin::of(to).is_some_and(|to| is_downgrade(from, &to));
            assert_eq!(found, expected, "{from} -> {to}");
        };
        check("https://hub/x", "https://cdn/x", false);
        check("https://hub/x", "http://cdn/x", true);
        check("HTTPS://hub/x", "http://cdn/x", true);
        check("Https://hub/x", "HTTPS://cdn/x", false);
        check("http://hub/x", "http://cdn/x", false);
        check("http://hub/x", "https://cdn/x", false);
    }
}

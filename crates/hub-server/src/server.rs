//! Listening.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::access::Rules;
use crate::answer::{Refusal, without_body};
use crate::body::Body;
use crate::catalogue::{Catalogue, CatalogueError};
use crate::cdn::Cdn;
use crate::patient::Patient;
use crate::service::{Ask, Service, Side};

/// How long a client may take to say what it wants.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// How long a client may take nothing of an answer, unless the configuration says otherwise.
const TAKES_WITHIN: Duration = Duration::from_mins(1);

/// What is served, and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// The address; port 0 takes one that is free.
    pub listen: SocketAddr,
    /// A second address that large files are redirected to.
    pub cdn: Option<SocketAddr>,
    /// How clients reach the second address, where that is not what it listens on.
    pub cdn_url: Option<String>,
    /// Folders with `org/name/…` in them.
    pub folders: Vec<PathBuf>,
    /// A model store, whose agents become `store/<agent>`.
    pub store: Option<PathBuf>,
    /// Who may read what.
    pub rules: Rules,
    /// How long a client may take nothing of an answer before the connection is given up; a minute by default.
    pub takes_within: Duration,
}

impl Default for Config {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            listen,
            cdn: None,
            cdn_url: None,
            folders: Vec::new(),
            store: None,
            rules: Rules::default(),
            takes_within: TAKES_WITHIN,
        }
    }
}

/// The server could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// There is nothing to serve.
    #[error("nothing to serve: name a folder of models or a store")]
    Nothing,
    /// What is to be served cannot be read.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// An address cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// No threads, or no random numbers.
    #[error("cannot start serving")]
    Start(#[source] io::Error),
}

/// A server at work; it stops when this is dropped.
#[derive(Debug)]
#[must_use = "the server stops when this is dropped"]
pub struct Server {
    runtime: Runtime,
    url: String,
    models: Vec<String>,
    #[cfg(feature = "faults")]
    faults: Arc<crate::faults::Faults>,
}

impl Server {
    /// Reads what is to be served, hashes it, and begins to listen.
    pub fn start(config: Config) -> Result<Self, ServeError> {
        if config.folders.is_empty() && config.store.is_none() {
            return Err(ServeError::Nothing);
        }
        let catalogue =
            Catalogue::open(&config.folders, config.store.as_deref(), &config.rules.restricted())?;
        let models = catalogue.index()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(ServeError::Start)?;
        let (listener, url) = listen(&runtime, config.listen)?;
        let second = config.cdn.map(|address| listen(&runtime, address)).transpose()?;
        let cdn = match &second {
            Some((_, url)) => {
                let base = config.cdn_url.unwrap_or_else(|| url.clone());
                Some(Cdn::new(base, key().map_err(ServeError::Start)?))
            }
            None => None,
        };
        let service = Arc::new(Service { catalogue, rules: config.rules, cdn });
        let hall = Hall {
            service,
            takes_within: config.takes_within,
            #[cfg(feature = "faults")]
            faults: Arc::default(),
        };
        #[cfg(feature = "faults")]
        let faults = Arc::clone(&hall.faults);
        if let Some((listener, _)) = second {
            runtime.spawn(accept(listener, hall.clone(), Side::Cdn));
        }
        runtime.spawn(accept(listener, hall, Side::Hub));
        Ok(Self {
            runtime,
            url,
            models,
            #[cfg(feature = "faults")]
            faults,
        })
    }

    /// What `HF_ENDPOINT` is set to: `http://address:port`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The names of the models that were there at the start.
    #[must_use]
    pub fn models(&self) -> &[String] {
        &self.models
    }

    /// What goes wrong on purpose, and what was asked.
    #[cfg(feature = "faults")]
    #[must_use]
    pub fn faults(&self) -> &crate::faults::Faults {
        &self.faults
    }

    /// Serves until the process ends.
    pub fn wait(self) {
        self.runtime.block_on(std::future::pending::<()>());
    }
}

fn listen(runtime: &Runtime, address: SocketAddr) -> Result<(TcpListener, String), ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let listener = runtime.block_on(TcpListener::bind(address)).map_err(failed)?;
    let url = format!("http://{}", listener.local_addr().map_err(failed)?);
    Ok((listener, url))
}

/// A key that nobody knows, for as long as this process lives.
fn key() -> io::Result<[u8; 64]> {
    let mut key = [0; 64];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut key)?;
    Ok(key)
}

#[derive(Clone)]
struct Hall {
    service: Arc<Service>,
    takes_within: Duration,
    #[cfg(feature = "faults")]
    faults: Arc<crate::faults::Faults>,
}

async fn accept(listener: TcpListener, hall: Hall, side: Side) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, most likely: those that are served now give theirs back.
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let hall = hall.clone();
        let stream = Patient::new(stream, hall.takes_within);
        tokio::spawn(async move {
            let service = service_fn(|request| respond(request, hall.clone(), side));
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

async fn respond(request: Request<Incoming>, hall: Hall, side: Side) -> Result<Response<Body>, Infallible> {
    let (parts, _) = request.into_parts();
    let ask = Ask { method: parts.method, uri: parts.uri, headers: parts.headers };
    #[cfg(feature = "faults")]
    let fault = hall.faults.strike(&ask, side);
    #[cfg(feature = "faults")]
    if let Some(answer) = fault.as_ref().and_then(crate::faults::Fault::instead) {
        return Ok(answer);
    }
    #[cfg(feature = "faults")]
    let ask = fault.as_ref().map_or_else(|| ask.clone(), |fault| fault.asked(&ask));
    let head = ask.method == Method::HEAD;
    let path = ask.uri.path().to_owned();
    let service = Arc::clone(&hall.service);
    let answer = tokio::task::spawn_blocking(move || service.answer(&ask, side))
        .await
        .unwrap_or_else(|_| Refusal::Broken.answer());
    tracing::info!(path, status = answer.status().as_u16(), "answered");
    #[cfg(feature = "faults")]
    let answer = match fault {
        Some(fault) => fault.spoil(answer).await,
        None => answer,
    };
    Ok(if head { without_body(answer) } else { answer })
}

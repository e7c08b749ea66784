//! What goes wrong on purpose: networks that fail and servers that are overloaded or lie, for tests of clients.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue, RANGE};
use hyper::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::answer::moved;
use crate::body::{Body, full};
use crate::service::{Ask, Side};

/// One thing that goes wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// It happens to requests whose path and query contain this.
    pub on: String,
    /// How often it happens.
    pub times: u64,
    /// What happens.
    pub what: What,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Nothing is answered but this status, with these headers and this text.
    Status {
        /// The status.
        code: u16,
        /// Names and values.
        headers: Vec<(String, String)>,
        /// The body.
        text: String,
    },
    /// The connection ends after so many bytes of the body.
    Cut(u64),
    /// After so many bytes of the body nothing comes any more, and the connection stays open.
    Silence(u64),
    /// The byte at this place is another one.
    Flip(u64),
    /// Every so many bytes are followed by a pause of so many milliseconds.
    Slow(u64, u64),
    /// A range is asked for and the whole file is sent.
    NoRange,
    /// The same, and the connection ends after so many bytes of the body.
    NoRangeAndCut(u64),
    /// The answer comes so many milliseconds late.
    Late(u64),
    /// The client is sent elsewhere.
    Redirect(String),
}

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Whether there was an `Authorization` header.
    pub with_token: bool,
    /// Whether it came to the second address.
    pub cdn: bool,
}

/// The faults that are still to come, and the requests that came.
#[derive(Debug, Default)]
pub struct Faults {
    coming: Mutex<Vec<Fault>>,
    seen: Mutex<Vec<Seen>>,
}

impl Faults {
    /// From now on these, and what was seen is forgotten.
    pub fn set(&self, faults: Vec<Fault>) {
        *self.coming.lock().unwrap_or_else(PoisonError::into_inner) = faults;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Every request since the last [`set`](Self::set), in the order they came.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a request, and gives what is to go wrong with it.
    pub(crate) fn strike(&self, ask: &Ask, side: Side) -> Option<Fault> {
        let path = ask.uri.path_and_query().map_or_else(String::new, ToString::to_string);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(Seen {
            method: ask.method.to_string(),
            path: path.clone(),
            range: ask.header(RANGE).map(str::to_owned),
            with_token: ask.headers.contains_key(AUTHORIZATION),
            cdn: side == Side::Cdn,
        });
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = coming.iter_mut().find(|fault| fault.times > 0 && path.contains(&fault.on))?;
        fault.times -= 1;
        Some(fault.clone())
    }
}

impl Fault {
    /// The answer that takes the place of the right one.
    pub(crate) fn instead(&self) -> Option<Response<Body>> {
        match &self.what {
            What::Status { code, headers, text } => {
                let mut answer = Response::new(full(text.clone()));
                *answer.status_mut() = StatusCode::from_u16(*code).unwrap_or_default();
                for (name, value) in headers {
                    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value))
                    {
                        answer.headers_mut().insert(name, value);
                    }
                }
                Some(answer)
            }
            What::Redirect(location) => Some(moved(StatusCode::FOUND, location)),
            _ => None,
        }
    }

    /// The request as it is answered.
    pub(crate) fn asked(&self, ask: &Ask) -> Ask {
        let mut ask = ask.clone();
        if matches!(self.what, What::NoRange | What::NoRangeAndCut(_)) {
            ask.headers.remove(RANGE);
        }
        ask
    }

    /// The answer with the fault in it.
    pub(crate) async fn spoil(&self, answer: Response<Body>) -> Response<Body> {
        if let What::Late(milliseconds) = self.what {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        }
        let what = match &self.what {
            What::NoRangeAndCut(after) => What::Cut(*after),
            what => what.clone(),
        };
        answer.map(|inner| Spoilt { inner, sent: 0, what, flushed: false, pause: None }.boxed())
    }
}

struct Spoilt {
    inner: Body,
    sent: u64,
    what: What,
    flushed: bool,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl hyper::body::Body for Spoilt {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.pause = None;
        }
        match self.what {
            // What was sent before is on its way when the connection ends.
            What::Cut(after) if self.sent >= after && !self.flushed => {
                self.flushed = true;
                let mut pause = Box::pin(tokio::time::sleep(Duration::from_millis(30)));
                if pause.as_mut().poll(context).is_pending() {
                    self.pause = Some(pause);
                    return Poll::Pending;
                }
            }
            _ => {}
        }
        match self.what {
            What::Cut(after) if self.sent >= after => {
                return Poll::Ready(Some(Err(io::Error::other("cut on purpose"))));
            }
            What::Silence(after) if self.sent >= after => return Poll::Pending,
            _ => {}
        }
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) else { return Poll::Pending };
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        let Ok(mut data) = frame.into_data() else { return Poll::Ready(None) };
        let sent = self.sent;
        match self.what {
            What::Cut(after) | What::Silence(after) => {
                data.truncate(usize::try_from(after - sent).unwrap_or(usize::MAX));
            }
            What::Flip(at) if (sent..sent + data.len() as u64).contains(&at) => {
                let mut bytes = data.to_vec();
                bytes[usize::try_from(at - sent).unwrap_or(0)] ^= 1;
                data = bytes.into();
            }
            What::Slow(_, milliseconds) => {
                self.pause = Some(Box::pin(tokio::time::sleep(Duration::from_millis(milliseconds))));
            }
            _ => {}
        }
        self.sent += data.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

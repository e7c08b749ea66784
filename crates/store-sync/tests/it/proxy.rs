//! A network that misbehaves: an HTTP proxy before the server, a real one on a real socket.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to an answer that brings blob bytes, or to any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection is cut after so many bytes of the body.
    Cut(usize),
    /// One bit of the body is another.
    Flip(usize),
    /// So many bytes are missing from the body, and from its `Content-Length`.
    Short(usize),
    /// So many bytes come a second, ten times a second.
    Trickle(usize),
    /// Nothing comes after the head.
    Silence,
    /// Nothing comes at all.
    Mute,
    /// 503 in its place.
    Unavailable,
    /// 404 in its place.
    Gone,
    /// The conditions of a put do not reach the server.
    Unconditional,
}

/// A proxy; it ends with this value.
pub(crate) struct Proxy {
    pub(crate) at: SocketAddr,
    state: Arc<State>,
}

struct State {
    upstream: SocketAddr,
    /// The fault, whether only blobs meet it, and how often yet.
    fault: Mutex<Option<(Fault, bool)>>,
    left: AtomicI64,
    ended: AtomicBool,
    /// Bytes of blobs that were let through.
    blob_bytes: AtomicU64,
    requests: AtomicU64,
}

impl Proxy {
    pub(crate) fn before(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let state = Arc::new(State {
            upstream,
            fault: Mutex::new(None),
            left: AtomicI64::new(0),
            ended: AtomicBool::new(false),
            blob_bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        });
        let serving = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.ended.load(Ordering::Relaxed) {
                    return;
                }
                let state = serving.clone();
                std::thread::spawn(move || state.serve(client));
            }
        });
        Self { at, state }
    }

    /// The next `times` answers that bring blobs meet a fault; a negative number is for good.
    pub(crate) fn harm_blobs(&self, fault: Fault, times: i64) {
        self.harm(fault, times, true);
    }

    /// As [`harm_blobs`](Self::harm_blobs), for every request.
    pub(crate) fn harm_all(&self, fault: Fault, times: i64) {
        self.harm(fault, times, false);
    }

    fn harm(&self, fault: Fault, times: i64, only_blobs: bool) {
        self.state.left.store(if times < 0 { i64::MAX } else { times }, Ordering::SeqCst);
        *self.state.fault.lock().unwrap() = Some((fault, only_blobs));
    }

    pub(crate) fn heal(&self) {
        *self.state.fault.lock().unwrap() = None;
    }

    /// Bytes of blobs that went to the client.
    pub(crate) fn blob_bytes(&self) -> u64 {
        self.state.blob_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.at);
    }
}

impl State {
    /// Requests on one connection, until it is closed or cut.
    fn serve(&self, mut client: TcpStream) {
        let _ = client.set_nodelay(true);
        while let Ok(true) = self.one(&mut client) {}
        let _ = client.shutdown(std::net::Shutdown::Both);
    }

    fn one(&self, client: &mut TcpStream) -> io::Result<bool> {
        let Some(request) = Message::read(client, false)? else { return Ok(false) };
        self.requests.fetch_add(1, Ordering::Relaxed);
        let line = request.head.lines().next().unwrap_or_default();
        let is_head = line.starts_with("HEAD");
        let is_blob = line.starts_with("GET") && line.contains("/blobs/");
        let fault = self.fault_for(is_blob);
        if let Some(Fault::Unavailable | Fault::Gone) = fault {
            let status = if fault == Some(Fault::Gone) { "404 Not Found" } else { "503 Slow Down" };
            client.write_all(
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes(),
            )?;
            return Ok(false);
        }
        let mut head = request.head.clone();
        if fault == Some(Fault::Unconditional) {
            let is_condition = |line: &&str| {
                let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
                name == "if-none-match" || name == "if-match"
            };
            head = head.split("\r\n").filter(|line| !is_condition(line)).collect::<Vec<_>>().join("\r\n");
        }
        let mut upstream = TcpStream::connect(self.upstream)?;
        upstream.write_all(head.as_bytes())?;
        upstream.write_all(&request.body)?;
        let Some(mut answer) = Message::read(&mut upstream, is_head)? else { return Ok(false) };
        let mut slowly = None;
        match fault {
            Some(Fault::Cut(after)) if answer.body.len() > after => {
                client.write_all(answer.head.as_bytes())?;
                client.write_all(&answer.body[..after])?;
                return Ok(false);
            }
            Some(Fault::Flip(at)) if !answer.body.is_empty() => {
                let at = at % answer.body.len();
                answer.body[at] ^= 1;
            }
            Some(Fault::Short(by)) if answer.body.len() > by => {
                let length = answer.body.len();
                answer.body.truncate(length - by);
                answer.head =
                    answer.head.replace(&format!("ength: {length}"), &format!("ength: {}", length - by));
            }
            Some(Fault::Trickle(bytes)) => slowly = Some(bytes),
            Some(Fault::Silence | Fault::Mute) => {
                if fault == Some(Fault::Silence) {
                    client.write_all(answer.head.as_bytes())?;
                }
                while !self.ended.load(Ordering::Relaxed) && self.fault.lock().unwrap().is_some() {
                    std::thread::sleep(Duration::from_millis(20));
                }
                return Ok(false);
            }
            _ => {}
        }
        client.write_all(answer.head.as_bytes())?;
        match slowly {
            Some(bytes) => {
                for piece in answer.body.chunks(bytes.max(1)) {
                    client.write_all(piece)?;
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            None => client.write_all(&answer.body)?,
        }
        if is_blob {
            self.blob_bytes.fetch_add(answer.body.len() as u64, Ordering::Relaxed);
        }
        Ok(true)
    }

    fn fault_for(&self, is_blob: bool) -> Option<Fault> {
        let (fault, only_blobs) = (*self.fault.lock().unwrap())?;
        if only_blobs && !is_blob {
            return None;
        }
        (self.left.fetch_sub(1, Ordering::SeqCst) > 0).then_some(fault)
    }
}

/// A request or an answer.
struct Message {
    /// With the empty line at its end.
    head: String,
    body: Vec<u8>,
}

impl Message {
    /// `None` at the end of the connection.
    fn read(stream: &mut TcpStream, has_no_body: bool) -> io::Result<Option<Self>> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read(&mut byte)? == 0 {
                return Ok(None);
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let value = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let mut body = Vec::new();
        if has_no_body {
            return Ok(Some(Self { head, body }));
        }
        if let Some(length) = value("content-length") {
            body.resize(length.parse().map_err(io::Error::other)?, 0);
            stream.read_exact(&mut body)?;
        } else if value("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
            // Passed on as it is: sizes, chunks and all.
            while !(body == b"0\r\n\r\n" || body.ends_with(b"\r\n0\r\n\r\n")) {
                if stream.read(&mut byte)? == 0 {
                    break;
                }
                body.push(byte[0]);
            }
        }
        Ok(Some(Self { head, body }))
    }
}

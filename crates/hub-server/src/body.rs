//! Bodies of answers: a text, or a part of a file that is read as the client takes it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use tokio::sync::mpsc;

/// Any body.
pub(crate) type Body = BoxBody<Bytes, io::Error>;

/// How much is read at a time, in bytes.
const BLOCK_BYTES: usize = 256 << 10;
/// How many blocks are read ahead of the client.
const AHEAD: usize = 4;

/// A text.
pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// `length` bytes of a file from `first` on.
pub(crate) fn part_of(file: File, first: u64, length: u64) -> Body {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut at = first;
        let mut left = length;
        while left > 0 {
            let mut block = vec![0; usize::try_from(left).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES)];
            let read = file.read_exact_at(&mut block, at).map(|()| block);
            let count = read.as_ref().map_or(left, |block| block.len() as u64);
            // A client that has gone away needs no more.
            if sender.blocking_send(read.map(Bytes::from)).is_err() {
                return;
            }
            (at, left) = (at + count, left - count);
        }
    });
    Blocks { receiver }.boxed()
}

struct Blocks {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
}

impl hyper::body::Body for Blocks {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.receiver.poll_recv(context).map(|block| block.map(|block| block.map(Frame::data)))
    }
}

//! Reading many files at once: all cores, and two files on each, whose hashing fills each other's waits.
//!
//! Items are taken from the front, so the biggest should come first. A core takes a second one only when
//! every other has its first.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::digest::{CHUNK_BYTES, Digest};
use crate::error::StoreError;
use crate::progress::Progress;
use crate::sha256::{Hasher, update_pair};

/// Where bytes come from, and who else gets them.
pub(crate) trait Stream {
    /// As [`io::Read::read`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Gets every chunk that was read, once it is hashed.
    fn take(&mut self, _chunk: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for std::fs::File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(self, buffer)
    }
}

/// What an item needs.
pub(crate) enum Begun<S, D> {
    /// Reading to its end.
    Stream(S),
    /// Nothing more.
    Done(D),
}

/// What is to be done with each of many items.
pub(crate) trait Work: Sync {
    /// What is read.
    type Item: Sync;
    /// An item that is open.
    type Stream: Stream;
    /// What becomes of an item.
    type Done: Send;

    fn begin(&self, item: &Self::Item) -> Result<Begun<Self::Stream, Self::Done>, StoreError>;

    /// Called at a stream's end with its digest and size, or with what stopped it.
    fn end(
        &self,
        item: &Self::Item,
        stream: Self::Stream,
        read: io::Result<(Digest, u64)>,
    ) -> Result<Self::Done, StoreError>;
}

/// Does the work on every item; what became of each comes in the items' order. The first error ends all of it.
pub(crate) fn run<W: Work>(
    work: &W,
    items: &[W::Item],
    progress: &Progress,
) -> Result<Vec<W::Done>, StoreError> {
    let workers = rayon::current_num_threads().min(items.len());
    let queue = Queue {
        work,
        items,
        progress,
        next: AtomicUsize::new(0),
        workers,
        begun: AtomicUsize::new(0),
        stopped: AtomicBool::new(false),
        outcome: Mutex::new(Outcome { done: Vec::with_capacity(items.len()), error: None }),
    };
    if workers <= 1 {
        queue.serve();
    } else {
        rayon::scope(|scope| (0..workers).for_each(|_| scope.spawn(|_| queue.serve())));
    }
    let Outcome { mut done, error } = queue.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = error {
        return Err(error);
    }
    assert_eq!(done.len(), items.len(), "every item is done exactly once");
    done.sort_unstable_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, done)| done).collect())
}

struct Queue<'a, W: Work> {
    work: &'a W,
    items: &'a [W::Item],
    progress: &'a Progress,
    next: AtomicUsize,
    workers: usize,
    /// How many workers have had their first item.
    begun: AtomicUsize,
    stopped: AtomicBool,
    outcome: Mutex<Outcome<W::Done>>,
}

struct Outcome<D> {
    /// With each item's place.
    done: Vec<(usize, D)>,
    error: Option<StoreError>,
}

struct Lane<S> {
    index: usize,
    stream: S,
    hasher: Hasher,
    size_bytes: u64,
}

impl<W: Work> Queue<'_, W> {
    /// One worker's way through the queue.
    fn serve(&self) {
        let mut done = Vec::new();
        let served = self.serve_lanes(&mut done);
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.done.append(&mut done);
        if let Err(error) = served {
            self.stopped.store(true, Ordering::Relaxed);
            outcome.error.get_or_insert(error);
        }
    }

    fn serve_lanes(&self, done: &mut Vec<(usize, W::Done)>) -> Result<(), StoreError> {
        let mut buffers = [vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]];
        let mut first = self.next_lane(done)?;
        self.begun.fetch_add(1, Ordering::Relaxed);
        let mut second = None;
        while !self.stopped.load(Ordering::Relaxed) {
            if first.is_none() {
                // A lane that is taken off the queue must be kept.
                first = match second.take() {
                    Some(lane) => Some(lane),
                    None => self.next_lane(done)?,
                };
            }
            if first.is_none() {
                return Ok(());
            }
            if second.is_none() && self.begun.load(Ordering::Relaxed) == self.workers {
                second = self.next_lane(done)?;
            }
            self.step([&mut first, &mut second], &mut buffers, done)?;
        }
        Ok(())
    }

    /// The next item that has to be read.
    fn next_lane(&self, done: &mut Vec<(usize, W::Done)>) -> Result<Option<Lane<W::Stream>>, StoreError> {
        while !self.stopped.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = self.items.get(index) else { return Ok(None) };
            match self.work.begin(item)? {
                Begun::Done(item) => done.push((index, item)),
                Begun::Stream(stream) => {
                    return Ok(Some(Lane { index, stream, hasher: Hasher::default(), size_bytes: 0 }));
                }
            }
        }
        Ok(None)
    }

    /// One chunk of each stream.
    fn step(
        &self,
        lanes: [&mut Option<Lane<W::Stream>>; 2],
        buffers: &mut [Vec<u8>; 2],
        done: &mut Vec<(usize, W::Done)>,
    ) -> Result<(), StoreError> {
        let [first, second] = lanes;
        let [first_buffer, second_buffer] = buffers;
        let first_chunk = read_chunk(first.as_mut(), first_buffer);
        let second_chunk = read_chunk(second.as_mut(), second_buffer);
        match (first.as_mut(), second.as_mut()) {
            (Some(a), Some(b)) => {
                update_pair(&mut a.hasher, bytes_of(&first_chunk), &mut b.hasher, bytes_of(&second_chunk));
            }
            (Some(lane), None) => lane.hasher.update(bytes_of(&first_chunk)),
            (None, _) => {}
        }
        self.pass_on(first, first_chunk, done)?;
        self.pass_on(second, second_chunk, done)
    }

    /// Gives a chunk to its stream's taker, or ends the stream.
    fn pass_on(
        &self,
        slot: &mut Option<Lane<W::Stream>>,
        chunk: io::Result<&[u8]>,
        done: &mut Vec<(usize, W::Done)>,
    ) -> Result<(), StoreError> {
        let Some(lane) = slot else { return Ok(()) };
        let read = match chunk {
            Ok([]) => Ok(()),
            Ok(chunk) => {
                lane.size_bytes += chunk.len() as u64;
                let taken = lane.stream.take(chunk).and_then(|()| self.progress.advance(chunk.len() as u64));
                match taken {
                    Ok(()) => return Ok(()),
                    Err(e) => Err(e),
                }
            }
            Err(e) => Err(e),
        };
        let Some(Lane { index, stream, hasher, size_bytes }) = slot.take() else { return Ok(()) };
        let read = read.map(|()| (hasher.finish(), size_bytes));
        done.push((index, self.work.end(&self.items[index], stream, read)?));
        Ok(())
    }
}

fn read_chunk<'b, S: Stream>(lane: Option<&mut Lane<S>>, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let Some(lane) = lane else { return Ok(&[]) };
    loop {
        match lane.stream.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(count) => return Ok(&buffer[..count]),
        }
    }
}

fn bytes_of<'b>(chunk: &io::Result<&'b [u8]>) -> &'b [u8] {
    match chunk {
        Ok(bytes) => bytes,
        Err(_) => &[],
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{Begun, Stream, Work, run};
    use crate::digest::Digest;
    use crate::error::StoreError;
    use crate::progress::Progress;

    struct Bytes<'a>(&'a [u8]);

    impl Stream for Bytes<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            io::Read::read(&mut self.0, buffer)
        }
    }

    /// Items of an odd length are done without being read.
    struct Digests<'a>(std::marker::PhantomData<&'a ()>);

    impl<'a> Work for Digests<'a> {
        type Item = &'a [u8];
        type Stream = Bytes<'a>;
        type Done = Digest;

        fn begin(&self, item: &&'a [u8]) -> Result<Begun<Bytes<'a>, Digest>, StoreError> {
            Ok(if item.len() % 2 == 1 { Begun::Done(Digest::of(item)) } else { Begun::Stream(Bytes(item)) })
        }

        fn end(
            &self,
            _: &&'a [u8],
            _: Bytes<'a>,
            read: io::Result<(Digest, u64)>,
        ) -> Result<Digest, StoreError> {
            read.map(|(digest, _)| digest).map_err(|_| StoreError::Interrupted)
        }
    }

    /// A file that lost its core to another one was left out of a verification.
    #[test]
    fn every_item_is_done_and_in_its_place() -> Result<(), Box<dyn std::error::Error>> {
        let bytes: Vec<u8> = (0..200_000).map(|i: u32| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
        let sizes = (0..400).map(|i| if i % 50 == 0 { 200_000 - 2 * i } else { i * 37 % 9000 });
        let items: Vec<&[u8]> = sizes.map(|size| &bytes[..size]).collect();
        let expected: Vec<_> = items.iter().map(|item| Digest::of(item)).collect();
        for threads in [1, 2, 5] {
            let work = Digests(std::marker::PhantomData);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
            for count in [0, 1, 2, 3, 400] {
                let digests = pool.install(|| run(&work, &items[..count], &Progress::none()))?;
                assert!(digests == expected[..count], "{count} items on {threads} threads");
            }
        }
        Ok(())
    }
}

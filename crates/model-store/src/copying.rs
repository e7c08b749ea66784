//! One file on its way into a staging: read once, and hashed and written from that one read.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use rustix::fs::Advice;

use crate::durable;
use crate::names::PayloadPath;
use crate::payload::Stamp;
use crate::staging::Staging;
use crate::streams::Stream;
use crate::writeback;

/// From so many bytes on a file's blocks are set aside before it is written.
const PREALLOCATE_BYTES: u64 = 1024 * 1024;
/// So many bytes are written before the disk is told to begin with them.
const WRITEBACK_BYTES: u64 = 8 * 1024 * 1024;
/// How many chunks may wait for the thread that writes.
const CHUNKS_BEHIND: usize = 64;

/// A file being copied; what there is of the copy is removed when this is dropped unfinished.
pub(crate) struct Copying<'a> {
    staging: &'a Staging,
    path: &'a PayloadPath,
    source: File,
    source_stamp: Stamp,
    copy: File,
    executable: u32,
    sink: Sink,
    finished: bool,
}

/// Who writes.
enum Sink {
    /// Whoever hashes.
    Here(Writing),
    /// A thread of its own, so that one big file keeps two cores busy.
    Behind(Behind),
    Ended,
}

impl<'a> Copying<'a> {
    /// Makes the file; the directory it is to lie in is there.
    pub(crate) fn begin(
        staging: &'a Staging,
        source: File,
        path: &'a PayloadPath,
        write_behind: bool,
    ) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&source)?;
        let size_bytes = u64::try_from(stat.st_size).unwrap_or_default();
        let copy = durable::create_beneath(staging.dir(), path.as_path(), stat.st_mode)?;
        let mut copying = Self {
            staging,
            path,
            source,
            source_stamp: Stamp::of(&stat),
            copy,
            executable: stat.st_mode & 0o111,
            sink: Sink::Ended,
            finished: false,
        };
        if size_bytes >= PREALLOCATE_BYTES {
            let _ = rustix::fs::fadvise(&copying.source, 0, None, Advice::Sequential);
            durable::preallocate(&copying.copy, size_bytes)?;
        }
        let writing = Writing { file: copying.copy.try_clone()?, written_bytes: 0, begun_bytes: 0 };
        copying.sink = if write_behind { Sink::Behind(Behind::begin(writing)?) } else { Sink::Here(writing) };
        Ok(copying)
    }

    /// Waits for what is still to be written and seals the file; gives its stamp and the source's from before
    /// the first read.
    pub(crate) fn finish(mut self) -> io::Result<(Stamp, Stamp)> {
        if let Sink::Behind(behind) = mem::replace(&mut self.sink, Sink::Ended) {
            behind.end()?;
        }
        let stamp = Stamp::of(&durable::seal_created(self.copy.as_fd(), self.executable)?);
        self.finished = true;
        Ok((stamp, self.source_stamp))
    }
}

impl Stream for Copying<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut self.source, buffer)
    }

    fn take(&mut self, chunk: &[u8]) -> io::Result<()> {
        match &mut self.sink {
            Sink::Here(writing) => return writing.write(chunk),
            Sink::Behind(behind) => {
                if behind.write(chunk) {
                    return Ok(());
                }
            }
            Sink::Ended => {}
        }
        // The thread ended early: it knows why.
        match mem::replace(&mut self.sink, Sink::Ended) {
            Sink::Behind(behind) => behind.end().and(Err(writer_ended())),
            _ => Err(writer_ended()),
        }
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        if !self.finished {
            if let Sink::Behind(behind) = mem::replace(&mut self.sink, Sink::Ended) {
                let _ = behind.end();
            }
            let _ = durable::remove_beneath(self.staging.dir(), self.path.as_path());
        }
    }
}

fn writer_ended() -> io::Error {
    io::Error::other("the thread that writes has ended")
}

/// A file being written from its beginning to its end.
struct Writing {
    file: File,
    written_bytes: u64,
    /// How much of it the disk was told to write.
    begun_bytes: u64,
}

impl Writing {
    fn write(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.written_bytes += chunk.len() as u64;
        let waiting_bytes = self.written_bytes - self.begun_bytes;
        if waiting_bytes >= WRITEBACK_BYTES {
            writeback::start(&self.file, self.begun_bytes, waiting_bytes);
            self.begun_bytes = self.written_bytes;
        }
        Ok(())
    }
}

/// A thread that writes what it is sent.
struct Behind {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Behind {
    fn begin(mut writing: Writing) -> io::Result<Self> {
        let (full, chunks) = sync_channel::<Vec<u8>>(CHUNKS_BEHIND);
        let (used, empty) = channel();
        let write = move || {
            for chunk in chunks {
                writing.write(&chunk)?;
                let _ = used.send(chunk);
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("payload-writer".to_owned()).spawn(write)?;
        Ok(Self { full, empty, thread })
    }

    /// Hands a chunk over; `false` where the thread has ended.
    fn write(&self, chunk: &[u8]) -> bool {
        let mut buffer = self.empty.try_recv().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(chunk);
        self.full.send(buffer).is_ok()
    }

    /// Waits until everything is written.
    fn end(self) -> io::Result<()> {
        drop(self.full);
        self.thread.join().unwrap_or_else(|_| Err(writer_ended()))
    }
}

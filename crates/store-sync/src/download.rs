//! One blob: its ranges are asked for in parallel, and written and hashed in their order.
//!
//! What is on disk is therefore always a beginning of the blob, and a download that was broken off goes on from
//! its end.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use model_store::{Digest, IncomingFile};
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt};
use tokio::task::JoinHandle;

use crate::error::SyncError;
use crate::layout;
use crate::remote::{Remote, said};

/// A server that sends less than this, in bytes, while nothing more may come for [`stall`](crate::Options) is
/// as good as one that sends nothing.
const LEAST_BYTES: u64 = 16 * 1024;
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(200);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a range did not come.
pub(crate) enum Stumble {
    /// It may work again in a moment.
    Passing(String),
    /// The object has another size than the manifest says.
    Size(u64),
    Missing,
}

impl Remote {
    /// Brings the rest of a blob, and says how many bytes came for it. What comes damaged is fetched once more
    /// from its beginning, then given up.
    pub(crate) fn download(
        &self,
        file: &mut IncomingFile,
        digest: Digest,
        at_a_time: usize,
    ) -> Result<u64, SyncError> {
        let path = layout::blob(&digest);
        let mut came = 0;
        let mut damaged = false;
        let (mut since, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            if file.have() == file.size() {
                let Err(damage) = file.check() else { return Ok(came) };
                let was_inherited = file.is_inherited();
                file.restart().map_err(SyncError::of_store)?;
                // Bytes of an earlier run do not speak against this server.
                if damaged && !was_inherited {
                    return Err(self.damaged(&path, model_store::with_causes(&damage)));
                }
                damaged |= !was_inherited;
                tracing::warn!(remote = %self.address(), %path, "arrived damaged; once more from the start");
                continue;
            }
            let before = came;
            let Err(stumble) = self.ranges(&path, file, at_a_time, &mut came)? else { continue };
            let what = match stumble {
                Stumble::Passing(what) => what,
                Stumble::Missing => return Err(self.not_found(format!("{path}, which its manifest names"))),
                Stumble::Size(size) => {
                    return Err(self
                        .damaged(&path, format!("it has {size} bytes, its manifest says {}", file.size())));
                }
            };
            if came > before {
                (since, pause) = (Instant::now(), FIRST_PAUSE);
            }
            if since.elapsed() >= self.options.retry {
                return Err(self.failed("fetch", &path, what));
            }
            tracing::warn!(remote = %self.address(), %path, what, have = file.have(), "broken off; trying again");
            self.pause(pause)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Brings ranges until the blob is whole or one of them does not come.
    fn ranges(
        &self,
        path: &Path,
        file: &mut IncomingFile,
        at_a_time: usize,
        came: &mut u64,
    ) -> Result<Result<(), Stumble>, SyncError> {
        let mut asked = Asked::default();
        let mut next = file.have();
        while file.have() < file.size() {
            while asked.0.len() < at_a_time && next < file.size() {
                let end = next.saturating_add(self.options.range_bytes).min(file.size());
                let range =
                    range_of(self.reader().clone(), path.clone(), next..end, file.size(), self.options.stall);
                asked.0.push_back(self.runtime().spawn(range));
                next = end;
            }
            let Some(first) = asked.0.front_mut() else { break };
            let bytes = match self.wait(first)? {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(stumble)) => return Ok(Err(stumble)),
                Err(e) => return Ok(Err(Stumble::Passing(e.to_string()))),
            };
            asked.0.pop_front();
            file.write(&bytes).map_err(SyncError::of_store)?;
            *came += bytes.len() as u64;
            self.observer().advance(bytes.len() as u64);
        }
        Ok(Ok(()))
    }
}

/// Requests that are under way; whoever is not waited for any more ends.
#[derive(Default)]
struct Asked(VecDeque<JoinHandle<Result<Vec<u8>, Stumble>>>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

pub(crate) async fn range_of(
    store: Arc<dyn ObjectStore>,
    path: Path,
    range: Range<u64>,
    size: u64,
    stall: Duration,
) -> Result<Vec<u8>, Stumble> {
    let passing = |e: Error| match e {
        Error::NotFound { .. } => Stumble::Missing,
        e => Stumble::Passing(said(&e)),
    };
    let wanted = range.end - range.start;
    let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
    let got = match store.get_opts(&path, options).await {
        Ok(got) => got,
        Err(e) => {
            // A range beyond the end is refused in many ways: the size says whether it was that.
            return Err(match store.head(&path).await {
                Ok(meta) if meta.size != size => Stumble::Size(meta.size),
                _ => passing(e),
            });
        }
    };
    if got.meta.size != size {
        return Err(Stumble::Size(got.meta.size));
    }
    if got.range != range {
        return Err(Stumble::Passing("another part came than was asked for".to_owned()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(wanted).unwrap_or_default());
    let mut stream = got.into_stream();
    let (mut window, mut in_window) = (Instant::now(), 0);
    loop {
        let left = stall.saturating_sub(window.elapsed());
        let Ok(next) = tokio::time::timeout(left, stream.next()).await else {
            if in_window < LEAST_BYTES {
                let what = format!("only {in_window} bytes came in {} s", stall.as_secs_f32());
                return Err(Stumble::Passing(what));
            }
            (window, in_window) = (Instant::now(), 0);
            continue;
        };
        let Some(chunk) = next else { break };
        let chunk = chunk.map_err(passing)?;
        in_window += chunk.len() as u64;
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > wanted {
            return Err(Stumble::Passing("more came than was asked for".to_owned()));
        }
        // A byte now and then is as good as none.
        if window.elapsed() >= stall {
            if in_window < LEAST_BYTES && (bytes.len() as u64) < wanted {
                return Err(Stumble::Passing(format!(
                    "only {in_window} bytes came in {} s",
                    stall.as_secs_f32()
                )));
            }
            (window, in_window) = (Instant::now(), 0);
        }
    }
    if (bytes.len() as u64) < wanted {
        return Err(Stumble::Passing(format!("{} of {wanted} bytes came", bytes.len())));
    }
    Ok(bytes)
}

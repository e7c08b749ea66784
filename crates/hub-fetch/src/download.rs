//! One file: waited for if another process downloads it, resumed if it was begun, checked before it gets its name.

use std::fs::{self, File};
use std::io::Read;
use std::sync::atomic::Ordering;

use ureq::http::StatusCode;

use crate::api::{Asking, resolve_url};
use crate::cache::Repository;
use crate::client::{Answer, Ask, Kind, Subject, Trouble, body_failure};
use crate::error::FetchError;
use crate::listing::Wanted;
use crate::lock::Lock;
use crate::part::{Damage, Part};
use crate::request::Existing;
use crate::url::{Origin, shown};

/// How much is read at a time, in bytes.
const BLOCK_BYTES: usize = 256 << 10;
/// An attempt that brings less than this, in bytes, brings little.
const LITTLE_BYTES: u64 = 1 << 20;
/// So many attempts that bring little begin the count of repetitions anew; a server that gives a byte at a time is left.
const MOST_LITTLES: u32 = 100;

/// Where files come from and go to.
#[derive(Clone, Copy)]
pub(crate) struct Job<'a> {
    pub(crate) asking: Asking<'a>,
    pub(crate) repository: &'a Repository,
    /// The name that the Hub has for the model now.
    pub(crate) model_id: &'a str,
    pub(crate) commit: &'a str,
    pub(crate) existing: Existing,
}

impl Job<'_> {
    /// Makes the blob of a file exist, and says how many bytes came over the network for it.
    pub(crate) fn fetch(&self, file: &Wanted) -> Result<u64, FetchError> {
        let Asking { progress, halt, .. } = self.asking;
        if self.existing == Existing::BySize && is_here(self.repository, file, self.existing)? {
            return Ok(0);
        }
        let _lock = Lock::acquire(&self.repository.lock(&file.blob), &file.path, progress, halt)?;
        if is_here(self.repository, file, self.existing)? {
            return Ok(0);
        }
        clear(self.repository, file)?;
        let mut part = Part::open(&self.repository.incomplete(&file.blob), file.size, file.digest.as_ref())?;
        progress.started(&file.path, file.size, part.have());
        let came = self.complete(file, &mut part)?;
        part.publish(&self.repository.blob(&file.blob))?;
        progress.finished(&file.path);
        tracing::info!(path = %file.path, bytes = came, "downloaded");
        Ok(came)
    }

    fn complete(&self, file: &Wanted, part: &mut Part) -> Result<u64, FetchError> {
        let mut came = 0;
        let mut count = 0;
        let mut littles = 0;
        let mut damaged = false;
        // The most bytes that were here since the last start: a server without ranges begins again and again, and what it
        // brings then is no progress.
        let mut most = part.have();
        loop {
            let is_whole = file.size == Some(part.have());
            let mut from = self.asking.hub.origin.host.clone();
            let got = if is_whole { Ok(()) } else { self.attempt(file, part, &mut came, &mut from) };
            let damage = match got {
                Ok(()) => match part.check()? {
                    Ok(()) => return Ok(came),
                    Err(damage) => damage,
                },
                Err(Stumble::Damage(damage)) => damage,
                Err(Stumble::Trouble(trouble)) => {
                    let gained = part.have().saturating_sub(most);
                    if gained >= LITTLE_BYTES {
                        count = 0;
                    } else if gained > 0 && littles < MOST_LITTLES {
                        littles += 1;
                        count = 0;
                    }
                    most += gained;
                    if !part.is_resumable() {
                        part.restart()?;
                        self.asking.progress.advanced(&file.path, 0);
                    }
                    self.asking.wait_after(trouble, &mut count, &self.asking.hub.retry)?;
                    continue;
                }
            };
            // What an earlier run has left may be at fault, or the way here: once more from the start.
            let is_inherited = part.is_inherited();
            part.restart()?;
            most = 0;
            self.asking.progress.advanced(&file.path, 0);
            // Bytes of an earlier run do not speak against this server.
            if !is_inherited {
                if damaged {
                    return Err(FetchError::Damaged { path: file.path.clone(), what: damage.0, host: from });
                }
                damaged = true;
            }
            tracing::warn!(path = %file.path, what = %damage.0, "arrived damaged; once more from the start");
        }
    }

    fn attempt(
        &self,
        file: &Wanted,
        part: &mut Part,
        came: &mut u64,
        from: &mut String,
    ) -> Result<(), Stumble> {
        let Asking { hub, client, progress, halt } = self.asking;
        let url = resolve_url(&hub.endpoint, self.model_id, self.commit, &file.path);
        let subject = Subject { model_id: self.model_id, revision: self.commit, path: Some(&file.path) };
        let mut answer = client.ask(&Ask { url: &url, kind: Kind::Bytes(part.have()), subject })?;
        if let Some(origin) = Origin::of(&answer.url) {
            *from = origin.host;
        }
        let length = self.begin(file, part, &answer)?;
        let end = length.map(|length| part.have().saturating_add(length));
        if let (Some(size), Some(end)) = (file.size, end)
            && end != size
        {
            return Err(Damage(format!("expected {size} bytes, the server has {end}")).into());
        }
        let mut block = vec![0; BLOCK_BYTES];
        let mut reader = answer.body.as_reader();
        loop {
            if halt.load(Ordering::Relaxed) {
                return Err(FetchError::Stopped.into());
            }
            let read = match reader.read(&mut block) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(body_failure(shown(&answer.url), &error, hub.download_timeout).into());
                }
            };
            part.write(&block[..read])?;
            *came += read as u64;
            progress.advanced(&file.path, part.have());
            if file.size.is_some_and(|size| part.have() > size) {
                return Err(
                    Damage(format!("more than the expected {} bytes came", file.size.unwrap_or(0))).into()
                );
            }
        }
        match end {
            Some(end) if part.have() < end => {
                let what = "the connection ended early".to_owned();
                let error = FetchError::Unreachable { url: from.clone(), what };
                Err(Trouble::Passing { error, wait: None }.into())
            }
            _ => Ok(()),
        }
    }

    /// Sees where an answer's bytes belong, and how many are to come.
    fn begin(&self, file: &Wanted, part: &mut Part, answer: &Answer) -> Result<Option<u64>, Stumble> {
        let protocol = |what: &str| FetchError::Protocol { url: answer.url.clone(), what: what.to_owned() };
        if answer.header("content-encoding").is_some_and(|coding| coding != "identity") {
            return Err(protocol("it compresses a file that was asked for as it is").into());
        }
        let first = part.have();
        match answer.status {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.header("content-range").and_then(content_range);
                match range {
                    Some((start, _)) if start == first => {}
                    _ => return Err(protocol("it sends another part of the file than was asked for").into()),
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(
                    Damage(format!("there are {first} bytes here, and the server has no more")).into()
                );
            }
            // The whole file, though a part was asked for.
            _ if first > 0 => {
                part.restart()?;
                self.asking.progress.advanced(&file.path, 0);
            }
            _ => {}
        }
        Ok(answer.header("content-length").and_then(|length| length.parse().ok()))
    }
}

/// How an attempt failed.
enum Stumble {
    Trouble(Trouble),
    Damage(Damage),
}

impl From<Trouble> for Stumble {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<FetchError> for Stumble {
    fn from(error: FetchError) -> Self {
        Self::Trouble(error.into())
    }
}

impl From<Damage> for Stumble {
    fn from(damage: Damage) -> Self {
        Self::Damage(damage)
    }
}

/// Whether a file's bytes are in the cache under their name, and are the right ones as far as they are not trusted.
pub(crate) fn is_here(
    repository: &Repository,
    file: &Wanted,
    existing: Existing,
) -> Result<bool, FetchError> {
    let path = repository.blob(&file.blob);
    let Ok(there) = path.metadata() else { return Ok(false) };
    if file.size.is_some_and(|size| size != there.len()) {
        return Ok(false);
    }
    let (Some(digest), Existing::ByDigest) = (&file.digest, existing) else { return Ok(true) };
    let check = || digest.check(&mut File::open(&path)?, there.len());
    Ok(check().map_err(|error| FetchError::io("read", &path, error))?.is_ok())
}

/// Removes what has a file's name and is not the file. The file's lock must be held.
fn clear(repository: &Repository, file: &Wanted) -> Result<(), FetchError> {
    let path = repository.blob(&file.blob);
    match fs::remove_file(&path) {
        Ok(()) => {
            tracing::warn!(path = %file.path, blob = %path.display(), "damaged in the cache; downloading it again");
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(FetchError::io("remove the damaged", &path, error)),
    }
}

/// First byte and total of `bytes 3-9/10`.
fn content_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()))
}

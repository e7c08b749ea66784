//! The whole of it: from a model's name to a folder of checked files.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::api::{Asking, Resolved};
use crate::cache::{Repository, free_bytes};
use crate::client::Client;
use crate::digest::Digest;
use crate::download::{Job, is_here};
use crate::environment::Hub;
use crate::error::FetchError;
use crate::listing::{About, Listing, Wanted};
use crate::local::{found_in, is_intact, listed};
use crate::names::{check_model_id, check_revision, is_commit};
use crate::progress::{Plan, PlanFile, Progress};
use crate::request::{Existing, Request};
use crate::retry::Retry;
use crate::snapshot::{Proof, Snapshot, SnapshotFile, Source};

/// How soon a wish to stop is noticed.
const HEED_EVERY: Duration = Duration::from_millis(50);

impl Hub {
    /// Makes a model's files be here, all of them checked, and says where.
    ///
    /// With `HF_HUB_OFFLINE`, and where the Hub cannot be reached, what the cache has whole is given:
    /// [`Snapshot::source`] says so. Set `stop` to end it soon; what has come is kept.
    pub fn fetch(
        &self,
        request: &Request,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<Snapshot, FetchError> {
        let local = self.look(request)?;
        if let Some(snapshot) = self.without_asking(request, &local)? {
            return Ok(snapshot);
        }
        let client = Client::new(self)?;
        heeding(&client, stop, |halt| {
            let asking = Asking { hub: self, client: &client, progress, halt };
            match self.resolve(request, &asking, &local) {
                Ok(found) => self.download(request, &asking, &found),
                Err(error) => instead(request, local, error),
            }
        })
    }

    /// What [`fetch`](Self::fetch) would download, without downloading any of it. Offline, and where the model is here
    /// by its commit, nobody is asked.
    pub fn plan(&self, request: &Request, stop: &AtomicBool) -> Result<Plan, FetchError> {
        let local = self.look(request)?;
        if let Some(snapshot) = self.without_asking(request, &local)? {
            return Ok(plan_of_snapshot(request, &snapshot));
        }
        let client = Client::new(self)?;
        heeding(&client, stop, |halt| {
            let asking = Asking { hub: self, client: &client, progress: &(), halt };
            match self.resolve(request, &asking, &local) {
                Ok(found) => self.plan_of(request, &found),
                Err(error) => Ok(plan_of_snapshot(request, &instead(request, local, error)?)),
            }
        })
    }

    /// What the cache has of the model, if it has it whole. Nobody is asked, so a branch may have moved on.
    pub fn cached(&self, request: &Request) -> Result<Option<Snapshot>, FetchError> {
        Ok(match self.look(request)? {
            Local::Whole { snapshot, .. } => Some(snapshot),
            Local::Lacking(_) => None,
        })
    }

    fn without_asking(&self, request: &Request, local: &Local) -> Result<Option<Snapshot>, FetchError> {
        match local {
            Local::Whole { snapshot, files } if self.offline => match damaged(request, snapshot, files)? {
                Some(path) => Err(self.offline_without(request, format!("{path} is damaged"))),
                None => Ok(Some(Snapshot { source: Source::Offline, ..snapshot.clone() })),
            },
            Local::Whole { snapshot, files } if snapshot.is_listed && is_commit(&request.revision) => {
                let is_sound = damaged(request, snapshot, files)?.is_none();
                Ok(is_sound.then(|| Snapshot { source: Source::Commit, ..snapshot.clone() }))
            }
            Local::Lacking(missing) if self.offline => Err(self.offline_without(request, missing.clone())),
            _ => Ok(None),
        }
    }

    fn offline_without(&self, request: &Request, missing: String) -> FetchError {
        FetchError::Offline {
            model_id: request.model_id.clone(),
            revision: request.revision.clone(),
            cache: self.cache.clone(),
            missing,
        }
    }

    fn resolve(&self, request: &Request, asking: &Asking<'_>, local: &Local) -> Result<Found, FetchError> {
        // With something to fall back on nobody is kept waiting.
        let retry = match local {
            Local::Whole { .. } => Retry { times: 0, ..self.retry.clone() },
            Local::Lacking(_) => self.retry.clone(),
        };
        let resolved = asking.resolve(request, &retry)?;
        let listing = resolved.info.listing();
        let about = About { model_id: &request.model_id, commit: &resolved.commit, endpoint: &self.endpoint };
        let paths = listing.wanted(&about, request.graphs)?;
        let name = resolved.renamed_to.as_ref().unwrap_or(&request.model_id);
        let wanted = paths.iter().map(|path| {
            let facts = &listing.files[path];
            let known = facts.etag().and_then(|etag| Wanted::new(path, facts.size, etag));
            known.map_or_else(|| asking.look_up(name, &resolved.commit, path, facts), Ok)
        });
        Ok(Found { files: wanted.collect::<Result<_, _>>()?, listing, resolved })
    }

    fn plan_of(&self, request: &Request, found: &Found) -> Result<Plan, FetchError> {
        let repository = Repository::new(&self.cache, &request.model_id);
        let file = |file: &Wanted| {
            let is_here = is_here(&repository, file, Existing::BySize)?;
            let part = repository.incomplete(&file.blob).metadata().map_or(0, |part| part.len());
            let have_bytes = if is_here { file.size.unwrap_or(0) } else { part };
            Ok(PlanFile { path: file.path.clone(), size_bytes: file.size, have_bytes, is_here })
        };
        Ok(Plan {
            model_id: request.model_id.clone(),
            renamed_to: found.resolved.renamed_to.clone(),
            commit: found.resolved.commit.clone(),
            files: found.files.iter().map(file).collect::<Result<_, FetchError>>()?,
            source: Source::Hub,
        })
    }

    fn download(
        &self,
        request: &Request,
        asking: &Asking<'_>,
        found: &Found,
    ) -> Result<Snapshot, FetchError> {
        let plan = self.plan_of(request, found)?;
        asking.progress.planned(&plan);
        let repository = Repository::new(&self.cache, &request.model_id);
        let Resolved { commit, renamed_to, .. } = &found.resolved;
        let is_complete = request.existing == Existing::BySize
            && plan.missing().next().is_none()
            && found.files.iter().all(|file| repository.is_linked(commit, file));
        let mut came = 0;
        if is_complete {
            // The cache may be one that others write and this process only reads.
            let noted = repository
                .write_listing(commit, &found.listing)
                .and_then(|()| repository.write_ref(&request.revision, commit));
            if let Err(error) = noted {
                tracing::debug!(%error, "the cache is left as it is");
            }
        } else {
            self.check_room(&plan)?;
            repository.prepare()?;
            let model_id = renamed_to.as_ref().unwrap_or(&request.model_id);
            let job = Job {
                asking: *asking,
                repository: &repository,
                model_id,
                commit,
                existing: request.existing,
            };
            came = all(&job, &found.files, request.files_at_once)?;
            repository.write_listing(commit, &found.listing)?;
            repository.write_snapshot(commit, &found.files, request.existing)?;
            repository.write_ref(&request.revision, commit)?;
        }
        let path = repository.snapshot(commit);
        Ok(Snapshot {
            files: found.files.iter().map(|file| described(&path, file)).collect(),
            path,
            commit: commit.clone(),
            is_listed: true,
            graph: found.listing.graph(),
            renamed_to: renamed_to.clone(),
            source: Source::Hub,
            downloaded_bytes: came,
        })
    }

    fn check_room(&self, plan: &Plan) -> Result<(), FetchError> {
        let (needed_bytes, free_bytes) = (plan.missing_bytes(), free_bytes(&self.cache)?);
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        Err(FetchError::NoRoom { needed_bytes, free_bytes, cache: self.cache.clone() })
    }

    /// What the cache has of a model.
    fn look(&self, request: &Request) -> Result<Local, FetchError> {
        check_model_id(&request.model_id)?;
        check_revision(&request.revision)?;
        let repository = Repository::new(&self.cache, &request.model_id);
        let Some(commit) = repository.known_commit(&request.revision)? else {
            return Ok(Local::Lacking("the revision is not known there".to_owned()));
        };
        let path = repository.snapshot(&commit);
        if !path.is_dir() {
            return Ok(Local::Lacking(format!("there is no snapshot of {commit}")));
        }
        let listing = repository.listing(&commit)?;
        let about = About { model_id: &request.model_id, commit: &commit, endpoint: &self.endpoint };
        let found = match &listing {
            Some(listing) => listed(listing, &about, request.graphs),
            None => found_in(&path, request.graphs),
        };
        let files = match found {
            Ok(files) => files,
            Err(missing) => return Ok(Local::Lacking(missing)),
        };
        for file in &files {
            if !repository.is_linked(&commit, file) {
                return Ok(Local::Lacking(format!("{} is missing or cut short", file.path)));
            }
        }
        let snapshot = Snapshot {
            files: files.iter().map(|file| described(&path, file)).collect(),
            path,
            commit,
            is_listed: listing.is_some(),
            graph: listing.as_ref().and_then(Listing::graph),
            renamed_to: None,
            source: Source::Commit,
            downloaded_bytes: 0,
        };
        Ok(Local::Whole { snapshot, files })
    }
}

/// What the cache has of a model.
enum Local {
    /// All of it, as far as is known.
    Whole { snapshot: Snapshot, files: Vec<Wanted> },
    /// This is not there.
    Lacking(String),
}

/// What the Hub has of a model.
struct Found {
    resolved: Resolved,
    listing: Listing,
    files: Vec<Wanted>,
}

/// What the cache has, where the Hub could not be asked.
fn instead(request: &Request, local: Local, error: FetchError) -> Result<Snapshot, FetchError> {
    match local {
        Local::Whole { snapshot, files }
            if error.is_unreachable() && damaged(request, &snapshot, &files)?.is_none() =>
        {
            tracing::warn!(%error, commit = %snapshot.commit, "taking what the cache has");
            Ok(Snapshot { source: Source::Unreachable(error.to_string()), ..snapshot })
        }
        _ => Err(error),
    }
}

/// The first file of a snapshot that is not what it should be, if that is to be looked into.
fn damaged(request: &Request, snapshot: &Snapshot, files: &[Wanted]) -> Result<Option<String>, FetchError> {
    if request.existing == Existing::BySize {
        return Ok(None);
    }
    for file in files {
        if !is_intact(&snapshot.path, file)? {
            return Ok(Some(file.path.clone()));
        }
    }
    Ok(None)
}

/// Runs `work` with a flag that is raised as soon as `stop` is, and ends its requests then.
fn heeding<T>(
    client: &Client<'_>,
    stop: &AtomicBool,
    work: impl FnOnce(&AtomicBool) -> Result<T, FetchError>,
) -> Result<T, FetchError> {
    let (halt, done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let end = Raised(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if stop.load(Ordering::Relaxed) {
                    halt.store(true, Ordering::Relaxed);
                }
                if halt.load(Ordering::Relaxed) {
                    client.shut_down();
                    return;
                }
                thread::park_timeout(HEED_EVERY);
            }
        });
        let result = work(&halt);
        drop(end);
        if stop.load(Ordering::Relaxed) && result.is_err() { Err(FetchError::Stopped) } else { result }
    })
}

/// Raises a flag when it is dropped, by a panic too: who waits for the flag is not left waiting.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Downloads files, several at once, the largest first. The first error ends all of it.
fn all(job: &Job<'_>, files: &[Wanted], at_once: usize) -> Result<u64, FetchError> {
    let mut order: Vec<&Wanted> = files.iter().collect();
    order.sort_by_key(|file| std::cmp::Reverse(file.size));
    let (next, came) = (AtomicUsize::new(0), AtomicU64::new(0));
    let first_error = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..at_once.clamp(1, order.len().max(1)) {
            scope.spawn(|| {
                while let Some(file) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match job.fetch(file) {
                        Ok(bytes) => {
                            came.fetch_add(bytes, Ordering::Relaxed);
                        }
                        Err(error) => {
                            first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                            job.asking.halt.store(true, Ordering::Relaxed);
                        }
                    }
                    if job.asking.halt.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None if job.asking.halt.load(Ordering::Relaxed) => Err(FetchError::Stopped),
        None => Ok(came.into_inner()),
    }
}

fn described(snapshot: &Path, file: &Wanted) -> SnapshotFile {
    let length = || snapshot.join(&file.path).metadata().map_or(0, |file| file.len());
    SnapshotFile {
        path: file.path.clone(),
        size_bytes: file.size.unwrap_or_else(length),
        proof: match &file.digest {
            Some(Digest::Sha256(hex)) => Proof::Sha256(hex.clone()),
            Some(Digest::Git(hex)) => Proof::Git(hex.clone()),
            None => Proof::Size,
        },
    }
}

fn plan_of_snapshot(request: &Request, snapshot: &Snapshot) -> Plan {
    let file = |file: &SnapshotFile| PlanFile {
        path: file.path.clone(),
        size_bytes: Some(file.size_bytes),
        have_bytes: file.size_bytes,
        is_here: true,
    };
    Plan {
        model_id: request.model_id.clone(),
        renamed_to: None,
        commit: snapshot.commit.clone(),
        files: snapshot.files.iter().map(file).collect(),
        source: snapshot.source.clone(),
    }
}

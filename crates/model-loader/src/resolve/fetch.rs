//! The last place: the Hub itself, for who asks for it.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hub_fetch::{FetchError, Hub, Progress, Request, Source};

use crate::LoadError;
use crate::hub_cache::CachedSnapshot;

/// The model's files, downloaded where they are not here; offline (`HF_HUB_OFFLINE`), and from a Hub that cannot be
/// reached, what the cache has whole.
pub(super) fn fetch(
    model_id: &str,
    revision: &str,
    cache: Option<&Path>,
) -> Result<CachedSnapshot, LoadError> {
    let failed =
        |source: FetchError| LoadError::Fetch { model_id: model_id.to_owned(), source: Box::new(source) };
    let hub = hub(cache).map_err(failed)?;
    let request = Request::new(model_id).at(revision);
    tracing::info!(model_id, revision, endpoint = hub.endpoint(), "fetching the model from the Hub");
    // Loading is not interrupted either: what has come stays, and the next time goes on from there.
    let snapshot = hub.fetch(&request, &Told, &AtomicBool::new(false)).map_err(failed)?;
    if let Source::Unreachable(why) = &snapshot.source {
        tracing::warn!(model_id, %why, "the Hub cannot be asked; taking what the cache has");
    }
    Ok(CachedSnapshot { path: snapshot.path, commit: snapshot.commit })
}

/// Where [`fetch`] would ask and put what it gets: for a report. Asks nobody.
pub(super) fn would(
    model_id: &str,
    revision: &str,
    cache: Option<&Path>,
) -> Result<(PathBuf, String), LoadError> {
    let failed =
        |source: FetchError| LoadError::Fetch { model_id: model_id.to_owned(), source: Box::new(source) };
    let hub = hub(cache).map_err(failed)?;
    let what = if hub.is_offline() {
        format!("{model_id} at {revision} would not be fetched: HF_HUB_OFFLINE is set")
    } else {
        format!("{model_id} at {revision} would be fetched from {}", hub.endpoint())
    };
    Ok((hub.cache().to_owned(), what))
}

fn hub(cache: Option<&Path>) -> Result<Hub, FetchError> {
    let hub = Hub::from_env()?;
    Ok(match cache {
        Some(cache) => hub.with_cache(cache.to_owned()),
        None => hub,
    })
}

/// Writes down what a download does.
struct Told;

impl Progress for Told {
    fn started(&self, path: &str, size_bytes: Option<u64>, have_bytes: u64) {
        tracing::info!(path, size_bytes, have_bytes, "downloading");
    }

    fn finished(&self, path: &str) {
        tracing::debug!(path, "downloaded");
    }

    fn waiting(&self, what: &str, wait: Duration) {
        tracing::warn!(seconds = wait.as_secs_f64(), "{what}; trying again");
    }
}

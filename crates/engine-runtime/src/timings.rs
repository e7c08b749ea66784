//! How long kernels took on a GPU, which the builder of the data-centre TensorRT measures, kept for the next build.
//!
//! Losing a file costs the time to measure again and nothing else, as with what a plan's kernels compile to.

use std::io;
use std::path::PathBuf;

use crate::cache::{CacheFile, driver_version};
use crate::check::Fit;
use crate::default_cache_folder;
use crate::native::Gpu;

/// What stands in the place of a plan: the times are every plan's.
const EVERY_PLAN: &str = "timings";

/// Where the times of one kind of GPU under one driver and one library are kept.
#[derive(Clone, Debug)]
pub struct Timings(CacheFile);

impl Timings {
    /// Those of the library with this version on this GPU; `None` for who has no home.
    #[must_use]
    pub fn of(version: &str, gpu: &Gpu) -> Option<Self> {
        let fit = Fit { library: PathBuf::new(), version: version.to_owned(), gpu: gpu.clone() };
        Some(Self(CacheFile::new(&default_cache_folder()?, EVERY_PLAN, &fit, &driver_version(&fit))))
    }

    /// What is kept; nothing, or what is damaged, is an empty list, from which TensorRT begins anew.
    #[must_use]
    pub fn load(&self) -> Vec<u8> {
        self.0.load().unwrap_or_default()
    }

    /// Keeps this. Of two builds at a time, what the later one has measured stays.
    pub fn save(&self, serialised: &[u8]) -> io::Result<()> {
        self.0.save(serialised)
    }
}

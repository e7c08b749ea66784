//! What TensorRT-RTX compiled for a GPU, kept in files so that the next process need not compile it again.
//!
//! A file holds what came of one plan on one kind of GPU under one driver: everything that decides it is in its name. It
//! begins with the SHA-256 of the rest; what does not match is not given to TensorRT. Files are written beside their
//! place and renamed, so that two processes never mix. Losing one costs the time to compile again and nothing else.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use model_store::Digest;

use crate::check::Fit;

/// A cache is some megabytes for a model of hundreds; what is larger than this is not read.
const MAX_BYTES: u64 = 1 << 30;
const DIGEST_BYTES: usize = 32;

/// Where a plan's compiled kernels are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CacheFile(PathBuf);

/// The exact version of the NVIDIA driver; the CUDA version that it is good for where the kernel does not say.
pub(crate) fn driver_version(fit: &Fit) -> String {
    let text = fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
    match text.trim() {
        "" => format!("cuda-{}", fit.gpu.driver_cuda),
        version => version.to_owned(),
    }
}

impl CacheFile {
    /// The file for a plan, named by its digest (or for what is every plan's, by another name), on what runs it.
    pub(crate) fn new(folder: &Path, plan: &str, fit: &Fit, driver: &str) -> Self {
        let gpu = &fit.gpu;
        let parts = [plan, &fit.version, &gpu.name, &gpu.sm.to_string(), driver];
        let key = Digest::of(parts.join("\n").as_bytes()).to_string();
        Self(folder.join(format!("{key}.runtime-cache")))
    }

    /// What is kept; `None` where there is nothing, or nothing that can be trusted.
    pub(crate) fn load(&self) -> Option<Vec<u8>> {
        let size = fs::metadata(&self.0).ok().filter(fs::Metadata::is_file)?.len();
        if size > MAX_BYTES {
            return None;
        }
        let mut bytes = fs::read(&self.0).ok()?;
        let payload = bytes.split_off(DIGEST_BYTES.min(bytes.len()));
        if bytes == Digest::of(&payload).as_bytes() {
            return Some(payload);
        }
        tracing::warn!(path = %self.0.display(), "a runtime cache is damaged, so its kernels are compiled again");
        None
    }

    /// Keeps this.
    pub(crate) fn save(&self, payload: &[u8]) -> io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let folder = self.0.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let draft = self.0.with_extension(format!("{}-{number}.tmp", std::process::id()));
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(Digest::of(payload).as_bytes())?;
            file.write_all(payload)?;
            fs::rename(&draft, &self.0)
        };
        write().inspect_err(|_| {
            let _ = fs::remove_file(&draft);
        })
    }

    #[cfg(any(test, not(feature = "tensorrt-enterprise")))]
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::native::Gpu;

    fn fit(name: &str, sm: u16, version: &str) -> Fit {
        let gpu = Gpu { index: 0, name: name.to_owned(), sm, memory_bytes: 1, driver_cuda: 13_000 };
        Fit { library: "x".into(), version: version.to_owned(), gpu }
    }

    #[test]
    fn everything_that_decides_the_kernels_is_in_the_name() {
        let folder = Path::new("/cache");
        let name = |plan: &str, fit: &Fit, driver: &str| CacheFile::new(folder, plan, fit, driver);
        let base = name("aa", &fit("A", 89, "1.7"), "580.1");
        assert_eq!(base, name("aa", &fit("A", 89, "1.7"), "580.1"));
        for (row, other) in [
            ("plan", name("ab", &fit("A", 89, "1.7"), "580.1")),
            ("GPU", name("aa", &fit("B", 89, "1.7"), "580.1")),
            ("generation", name("aa", &fit("A", 90, "1.7"), "580.1")),
            ("library", name("aa", &fit("A", 89, "1.8"), "580.1")),
            ("driver", name("aa", &fit("A", 89, "1.7"), "580.2")),
        ] {
            assert_ne!(base, other, "{row}");
        }
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_damaged_does_not() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("deep/down");
        let file = CacheFile::new(&folder, "aa", &fit("A", 89, "1.7"), "580.1");
        assert_eq!(file.load(), None, "nothing yet");
        for payload in [&b"kernels"[..], b"", b"other kernels"] {
            file.save(payload)?;
            assert_eq!(file.load().as_deref(), Some(payload));
        }
        assert_eq!(fs::read_dir(&folder)?.count(), 1, "no drafts are left");
        let whole = fs::read(file.path())?;
        for cut in 0..whole.len() {
            fs::write(file.path(), &whole[..cut])?;
            assert_eq!(file.load(), None, "cut at {cut}");
            let mut flipped = whole.clone();
            flipped[cut] ^= 1;
            fs::write(file.path(), &flipped)?;
            assert_eq!(file.load(), None, "bit at {cut}");
        }
        Ok(())
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_and_leaves_nothing() -> io::Result<()> {
        let root = tempfile::tempdir()?;
        let blocked = root.path().join("file");
        fs::write(&blocked, "")?;
        let file = CacheFile::new(&blocked.join("cache"), "aa", &fit("A", 89, "1.7"), "580.1");
        assert!(file.save(b"kernels").is_err());
        assert_eq!(fs::read_dir(root.path())?.count(), 1);
        Ok(())
    }
}

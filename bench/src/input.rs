//! What the rows work on.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::Path;

/// Files of random bytes.
pub(crate) fn random_files(folder: &Path, count: usize, bytes: u64) -> anyhow::Result<()> {
    let mut random = BufReader::with_capacity(1 << 20, File::open("/dev/urandom")?);
    for i in 0..count {
        let below = folder.join(format!("part-{:03}", i / 1000));
        fs::create_dir_all(&below)?;
        let mut file = File::create(below.join(format!("{i:05}.bin")))?;
        std::io::copy(&mut random.by_ref().take(bytes), &mut file)?;
        file.flush()?;
    }
    settle();
    Ok(())
}

/// Nothing that a run left to be written is written in the next one.
pub(crate) fn settle() {
    rustix::fs::sync();
}

/// Reads every file, so that each side finds it in the page cache.
pub(crate) fn warm(folder: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            warm(&entry.path())?;
        } else {
            std::io::copy(&mut File::open(entry.path())?, &mut std::io::sink())?;
        }
    }
    Ok(())
}

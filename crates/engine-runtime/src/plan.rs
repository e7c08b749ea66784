//! A plan's bytes, which are those that were published or are not loaded.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use model_store::Digest;

use crate::RuntimeError;
use crate::description::{EngineRecord, PLAN_FILE};

/// Reads the plan of an engine's folder. What is hashed is what is returned, so nothing can come between the two.
pub(crate) fn read(folder: &Path, record: &EngineRecord) -> Result<Vec<u8>, RuntimeError> {
    checked(&folder.join(PLAN_FILE), &record.plan_sha256, Some(record.facts.plan_bytes))
}

/// Reads a file whole if its SHA-256 is this.
pub(crate) fn checked(path: &Path, sha256: &str, size: Option<u64>) -> Result<Vec<u8>, RuntimeError> {
    let io = || RuntimeError::io("read", path);
    let file = File::open(path).map_err(io())?;
    let found = file.metadata().map_err(io())?.len();
    let mut bytes = Vec::new();
    // A file of another size is not worth its memory.
    if size.is_none_or(|size| size == found) {
        file.take(found).read_to_end(&mut bytes).map_err(io())?;
        let digest = Digest::of(&bytes).to_string();
        return if digest == sha256 { Ok(bytes) } else { Err(other(path, digest, sha256)) };
    }
    let size = size.unwrap_or_default();
    Err(other(path, format!("that of {found} bytes where there should be {size}"), sha256))
}

fn other(path: &Path, found: String, expected: &str) -> RuntimeError {
    RuntimeError::Digest { path: path.to_owned(), found, expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bytes_that_were_described_are_read() -> std::io::Result<()> {
        let root = tempfile::tempdir()?;
        let path = root.path().join(PLAN_FILE);
        std::fs::write(&path, b"a plan")?;
        let right = Digest::of(b"a plan").to_string();
        let check = |row: &str, sha256: &str, size, parts: &[&str]| match checked(&path, sha256, size) {
            Ok(bytes) => assert!(parts.is_empty() && bytes == b"a plan", "{row}"),
            Err(error) => {
                assert!(
                    !parts.is_empty() && error.exit_code() == model_store::exit::CORRUPT,
                    "{row}: {error}"
                );
                for part in parts {
                    assert!(error.to_string().contains(part), "{row}: {part} is not in {error}");
                }
            }
        };
        check("right", &right, Some(6), &[]);
        check("size unknown", &right, None, &[]);
        check("another digest", &Digest::of(b"").to_string(), Some(6), &["not loaded", &right, "--rebuild"]);
        check("another size", &right, Some(7), &["6 bytes", "7"]);
        check("no digest", "", Some(6), &[&right]);
        let missing = checked(&root.path().join("none"), &right, None);
        assert!(matches!(missing, Err(RuntimeError::Io { .. })), "{missing:?}");
        Ok(())
    }
}
